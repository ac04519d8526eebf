"""Records a kernel that runs already, from outside, whoever runs code on it: what it publishes, and no more.

IOPub --> KernelTap --> TappedExecutions --> Recorder: a line for each execution
   breaks, standing still, wrong signatures --> marked in the lines, and told in words

No request is ever sent: the kernel sees one subscriber more, and nothing else.
"""

from __future__ import annotations

import os
import socket as sockets
import time
from collections.abc import Callable
from typing import Any

from repl_kernel.errors import BadMessage, KernelUnreachable
from repl_kernel.jupyter.connection import Connection
from repl_kernel.jupyter.recording import Recorder
from repl_kernel.jupyter.tapped import TappedExecutions

_CONNECT_LIMIT_S = 5.0
_NO_WELCOME_S = 0.3
"""After this a kernel that says no `iopub_welcome` has taken in our subscription."""

_CHECK_S = 0.5
_STOOD_STILL_S = 2.0
_GONE_S = 30.0
"""How long a kernel may be away, which restarts, before it is taken for gone."""

_REST_LIMIT_S = 4.0
"""How long what came before the end is taken in: 80,000 messages."""

_READ_AT_ONCE = 1000

Tell = Callable[[str], None]


class KernelTap:
    """The watcher of one kernel; `stop` may be called from anywhere, all else from one thread."""

    def __init__(self, connection: Connection, recorder: Recorder, tell: Tell) -> None:
        """Connect; `tell` gets, in sentences, what a person must know. Raises `KernelUnreachable`."""
        import zmq
        from zmq.utils import monitor

        self._parse_event = monitor.parse_monitor_message
        self._connection = connection
        self._tell = tell
        self._executions = TappedExecutions(recorder, tell)
        self._codec = connection.codec("tap")
        self._refused = 0
        self._is_stopped = False
        self._connected_at: float | None = None
        self._broken_at: float | None = None
        self._is_recording = False
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = connection.socket(self._context, "iopub")
        self._monitor: zmq.Socket[Any] = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_DISCONNECTED
        )
        self._wake_fd, self._waker = sockets.socketpair()
        self._waker.setblocking(False)
        self._poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._wake_fd.fileno()):
            self._poller.register(source, zmq.POLLIN)
        try:
            connection.connect(self._socket, "iopub")
        except BaseException:
            self.close()
            raise

    def run(self) -> str:
        """Record until `stop`, or until the kernel is gone; returns in a sentence what was recorded.

        What is open then gets its line, `unknown`. Raises `KernelUnreachable` where nobody listens there, and
        what the recorder raises.
        """
        started_at = looked_at = time.monotonic()
        why = "told to end"
        while not self._is_stopped:
            ready = dict(self._poller.poll(int(_CHECK_S * 1000)))
            if self._wake_fd.fileno() in ready:
                self._wake_fd.recv(4096)
            now = time.monotonic()
            self._mind_standing_still(now - looked_at)
            looked_at = now
            has_more = self._read()
            if self._monitor in ready and not has_more:  # what came before a break is taken in before it
                self._take_event()
            if self._connected_at is None and now - started_at > _CONNECT_LIMIT_S:
                raise KernelUnreachable(
                    f"no kernel listens where {self._connection.path} says; it has ended, or is another's"
                )
            self._begin_recording(now)
            if self._is_gone(now):
                why = "the kernel has ended"
                break
        self._read_rest()
        self._executions.break_off(f"{why} before its end was seen")
        return self._summary(why)

    def stop(self) -> None:
        """Have `run` return soon; from a signal handler too."""
        self._is_stopped = True
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # it is being woken anyway

    def close(self) -> None:
        """Disconnect."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._context.destroy(linger=0)
        self._wake_fd.close()
        self._waker.close()

    def _read(self) -> bool:
        """Take in messages; returns whether more may wait."""
        import zmq

        for _ in range(_READ_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return False
            try:
                message, _ = self._codec.unpack(frames)
            except BadMessage as exc:
                self._refused += 1
                self._executions.refuse()
                if self._refused == 1:
                    self._tell(f"refused: {exc}; such messages are counted, and not recorded")
                continue
            if message.type == "iopub_welcome":
                self._connected_at = 0.0  # it has taken in our subscription
            self._executions.take(message)
        return True

    def _read_rest(self) -> None:
        """Take in what has come until now."""
        deadline = time.monotonic() + _REST_LIMIT_S
        while self._read():
            if time.monotonic() >= deadline:
                self._tell("there was more to take in than there is time for at the end")
                self._executions.mark("messages that had come were not taken in")
                return

    def _take_event(self) -> None:
        import zmq

        event = self._parse_event(self._monitor.recv_multipart())["event"]
        now = time.monotonic()
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if self._connected_at is None:
                self._connected_at = now
            if self._broken_at is not None:
                self._broken_at = None
                self._tell("connected again")
        elif event == zmq.EVENT_DISCONNECTED:
            if self._connected_at is not None and self._broken_at is None:
                self._broken_at = now
                self._tell("the connection broke: what the kernel says until it is back is not recorded")
                self._executions.mark("the connection broke while it ran")
        elif self._connected_at is None:
            raise KernelUnreachable(
                f"the kernel refuses the keys of {self._connection.path}; take its present connection file"
            )

    def _begin_recording(self, now: float) -> None:
        if self._is_recording or self._connected_at is None or now - self._connected_at < _NO_WELCOME_S:
            return
        self._is_recording = True
        self._tell("recording")

    def _mind_standing_still(self, pause_s: float) -> None:
        if pause_s > _STOOD_STILL_S:
            self._tell(f"this process stood still for {pause_s:.0f} s: the kernel may have dropped output")
            self._executions.mark_where_untold(
                "the tap stood still while it ran; this kernel's messages have no numbers that tell what is "
                "missing"
            )

    def _is_gone(self, now: float) -> bool:
        if self._broken_at is None:
            return False
        if self._executions.has_shut_down or not os.path.exists(self._connection.path):
            return True
        return now - self._broken_at > _GONE_S

    def _summary(self, why: str) -> str:
        executions = self._executions
        parts = [f"{why}; {executions.recorded} executions recorded"]
        if executions.unpublished:
            parts.append(f"{executions.unpublished} without code that was published, not recorded")
        if self._refused:
            parts.append(f"{self._refused} messages refused")
        if executions.has_late_output:
            parts.append("output after the last one is in no line")
        return ", ".join(parts)
