"""What the user's code has open, in words; what of it a copy has to let go, and what it shares."""

from __future__ import annotations

import os
import stat

_MAX_LISTED = 100
_MAX_NAME_CHARACTERS = 200
"""So that a list fits one packet of the announcement channel."""


_NAMELESS = {"/dev/zero (deleted)": "memory without a name"}
"""What the kernel calls shared memory that is no file's."""

_EVENT_LOG_END = ".events.jsonl)"
"""Ends what is said of a file that the code's events go to: each fork closes it, and opens its own."""


def open_descriptors(not_users: set[int]) -> list[str]:
    """List the user's open descriptors above 2: number and what it is; for files the offset as well."""
    lines: list[str] = []
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        if fd <= 2 or fd in not_users:
            continue
        try:
            mode = os.fstat(fd).st_mode
            text = f"{fd} ({_target(fd)})"
            if stat.S_ISREG(mode):
                if text.endswith(_EVENT_LOG_END):
                    continue
                text += f" at byte {os.lseek(fd, 0, os.SEEK_CUR)}"
        except OSError:
            continue  # the descriptor of the listing itself
        lines.append(text)
    if len(lines) > _MAX_LISTED:
        lines[_MAX_LISTED:] = [f"and {len(lines) - _MAX_LISTED} more"]
    return lines


def cut_off_peers(kept_fd: int, not_users: set[int]) -> tuple[str, ...]:
    """Put /dev/null over all pipes and sockets but one: their peers must see the worker close them.

    Descriptors 1 and 2 stay. Returns what the user's were, for the notices of a restore.
    """
    lost: list[str] = []
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd <= 2 or fd in (kept_fd, null_fd):
            continue
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                if fd not in not_users:
                    lost.append(f"{fd} ({_target(fd)})")
                os.dup2(null_fd, fd, inheritable=os.get_inheritable(fd))
        except OSError:
            pass  # the descriptor of the listing itself
    os.close(null_fd)
    return tuple(lost[:_MAX_LISTED])


def shared_memory() -> tuple[str, ...]:
    """The memory that a fork shares with this process instead of copying it, for writing: what it is of."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            lines = [line.split(maxsplit=5) for line in maps if b" rw-s " in line or b" rwxs " in line]
    except OSError as exc:
        return (f"nobody can tell of what ({exc.strerror})",)
    names = {line[5].rstrip(b"\n").decode("utf-8", "backslashreplace") for line in lines}
    return tuple(_NAMELESS.get(name, name)[-_MAX_NAME_CHARACTERS:] for name in sorted(names)[:_MAX_LISTED])


def _target(fd: int) -> str:
    target = os.readlink(f"/proc/self/fd/{fd}")
    return target.encode("utf-8", "backslashreplace").decode()[-_MAX_NAME_CHARACTERS:]
