"""The session's side of one worker: its socket, its two pipes, its life."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import Set
from typing import Any

from repl_kernel.capture import OutputCollector
from repl_kernel.executor import OnOutput
from repl_kernel.framing import RECEIVE_BYTES, FrameReader, pack
from repl_kernel.keeper_link import ForkedWorker
from repl_kernel.process_tree import pid_of
from repl_kernel.streams import FLUSH_SIGNAL
from task_logger.record import TaskIds

_NOTHING: frozenset[int] = frozenset()
_SO_RCVTIMEO = 20
_QUICK_REPLY_S = 0.002
"""How long to wait in one blocking read before looking at the pipes as well: most replies come sooner."""


class WorkerLink:
    """Everything we hold of one worker; not thread-safe but for `signal`."""

    def __init__(self, worker: ForkedWorker) -> None:
        self.inner_pid = worker.pid
        """Its number as its keeper counts: in a sandbox another than ours."""
        self.pid = pid_of(worker.pidfd)
        self.task: TaskIds | None = None
        self.children_mark: int | None = None
        self._pidfd = worker.pidfd
        self._socket = worker.ends.data
        self.channel = worker.ends.channel
        self._fds = {worker.ends.stdout_fd: 0, worker.ends.stderr_fd: 1}
        """Which stream each pipe is: this worker's, and those before it that something may still write to."""
        self._socket_fd = self._socket.fileno()
        self._socket.setsockopt(1, _SO_RCVTIMEO, struct.pack("ll", 0, int(_QUICK_REPLY_S * 1e6)))
        self._reader = FrameReader()
        self._poll = select.poll()
        self._channel_fd = self.channel.fileno()
        self._urgent = select.poll()
        for fd in (*self._fds, self._socket_fd, self._pidfd):
            self._poll.register(fd, select.POLLIN)
            self._urgent.register(fd, select.POLLIN)
        self._poll.register(self._channel_fd, select.POLLIN)
        self.poll = self._urgent.poll
        """Like `wait`, in milliseconds, for those who only ask whether anything but an announcement came."""
        self._is_closed = False

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; raises OSError where the worker is gone, `FrameTooLarge` before anything
        is sent."""
        self._socket.sendall(pack(message))

    def receive_soon(self) -> dict[str, Any] | None:
        """The next message where one comes within 2 ms, else `None`; raises EOFError once the
        worker is gone."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError as exc:
            raise EOFError from exc
        if not data:
            raise EOFError
        return self._reader.feed(data)

    def next_message(self) -> dict[str, Any] | None:
        """A message that was already read, `None` where there is none."""
        return None if self._reader.is_empty else self._reader.take()

    def wait(self, timeout_ms: float | None) -> Set[int]:
        """Wait until something happens; returns what is ready: see `is_output`, `is_message`, `is_death`."""
        events = self._poll.poll(timeout_ms)
        return {fd for fd, _ in events} if events else _NOTHING

    def drain(
        self, ready: Set[int], collectors: tuple[OutputCollector, ...], on_output: OnOutput | None
    ) -> int:
        """Read each ready pipe until it is empty (at most a MiB each); returns how many bytes came."""
        total = 0
        for fd in ready & self._fds.keys():
            collector = collectors[self._fds[fd]]
            for _ in range(16):
                try:
                    data = os.read(fd, RECEIVE_BYTES)
                except BlockingIOError:
                    break
                if not data:
                    self._close_pipe(fd)
                    break
                total += len(data)
                collector.take(data, on_output)
                if len(data) < RECEIVE_BYTES:
                    break
        return total

    def has_message(self, ready: Set[int]) -> bool:
        """Whether `receive_soon` will not have to wait."""
        return self._socket_fd in ready

    def is_dead(self, ready: Set[int]) -> bool:
        """Whether the worker has ended."""
        return self._pidfd in ready

    def signal(self, signal_number: int) -> None:
        """Send the worker a signal; nothing happens where it has ended."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal_number)
        except ProcessLookupError:
            pass

    def ask_to_flush(self) -> None:
        """Have the worker write out what its streams gather."""
        self.signal(FLUSH_SIGNAL)

    def wait_for_death(self, limit_s: float) -> bool:
        """Wait for the worker's end; returns whether it has come."""
        return bool(select.select([self._pidfd], [], [], limit_s)[0])

    def minor_faults(self) -> int | None:
        """How many pages the worker has been given, one way or another; `None` where it has ended."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return int(file.read().rpartition(b")")[2].split()[7])
        except (OSError, IndexError):
            return None

    def close(self) -> None:
        """Close all we hold; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._socket.close()
        self.channel.close()
        os.close(self._pidfd)
        for fd in self._fds:
            os.close(fd)

    def close_pipes(self) -> None:
        """Let go of the pipes: the worker doesn't write to them."""
        for fd in tuple(self._fds):
            self._close_pipe(fd)

    def take_pipes(self, before: WorkerLink) -> None:
        """Take over the pipes of the worker before: its copies and its programs write to them, and what was
        written is still in them. Each is closed once nobody is left who could write to it."""
        for fd, stream in before._fds.items():
            self._poll.register(fd, select.POLLIN)
            self._urgent.register(fd, select.POLLIN)
            self._fds[fd] = stream
        before._fds = {}

    def _close_pipe(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._urgent.unregister(fd)
        del self._fds[fd]
        os.close(fd)

    def has_output(self, ready: Set[int]) -> bool:
        """Whether something was written to descriptor 1 or 2."""
        return not self._fds.keys().isdisjoint(ready)

    def has_announced(self, ready: Set[int]) -> bool:
        """Whether the worker has something to say about its copies."""
        return self._channel_fd in ready


def death_of(status: int | None) -> tuple[str | None, int | None, str]:
    """A wait status as signal name, exit code and words; `None` where nobody could tell."""
    if status is None:
        return None, None, "ended, nobody could tell how"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return None, code, f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return name, None, f"was killed by {name}"
