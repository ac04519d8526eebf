"""A folder for one kernel's sockets that nobody else can look into: 0700, short enough for a socket's path.

<base>/json-repl-<pid of the manager>-XXXXXXXX/k-1 … k-5, and kernel.json where the manager names no file
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time

_SOCKET_PATH_BYTES = 100
"""Of 108 on Linux and 104 on macOS, with the name of the socket in them."""

_NAME = re.compile(r"json-repl-(\d+)-\w+")
_LEFT_AFTER_S = 60.0
"""A folder that is younger may belong to a kernel that is about to start, in another process namespace."""


def make_private_folder() -> str | None:
    """Make one, and remove those that killed managers left; `None` where no place is short enough."""
    # Not $XDG_RUNTIME_DIR: that one goes when the user logs out, a server may stay.
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) + len("/json-repl-4194304-XXXXXXXX/k-5") > _SOCKET_PATH_BYTES:
            continue
        try:
            folder = tempfile.mkdtemp(prefix=f"json-repl-{os.getpid()}-", dir=base)
        except OSError:
            continue
        _remove_left(base)
        return folder
    return None


def remove_private_folder(folder: str) -> None:
    """Remove it and the sockets in it, where it is still there."""
    try:
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    except OSError:
        pass  # gone, or not ours any more: nobody is waiting for it


def _remove_left(base: str) -> None:
    for entry in os.scandir(base):
        found = _NAME.fullmatch(entry.name)
        if found is None or _is_running(int(found[1])):
            continue
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        is_old = time.time() - stat.st_mtime > _LEFT_AFTER_S
        if is_old and stat.st_uid == os.geteuid() and entry.is_dir(follow_symlinks=False):
            try:
                paths = [os.path.join(entry.path, name) for name in os.listdir(entry.path)]
            except OSError:
                continue  # another manager was quicker
            if not any(_is_listening(path) for path in paths):
                remove_private_folder(entry.path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def _is_listening(path: str) -> bool:
    """Whether a kernel answers there: one may, in another process namespace, where that pid lives."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
