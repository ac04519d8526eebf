"""What a sandboxed worker must not reach, put up for its probe: a file, sockets, this process.

session: Outside --targets--> worker: probe --attempts--> session: was anything of it reached?
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import tempfile
from types import TracebackType
from typing import Any

from repl_kernel.errors import SandboxUnavailable
from repl_kernel.process_tree import read_stat

_SOCKET_PATH_BYTES = 107
"""What Linux takes, without the NUL at its end."""

_NAMESPACES = ("pid", "net", "ipc", "uts", "user", "mnt")


class Outside:
    """One file, and listening sockets of each kind; a context manager, nothing is left at its end."""

    def __init__(self, *, network: bool) -> None:
        """`network`: the worker may use the machine's, so that nothing is proven with it.

        Raises `SandboxUnavailable` where there is no folder for a socket.
        """
        self._network = network
        self._folder = _make_folder()
        self._sockets: list[socket.socket] = []
        try:
            self._put_up()
        except BaseException:
            self.close()
            raise

    def _put_up(self) -> None:
        with open(self._path("secret"), "w", encoding="ascii") as file:
            file.write("nobody in a sandbox reads this\n")
        self._abstract = f"json-repl-probe-{os.urandom(8).hex()}"
        self._listen(socket.AF_UNIX, self._path("socket"))
        if not self._network:
            self._listen(socket.AF_UNIX, f"\0{self._abstract}")
            self._tcp_port = self._listen(socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]

    def _listen(self, family: int, address: Any) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(listener)
        listener.bind(address)
        listener.listen(1)
        return listener

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    @property
    def targets(self) -> dict[str, Any]:
        """What the probe needs to know to reach for it."""
        stat = read_stat(os.getpid())
        kinds = [kind for kind in _NAMESPACES if not (kind == "net" and self._network)]
        return {
            "network": self._network,
            "secret": self._path("secret"),
            "unix": self._path("socket"),
            "abstract": self._abstract,
            "tcp": 0 if self._network else self._tcp_port,
            "pid": os.getpid(),
            "start_ticks": stat.start_ticks if stat is not None else -1,
            "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        }

    @property
    def was_reached(self) -> bool:
        """Whether somebody has connected, whatever the probe says."""
        return bool(select.select(self._sockets, [], [], 0)[0])

    def close(self) -> None:
        """Take it all down."""
        for listener in self._sockets:
            listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Outside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_folder() -> str:
    """Make a folder in which a socket's path isn't too long, whatever TMPDIR says."""
    reason = "their paths are too long for a socket"
    bases = list(dict.fromkeys((tempfile.gettempdir(), "/tmp")))
    for base in bases:
        if len(os.fsencode(base)) + len("/json-repl-probe-XXXXXXXX/socket") > _SOCKET_PATH_BYTES:
            continue
        try:
            return tempfile.mkdtemp(prefix="json-repl-probe-", dir=base)
        except OSError as exc:
            reason = str(exc.strerror)
    raise SandboxUnavailable(
        "probe",
        f"no folder for it in {' or '.join(bases)}: {reason}",
        "set TMPDIR to a short path that can be written",
    )
