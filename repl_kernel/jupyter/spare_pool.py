"""A kernel process in reserve: everything is loaded in it, only its connection file is not known yet.

refill_later() --2 s--> spare is spawned --> it loads --> "ready", with what it was loaded from
take()         --still as good as new?--> arguments, environment, folder --> it is the kernel now

A spare belongs to the process that spawned it (the kernel manager's), and ends with it.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subprocess import Popen

_REFILL_AFTER_S = 2.0
"""A spare loads once the kernel that was started before it has answered, and runs its first cells."""

_HAND_OVER_LIMIT_S = 1.0
_END_LIMIT_S = 2.0
_READ_BYTES = 65536

_READ_AT_START = (
    "PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "JUPYTER", "IPYTHON", "PYDEVD", "DEBUGPY"
)  # fmt: skip
_READ_AT_START_TOO = frozenset({"HOME", "LANG", "LANGUAGE", "TZ"})
"""Variables that an interpreter, or a module of a spare, looks at once: a spare can't change to others."""


class SparePool:
    """At most one spare; usable from several threads."""

    def __init__(self, spare_module: str) -> None:
        self.owner_pid = os.getpid()
        self._spare_module = spare_module
        self._lock = threading.Lock()
        self._spare: _Spare | None = None
        self._refill: threading.Timer | None = None
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        """Whether there is a spare that has loaded."""
        with self._lock:
            return self._spare is not None and self._spare.is_ready()

    def take(
        self,
        interpreter: Sequence[str],
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: str,
    ) -> Popen[bytes] | None:
        """The spare, now a kernel with these arguments; `None` where none is as good as a new process."""
        if not self._lock.acquire(blocking=False):
            return None  # one is being spawned this moment, so none has loaded
        try:
            spare = self._spare
            if spare is None or not spare.suits(interpreter, environment) or not spare.is_ready():
                return None
            self._spare = None
            if spare.process.poll() is None and spare.is_fresh():
                try:
                    return spare.hand_over(arguments, environment, cwd)
                except OSError:
                    pass  # it died this moment
            spare.end()
            return None
        finally:
            self._lock.release()

    def refill_later(self, interpreter: Sequence[str], environment: Mapping[str, str]) -> None:
        """Have a spare for kernels like this one soon, in place of one that doesn't suit them."""
        with self._lock:
            if self._is_closed or self._refill is not None:
                return
            self._refill = threading.Timer(
                _REFILL_AFTER_S, self._refill_now, (tuple(interpreter), dict(environment))
            )
            self._refill.name = "spare-kernel"
            self._refill.daemon = True
            self._refill.start()

    def close(self) -> None:
        """End the spare; there will be no other. Idempotent."""
        with self._lock:
            self._is_closed = True
            refill, self._refill = self._refill, None
            spare, self._spare = self._spare, None
        if refill is not None:
            refill.cancel()
            refill.join(_END_LIMIT_S)
        if spare is not None:
            spare.end()

    def abandon(self) -> None:
        """Close our descriptor only: in a forked child, whose parent the spare belongs to."""
        if self._spare is not None:
            self._spare.link.close()

    def _refill_now(self, interpreter: tuple[str, ...], environment: dict[str, str]) -> None:
        with self._lock:
            self._refill = None
            if self._is_closed:
                return
            if (spare := self._spare) is not None:
                if spare.suits(interpreter, environment) and spare.process.poll() is None:
                    return
                self._spare = None
                spare.end()
            try:
                self._spare = _Spare.spawn(self._spare_module, interpreter, environment)
            except OSError:
                pass  # no process, no descriptor: the next kernel starts cold


@dataclass(slots=True)
class _Spare:
    process: Popen[bytes]
    link: socket.socket
    interpreter: tuple[str, ...]
    at_start: dict[str, str]
    received: bytes = b""

    @classmethod
    def spawn(cls, module: str, interpreter: tuple[str, ...], environment: dict[str, str]) -> _Spare:
        """Spawn one as jupyter_client spawns a kernel: a session of its own, an empty standard input."""
        from jupyter_client.launcher import launch_kernel

        ours, theirs = socket.socketpair()
        try:
            process: Popen[bytes] = launch_kernel(
                [*interpreter, "-m", module, str(theirs.fileno()), str(os.getpid())],
                env=environment,
                cwd="/",  # nothing there is taken for a module
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours, interpreter, _read_at_start(environment))

    def suits(self, interpreter: Sequence[str], environment: Mapping[str, str]) -> bool:
        return self.interpreter == tuple(interpreter) and self.at_start == _read_at_start(environment)

    def is_ready(self) -> bool:
        """Whether it has said what it was loaded from; doesn't wait."""
        while not self.received.endswith(b"\n"):
            try:
                piece = self.link.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except OSError:
                return False
            if not piece:
                return False
            self.received += piece
        return True

    def is_fresh(self) -> bool:
        """Whether what it was loaded from is still there, unchanged."""
        return all(modified_ns(path) == ns for path, ns in json.loads(self.received))

    def hand_over(self, arguments: Sequence[str], environment: Mapping[str, str], cwd: str) -> Popen[bytes]:
        """Have it become the kernel; raises OSError where it is dead."""
        message: dict[str, Any] = {"arguments": list(arguments), "environment": dict(environment), "cwd": cwd}
        self.link.settimeout(_HAND_OVER_LIMIT_S)
        self.link.sendall(json.dumps(message).encode())
        self.link.close()
        return self.process

    def end(self) -> None:
        """End it, at once: it has nothing to lose yet."""
        self.link.close()
        self.process.kill()
        self.process.wait()


def modified_ns(path: str) -> int | None:
    """When a file or folder was changed last; `None` where it can't be seen."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) or name in _READ_AT_START_TOO
    }


_pool: SparePool | None = None
"""Of this process: a server has a manager for each kernel, and the spare is for whichever starts next."""


def pool_of_process(spare_module: str) -> SparePool:
    """The pool of this process, made at the first call; it is closed when the process ends."""
    global _pool  # noqa: PLW0603 - see there
    if _pool is None or _pool.owner_pid != os.getpid():
        if _pool is not None:
            _pool.abandon()
        _pool = SparePool(spare_module)
        atexit.register(_close_if_ours, _pool)
    return _pool


def _close_if_ours(pool: SparePool) -> None:
    if pool.owner_pid == os.getpid():
        pool.close()
