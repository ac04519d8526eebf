"""The keeper: forks workers, reaps them, and ends everything with the session.

    session's packets --> {"op": "fork"} + 4 descriptors --> fork --> worker, until it ends
                          {"op": "status", "pid"} --> how a worker that was made by a copy has ended
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

from repl_kernel.linux import become_subreaper, set_dumpable
from repl_kernel.process_tree import kill_descendants
from task_logger.record import Isolation

_MSG_CMSG_CLOEXEC = 0x40000000
_PACKET_BYTES = 4096
_FOUR_FDS = struct.Struct("4i")
_REMEMBERED_STATUSES = 1024
_KILL_ROUND_MS = 5
"""How long to wait for killed processes to end before looking for new ones."""

RunWorker = Callable[[int, int], int]
"""Runs a worker on a data socket and a channel, in the child, and returns its exit code."""


class Keeper:
    """One keeper; `run` returns the exit code of this process: the keeper's, or in a fork the worker's."""

    def __init__(self, control_fd: int, session_fd: int, isolation: Isolation, run_worker: RunWorker) -> None:
        """`session_fd` is a pidfd of the session; in a sandbox this process is PID 1 of its namespace."""
        self._control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control_fd)
        os.set_inheritable(control_fd, False)
        os.set_inheritable(session_fd, False)
        self._session_fd = session_fd
        self._is_sandboxed = isolation == "sandbox"
        self._run_worker = run_worker
        self._wakeup_fd = -1
        self._own_fds: list[int] = []
        self._workers: set[int] = set()
        self._others: dict[int, int] = {}

    def run(self, data_fd: int, channel_fd: int) -> int:
        """Fork the first worker on the inherited descriptors, then serve the session until it ends."""
        become_subreaper()
        close_inherited({self._control.fileno(), self._session_fd, data_fd, channel_fd})
        if self._is_sandboxed:
            set_dumpable(False)  # else executed code could write to this process's memory, in /proc/1/mem
            self._tell({"keeper": os.getpid()}, os.getpid())
        self._watch_children()
        self._own_fds += [self._session_fd, self._wakeup_fd]
        os.set_inheritable(data_fd, False)
        os.set_inheritable(channel_fd, False)
        gc.freeze()
        if not self._fork(()):
            return self._run_worker(data_fd, channel_fd)
        os.close(data_fd)
        os.close(channel_fd)
        null_fd = os.open("/dev/null", os.O_RDWR)
        os.dup2(null_fd, 1)
        os.dup2(null_fd, 2)
        os.close(null_fd)
        return self._serve()

    def _watch_children(self) -> None:
        self._wakeup_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._own_fds.append(write_fd)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)

    def _serve(self) -> int:
        session_fd = self._session_fd
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
                if operation == "status":
                    self._reap()
                    pid = orjson.loads(data)["pid"]
                    self._tell({"exited": pid, "status": self._others.pop(pid, None)})
                elif operation == "sweep":
                    self._end_descendants()
                    self._tell({"swept": True})
                elif not self._fork(fds[2:]):
                    return self._run_worker(fds[0], fds[1])
                for fd in fds:
                    os.close(fd)
        self._end_descendants()
        return 0

    def _receive(self) -> tuple[bytes, tuple[int, ...]]:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _PACKET_BYTES, _socket.CMSG_SPACE(_FOUR_FDS.size), _MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return b"", ()  # the session closed its end before it had read all we told it
        fds = next(
            (_FOUR_FDS.unpack(payload) for _, kind, payload in ancillary if kind == _socket.SCM_RIGHTS), ()
        )
        return data, fds

    def _fork(self, output_fds: tuple[int, ...]) -> int:
        """Fork a worker; returns its pid, 0 in the worker, and −1 where the system refuses.

        `output_fds` become its descriptors 1 and 2; empty where it has them already.
        """
        try:
            pid = os.fork()
        except OSError as exc:
            self._tell({"failed": exc.errno})
            return -1
        if pid:
            self._workers.add(pid)
            # Now, before the worker can have been reaped: its number cannot mean another process.
            self._tell({"forked": pid}, pid)
            return pid
        if self._is_sandboxed:
            set_dumpable(True)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for fd in self._own_fds:
            os.close(fd)
        for number, fd in enumerate(output_fds, start=1):
            os.dup2(fd, number)
            os.close(fd)
        return 0

    def _tell(self, message: dict[str, object], pid: int | None = None) -> None:
        """Send the session a message, and a pidfd of that process."""
        pidfds = () if pid is None else (os.pidfd_open(pid),)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", pidfd)) for pidfd in pidfds]
        try:
            self._control.sendmsg([orjson.dumps(message)], rights)
        except OSError:
            pass  # the session is gone: the next poll says so
        for pidfd in pidfds:
            os.close(pidfd)

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
            else:  # it may have been a worker that a copy made: the session asks
                self._others[pid] = status
                if len(self._others) > _REMEMBERED_STATUSES:
                    del self._others[next(iter(self._others))]

    def _end_descendants(self) -> None:
        while self._reap():
            kill_descendants(os.getpid())
            select.select([self._wakeup_fd], [], [], _KILL_ROUND_MS / 1000)
            try:
                os.read(self._wakeup_fd, _PACKET_BYTES)
            except BlockingIOError:
                pass


def close_inherited(kept: set[int]) -> None:
    """Close what a host left open to its children: none of it is the worker's business."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor of the listing itself
