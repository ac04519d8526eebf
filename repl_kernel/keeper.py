"""The keeper: forks workers, reaps them, and ends everything with the session.

    session's packets --> {"op": "fork"} + 3 descriptors --> fork --> worker, until it ends
                          {"op": "sweep"} --> every descendant killed
                          {"op": "end"}, or the session's death --> every descendant killed, then exit
    to the session    <-- {"forked": pid} + pidfd | {"failed": errno}
                      <-- {"exited": pid, "status": wait status}   {"swept": true}

It has one thread, never runs the user's code, and no request passes through it. As subreaper it becomes the
parent of whatever its descendants leave behind, so nothing escapes it by forking twice or by `setsid`.
"""

from __future__ import annotations

import _socket
import gc
import os
import select
import signal
import struct
from collections.abc import Callable

import orjson

from repl_kernel.linux import become_subreaper
from repl_kernel.process_tree import kill_descendants

_MSG_CMSG_CLOEXEC = 0x40000000
_PACKET_BYTES = 4096
_THREE_FDS = struct.Struct("3i")
_KILL_ROUND_MS = 5
"""How long to wait for killed processes to end before looking for new ones."""

RunWorker = Callable[[int], int]
"""Runs a worker on a data socket, in the child, and returns its exit code."""


class Keeper:
    """One keeper; `run` returns the exit code of this process: the keeper's, or in a fork the worker's."""

    def __init__(self, control_fd: int, session_pid: int, run_worker: RunWorker) -> None:
        self._control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control_fd)
        os.set_inheritable(control_fd, False)
        self._session_pid = session_pid
        self._run_worker = run_worker
        self._wakeup_fd = -1
        self._own_fds: list[int] = []
        self._workers: set[int] = set()

    def run(self, first_data_fd: int) -> int:
        """Fork the first worker on the inherited descriptors, then serve the session until it ends."""
        become_subreaper()
        _close_inherited({self._control.fileno(), first_data_fd})
        session_fd = os.pidfd_open(self._session_pid)
        if os.getppid() != self._session_pid:
            return 0  # the session died before it could be watched
        self._watch_children()
        self._own_fds += [session_fd, self._wakeup_fd]
        os.set_inheritable(first_data_fd, False)
        gc.freeze()
        if not self._fork(first_data_fd, None):
            return self._run_worker(first_data_fd)
        null_fd = os.open("/dev/null", os.O_RDWR)
        os.dup2(null_fd, 1)
        os.dup2(null_fd, 2)
        os.close(null_fd)
        return self._serve(session_fd)

    def _watch_children(self) -> None:
        self._wakeup_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._own_fds.append(write_fd)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)

    def _serve(self, session_fd: int) -> int:
        poll = select.poll()
        for fd in (self._control.fileno(), session_fd, self._wakeup_fd):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wakeup_fd in ready:
                os.read(self._wakeup_fd, _PACKET_BYTES)
                self._reap()
            if session_fd in ready:
                break
            if self._control.fileno() in ready:
                data, fds = self._receive()
                operation = orjson.loads(data)["op"] if data else "end"
                if operation == "end":
                    break
                if operation == "sweep":
                    self._end_descendants()
                    self._tell({"swept": True})
                elif not self._fork_for(fds):
                    return self._run_worker(fds[0])
        self._end_descendants()
        return 0

    def _receive(self) -> tuple[bytes, tuple[int, ...]]:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _PACKET_BYTES, _socket.CMSG_SPACE(_THREE_FDS.size), _MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return b"", ()  # the session closed its end before it had read all we told it
        fds = next(
            (_THREE_FDS.unpack(payload) for _, kind, payload in ancillary if kind == _socket.SCM_RIGHTS), ()
        )
        return data, fds

    def _fork_for(self, fds: tuple[int, ...]) -> int:
        pid = self._fork(fds[0], fds[1:])
        if pid:
            for fd in fds:
                os.close(fd)
        return pid

    def _fork(self, data_fd: int, output_fds: tuple[int, ...] | None) -> int:
        """Fork a worker; returns its pid, 0 in the worker, and −1 where the system refuses."""
        try:
            pid = os.fork()
        except OSError as exc:
            self._tell({"failed": exc.errno})
            return -1
        if pid:
            self._workers.add(pid)
            self._tell_forked(pid)
            if output_fds is None:
                os.close(data_fd)
            return pid
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for fd in self._own_fds:
            os.close(fd)
        if output_fds is not None:
            for number, fd in enumerate(output_fds, start=1):
                os.dup2(fd, number)
                os.close(fd)
        return 0

    def _tell_forked(self, pid: int) -> None:
        # Opened here, before the worker can have been reaped: its number cannot mean another process.
        pidfd = os.pidfd_open(pid)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", pidfd))]
        try:
            self._control.sendmsg([orjson.dumps({"forked": pid})], rights)
        except OSError:
            pass  # the session is gone: the next poll says so
        os.close(pidfd)

    def _tell(self, message: dict[str, object]) -> None:
        try:
            self._control.send(orjson.dumps(message))
        except OSError:
            pass  # as above

    def _reap(self) -> bool:
        """Reap whoever has ended; returns whether children are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid in self._workers:
                self._workers.remove(pid)
                self._tell({"exited": pid, "status": status})

    def _end_descendants(self) -> None:
        while self._reap():
            kill_descendants(os.getpid())
            select.select([self._wakeup_fd], [], [], _KILL_ROUND_MS / 1000)
            try:
                os.read(self._wakeup_fd, _PACKET_BYTES)
            except BlockingIOError:
                pass


def _close_inherited(kept: set[int]) -> None:
    """Close what a host left open to its children: none of it is the worker's business."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor of the listing itself
