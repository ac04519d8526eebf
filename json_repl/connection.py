"""A client's end of one JSON-lines conversation with a process, shared by any number of threads.

    caller's thread -> request line -> process          each caller registers a Call by its id
    process -> reply and notification lines -> whichever caller reads just now -> the Call they belong to

There is no thread here: among the callers that wait, one reads for all, a piece at a time. So a single caller
pays for no change of threads, and output that nobody takes waits in the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Iterator, Mapping
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any

import orjson

from json_repl import messages
from json_repl.errors import InvalidRequest, ReplyTimeout, SessionProcessDied
from json_repl.lines import MAX_LINE_BYTES, READ_BYTES, LineSplitter, LineWriter, OversizeLine

if TYPE_CHECKING:
    from subprocess import Popen

STDERR_TAIL_BYTES = 4096

MAX_REPLY_BYTES = 1 << 30
"""A reply is about as long as a log line; only `history` of all grows past that."""


class Call:
    """One request that waits for its reply, and the notifications that came for it meanwhile."""

    __slots__ = ("events", "id", "reply")

    def __init__(self, call_id: int) -> None:
        self.id = call_id
        self.events: deque[Mapping[str, Any]] = deque()
        self.reply: Mapping[str, Any] | None = None


class Connection:
    """Owns the pipes of a process; `has_ended` once it will say no more, `ready` what it said of itself."""

    def __init__(self, process: Popen[bytes]) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the process must be started with three pipes")
        self.ready: Mapping[str, Any] | None = None
        self.has_ended = False
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._writer = LineWriter(self._stdin.fileno())
        self._lines = LineSplitter(MAX_REPLY_BYTES)
        self._stderr_tail = b""
        self._changed = Condition(Lock())
        self._has_reader = False
        self._calls: dict[int, Call] = {}
        self._last_id = 0
        # The end of the output is no sign of the process's end where its own children hold it: hence a pidfd.
        self._pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        self._poll = select.poll()
        for fd in (self._stdout.fileno(), self._stderr.fileno(), self._pidfd):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)

    @property
    def stderr_tail(self) -> str:
        """The last 4 kB that the process wrote to its stderr, as far as they were read."""
        return self._stderr_tail.decode("utf-8", "backslashreplace")

    @contextlib.contextmanager
    def call(self, method: str, params: Mapping[str, object], deadline: float) -> Iterator[Call]:
        """Send a request; while the context lasts, what belongs to it is kept in the yielded `Call`."""
        with self._changed:
            self._last_id += 1
            call = self._calls[self._last_id] = Call(self._last_id)
        try:
            with _refusing_what_json_lacks(method):
                line = messages.render_request(call.id, method, params)
            self._send(line, method, deadline)
            yield call
        finally:
            with self._changed:
                del self._calls[call.id]

    def notify(self, method: str, params: Mapping[str, object]) -> None:
        """Send a request that wants no reply."""
        with _refusing_what_json_lacks(method):
            line = messages.render_notification(method, params)
        self._send(line, method, float("inf"))

    def read_for(self, call: Call | None, deadline: float) -> None:
        """Wait for news of this call, the deadline or the conversation's end; `None` stands for any news."""
        with self._changed:
            while self._has_reader and not self.has_ended and not (call and (call.events or call.reply)):
                if not self._changed.wait(_remaining_s(deadline)):
                    return
            if self.has_ended or (call and (call.events or call.reply)):
                return
            self._has_reader = True
        try:
            self._read(deadline)
        finally:
            with self._changed:
                self._has_reader = False
                self._changed.notify_all()

    def death(self) -> SessionProcessDied:
        """Why there is no reply: how the process ended, as an error to raise."""
        import signal
        import subprocess

        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            said = "the session's process closed its output, or wrote what is not the protocol's"
            return SessionProcessDied(said, exit_code=None, signal=None, stderr_tail=self.stderr_tail)
        if code >= 0:
            said = f"the session's process ended with exit code {code} before it replied"
            return SessionProcessDied(said, exit_code=code, signal=None, stderr_tail=self.stderr_tail)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        said = f"the session's process was ended by {name} before it replied"
        return SessionProcessDied(said, exit_code=None, signal=name, stderr_tail=self.stderr_tail)

    def end_input(self) -> None:
        """Say that nothing more will be asked; the process finishes what was."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def read_until_exit(self, deadline: float) -> bool:
        """Read for whoever still waits until the process has ended; returns whether it has."""
        while self._process.poll() is None:
            if time.monotonic() >= deadline:
                return False
            # Where there is no pidfd, or the output ended before the process, only looking again helps.
            self.read_for(None, min(deadline, time.monotonic() + 0.05))
            if self.has_ended and self._process.poll() is None:
                time.sleep(0.005)
        return True

    def close(self) -> None:
        """Close the pipes of a process that is gone; callers that wait get what it sent, or its death."""
        deadline = time.monotonic() + 1.0
        while not self.has_ended and time.monotonic() < deadline:
            self.read_for(None, deadline)
        with self._changed:
            self._changed.wait_for(lambda: not self._has_reader)
            self.has_ended = True
            self._changed.notify_all()
        for pipe in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _send(self, line: bytes, method: str, deadline: float) -> None:
        if len(line) > MAX_LINE_BYTES:  # the reply to it could not name it: nobody would know whose it is
            raise InvalidRequest(method, f"is {len(line)} bytes long as a line, of {MAX_LINE_BYTES} at most")
        started = time.monotonic()

        def give_up() -> bool:
            # A process that doesn't read may be waiting for us to do so.
            if not self._has_reader:
                self.read_for(None, time.monotonic())
            return self.has_ended or time.monotonic() >= deadline

        if not self._writer.write(line, give_up):
            if self._writer.is_gone or self.has_ended:
                raise self.death()
            raise ReplyTimeout(method, time.monotonic() - started)

    def _read(self, deadline: float) -> None:
        """Wait for one piece and hand it out; only the one reader comes here."""
        remaining_s = _remaining_s(deadline)
        ready = {fd for fd, _ in self._poll.poll(None if remaining_s is None else remaining_s * 1000)}
        output_fd, stderr_fd = self._stdout.fileno(), self._stderr.fileno()
        if stderr_fd in ready:
            piece = os.read(stderr_fd, READ_BYTES)
            self._stderr_tail = (self._stderr_tail + piece)[-STDERR_TAIL_BYTES:]
            if not piece:
                self._poll.unregister(stderr_fd)
        if output_fd in ready:
            data = os.read(output_fd, READ_BYTES)
            self.has_ended = not data
            for line in self._lines.feed(data):
                self._hand_out(line)
        elif stderr_fd not in ready and self._pidfd in ready:
            self.has_ended = True  # it ended, and nothing of what it wrote is left

    def _hand_out(self, line: bytes | OversizeLine) -> None:
        try:
            message = orjson.loads(b"" if isinstance(line, OversizeLine) else line)
            call = self._calls.get(message["params"].get("id") if "method" in message else message["id"])
        except (ValueError, KeyError, TypeError, AttributeError):
            self.has_ended = True  # not one of ours, whatever it is: no reply can be trusted to come
            return
        if message.get("method") == "ready":
            self.ready = message["params"]
        elif call is not None:
            # A call that was given up is not there any more, and its late reply is dropped.
            if "method" in message:
                call.events.append(message)
            else:
                call.reply = message


@contextlib.contextmanager
def _refusing_what_json_lacks(method: str) -> Iterator[None]:
    try:
        yield
    except TypeError as exc:
        raise InvalidRequest(method, f"takes what JSON can hold: {exc}") from exc


def _remaining_s(deadline: float) -> float | None:
    return None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
