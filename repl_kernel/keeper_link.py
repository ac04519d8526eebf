"""The session's side of its keeper: ask for workers, learn how they ended, end everything."""

from __future__ import annotations

import _socket
import os
import select
import signal
import struct
import time
from dataclasses import dataclass
from typing import Any

import orjson

from repl_kernel.errors import CannotFork, WorkerStartFailed
from repl_kernel.spawn import Ends, SpawnedKeeper, make_ends

_START_LIMIT_S = 20.0
"""How long a keeper may take to start and fork: a loaded machine is slow, a broken interpreter is not."""

_ANSWER_LIMIT_S = 5.0
_MSG_CMSG_CLOEXEC = 0x40000000
_PACKET_BYTES = 4096
_STDERR_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ForkedWorker:
    """A worker that was forked: whoever holds this closes `ends` and `pidfd`."""

    pid: int
    pidfd: int
    ends: Ends


class KeeperLink:
    """One keeper process and the control socket to it."""

    def __init__(self, spawned: SpawnedKeeper) -> None:
        self.pid = spawned.pid
        """`pid` is our child's: the keeper's own, or in a sandbox that of the program that started it."""
        self.move = spawned.move
        """The first message for each worker that it forks, `None` without one."""
        self._control = spawned.control
        self._keeper_pidfd = -1
        self._statuses: dict[int, int | None] = {}
        self._forked: set[int] = set()
        self._first_ends: Ends | None = spawned.ends
        self._is_reaped = False
        self._users = 1

    def fork_worker(self) -> ForkedWorker:
        """Have a worker forked; raises `CannotFork` (the keeper goes on) or `WorkerStartFailed` (it
        is gone)."""
        ends, limit_s = self._first_ends, _START_LIMIT_S
        if ends is None:
            ends, limit_s = self._request_fork(), _ANSWER_LIMIT_S
        self._first_ends = None
        try:
            message, pidfd = self._wait_for("forked", "failed", limit_s=limit_s)
            if "failed" in message:
                raise CannotFork(f"the system refuses a new worker process: {os.strerror(message['failed'])}")
        except WorkerStartFailed as exc:
            tail = _read_tail(ends.stderr_fd)
            ends.close()
            raise type(exc)(str(exc), tail) from exc
        self._forked.add(message["forked"])
        return ForkedWorker(message["forked"], pidfd, ends)

    def _request_fork(self) -> Ends:
        try:
            ends, theirs = make_ends()
        except OSError as exc:
            raise CannotFork(f"no descriptors are left for a new worker: {exc.strerror}") from exc
        fds = struct.pack("4i", *theirs.fds)
        self._let_go_on()
        try:
            self._control.sendmsg([b'{"op":"fork"}'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        except OSError as exc:
            ends.close()
            raise WorkerStartFailed(f"the keeper process {self.pid} is gone") from exc
        finally:
            theirs.close()
        return ends

    def exit_status(self, pid: int, limit_s: float = _ANSWER_LIMIT_S) -> int | None:
        """The wait status of a worker that has ended, `None` where the keeper doesn't tell in time."""
        deadline = time.monotonic() + limit_s
        self._let_go_on()
        if pid in self._forked:
            self._forked.remove(pid)
        else:  # a copy made it: the keeper reaped it without a word
            try:
                self._control.send(orjson.dumps({"op": "status", "pid": pid}))
            except OSError:
                return None
        while pid not in self._statuses and (remaining := deadline - time.monotonic()) > 0:
            try:
                self._wait_for("exited", limit_s=remaining)
            except WorkerStartFailed:
                return None
        return self._statuses.pop(pid, None)

    def sweep(self) -> None:
        """Kill every descendant of the keeper, workers included; raises `WorkerStartFailed` where
        it is gone."""
        self._let_go_on()
        try:
            self._control.send(b'{"op":"sweep"}')
        except OSError as exc:
            raise WorkerStartFailed(f"the keeper process {self.pid} is gone") from exc
        self._wait_for("swept", limit_s=_ANSWER_LIMIT_S)

    def shared(self) -> KeeperLink:
        """The same, for one namespace more; it ends with the last one."""
        self._users += 1
        return self

    @property
    def is_shared(self) -> bool:
        """Whether other namespaces have their workers here as well."""
        return self._users > 1

    def end(self) -> None:
        """Have the keeper kill all that is left and end; returns once it has. Nothing while it is shared."""
        self._users -= 1
        if self._users > 0:
            return
        if self._first_ends is not None:
            self._first_ends.close()
            self._first_ends = None
        try:
            self._control.send(b'{"op":"end"}')
        except OSError:
            pass  # it is gone already
        self._control.close()
        self._reap()
        self._close_keeper_pidfd()

    def abandon(self) -> None:
        """Close our descriptors only: in a forked child, whose parent the session is."""
        self._control.close()
        self._close_keeper_pidfd()

    def _let_go_on(self) -> None:
        """Have the keeper go on where executed code, of the same user, has stopped it."""
        try:
            os.kill(self.pid, signal.SIGCONT)
        except OSError:
            pass  # it is gone, which whoever asks it is told

    def _close_keeper_pidfd(self) -> None:
        if self._keeper_pidfd >= 0:
            os.close(self._keeper_pidfd)
            self._keeper_pidfd = -1

    def _reap(self) -> None:
        if self._is_reaped:
            return
        self._is_reaped = True
        self._let_go_on()
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return  # a host that reaps every child has done so
        try:
            if not select.select([pidfd], [], [], _ANSWER_LIMIT_S)[0]:
                if self._keeper_pidfd >= 0:
                    _kill(self._keeper_pidfd)
                _kill(pidfd)
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # as above
        finally:
            os.close(pidfd)

    def _wait_for(self, *kinds: str, limit_s: float) -> tuple[dict[str, Any], int]:
        """The next packet of one of these kinds, and the descriptor it came with (or −1); notes
        exits on the way."""
        deadline = time.monotonic() + limit_s
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._control.fileno()], [], [], remaining)[0]:
                raise WorkerStartFailed(
                    f"the keeper process {self.pid} did not answer within {limit_s:.0f} s"
                )
            try:
                data, rights, _, _ = self._control.recvmsg(
                    _PACKET_BYTES, _socket.CMSG_SPACE(4), _MSG_CMSG_CLOEXEC
                )
            except ConnectionError:
                data = b""
            if not data:
                raise WorkerStartFailed(f"the keeper process {self.pid} ended without a word")
            message: dict[str, Any] = orjson.loads(data)
            if "keeper" in message:
                self._keeper_pidfd = struct.unpack("i", rights[0][2])[0]
            if "exited" in message:
                self._statuses[message["exited"]] = message["status"]
            if any(kind in message for kind in kinds):
                return message, struct.unpack("i", rights[0][2])[0] if rights else -1


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile


def _read_tail(fd: int) -> str:
    data = b""
    try:
        while chunk := os.read(fd, 65536):
            data = (data + chunk)[-_STDERR_TAIL_BYTES:]
    except BlockingIOError:
        pass  # somebody still holds the other end; what is there is what we show
    return data.decode("utf-8", "replace").strip()
