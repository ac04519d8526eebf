"""The conversation with one kernel: its four sockets, read by one thread, woken by any.

send --> shell, control, stdin --> kernel
receive <-- iopub, shell, stdin, control <-- kernel      the kernel's end, or a break: `is_dead`
"""

from __future__ import annotations

import math
import os
import socket as sockets
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repl_kernel.errors import BadMessage, KernelUnreachable
from repl_kernel.jupyter.connection import Channel, Connection
from repl_kernel.jupyter.gaps import GapCounter
from repl_kernel.jupyter.kernel_process import KernelProcess
from repl_kernel.jupyter.wire import Message

if TYPE_CHECKING:
    import zmq

_READ_AT_ONCE = 256
_LAST_MESSAGES_S = 0.05
"""How long what a kernel sent before its end may be on its way."""

_LISTENS_LIMIT_S = 3.0
"""After this somebody who listens is connected, however busy the kernel is: its messaging has a thread."""

_ASK_ONCE_MORE_S = 0.5
"""A request that comes while a kernel starts may be lost: Jupyter's own clients ask again, too."""

_ASK_AGAIN_S = 0.1
"""A kernel sends nothing to a subscriber that it has not heard of yet: it is asked until something comes."""


class KernelLink:
    """The sockets to a kernel; all but `wake` belong to one thread at a time."""

    def __init__(self, connection: Connection, process: KernelProcess | None) -> None:
        """Connect; `process` is the kernel's where it is ours, `None` where it is not."""
        import zmq

        self._process = process
        self._session = os.urandom(16).hex()
        self._codec = connection.codec(self._session)
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = zmq.Poller()
        self._monitor: zmq.Socket[Any] | None = None
        self._is_connected = self._has_ended = False
        identity = self._session.encode()
        try:
            self._sockets = {
                channel: connection.socket(self._context, channel, b"" if channel == "iopub" else identity)
                for channel in connection.ports
            }
            if process is None:
                self._monitor = self._sockets["shell"].get_monitor_socket(
                    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
                )
            for channel, socket in self._sockets.items():
                connection.connect(socket, channel)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        for socket in self._sockets.values():
            self._poller.register(socket, zmq.POLLIN)
        self._wake_fd, self._waker = sockets.socketpair()
        self._waker.setblocking(False)
        self._poller.register(self._wake_fd.fileno(), zmq.POLLIN)
        self._poller.register(self._monitor if process is None else process.exit_fd, zmq.POLLIN)
        self._received: deque[tuple[Channel, Message, bytes]] = deque()
        self.is_dead = False
        """The kernel has ended, or the connection broke, and all it sent has been received."""
        self.refused = 0
        """Messages that were none, or had a wrong signature."""
        self.gaps = GapCounter()
        self.info: Mapping[str, Any] = {}
        """What the kernel says of itself."""

    def send(
        self, channel: Channel, message_type: str, content: Mapping[str, Any], parent: bytes = b"{}"
    ) -> str:
        """Send a message; returns its id."""
        frames, message_id = self._codec.pack(message_type, content, parent)
        self._sockets[channel].send_multipart(frames)
        return message_id

    def receive(self, timeout_s: float) -> tuple[Channel, Message, bytes] | None:
        """The next message, its channel and its header's bytes; `None` where nothing came in time, or
        somebody woke us."""
        if not self._received:
            self._wait(timeout_s)
        if not self._received:
            return None
        channel, message, header = self._received.popleft()
        if channel == "iopub":
            self.gaps.take(message)
        return channel, message, header

    @property
    def is_ending(self) -> bool:
        """Whether the end is known, but what was sent before may still come."""
        return self._has_ended and not self.is_dead

    def wake(self) -> None:
        """Have `receive` return at once, from any thread."""
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # it is full of wakes, or closed

    def _wait(self, timeout_s: float) -> None:
        if self._has_ended:
            timeout_s = _LAST_MESSAGES_S
        ready = self._poller.poll(math.ceil(max(0.0, timeout_s) * 1000))
        for found, _ in ready:
            if found == self._wake_fd.fileno():
                self._wake_fd.recv(4096)
            elif self._monitor is not None and found is self._monitor:
                self._take_event(self._monitor)
            elif self._process is not None and found == self._process.exit_fd:
                self._poller.unregister(self._process.exit_fd)
                self._has_ended = True
        self.is_dead = self._has_ended and not ready
        for channel in ("iopub", "shell", "stdin", "control"):
            self._read(channel)

    def _take_event(self, monitor: zmq.Socket[Any]) -> None:
        import zmq
        from zmq.utils.monitor import parse_monitor_message

        if parse_monitor_message(monitor.recv_multipart())["event"] == zmq.EVENT_DISCONNECTED:
            self._poller.unregister(monitor)
            self._has_ended = True
        else:
            self._is_connected = True

    def _read(self, channel: Channel) -> None:
        import zmq

        socket = self._sockets[channel]
        for _ in range(_READ_AT_ONCE):
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message, header = self._codec.unpack(frames)
            except BadMessage:
                self.refused += 1
            else:
                self._received.append((channel, message, header))

    def get_ready(self, limit_s: float) -> None:
        """Wait until the kernel answers, and its output comes through; raises `KernelUnreachable`.

        A kernel that is busy with others' code answers on its control channel.
        """
        began_at = time.monotonic()
        deadline = began_at + limit_s
        asked: set[str] = set()
        has_answered = is_heard = False
        ask_at_s = 0.0
        while not (has_answered and is_heard):
            now = time.monotonic()
            if self.is_dead:
                raise KernelUnreachable("the kernel ended at its start")
            if now >= deadline:
                raise KernelUnreachable(f"no kernel answers within {limit_s:g} s")
            if self._process is None and not self._is_connected and now >= began_at + _LISTENS_LIMIT_S:
                raise KernelUnreachable("nobody listens there: it has ended")
            if now >= ask_at_s:
                asked.add(self.send("shell", "kernel_info_request", {}))
                if self._process is None:
                    asked.add(self.send("control", "kernel_info_request", {}))
                ask_at_s = now + (_ASK_AGAIN_S if has_answered else _ASK_ONCE_MORE_S)
            received = self.receive(min(deadline, ask_at_s) - now)
            if received is None:
                continue
            channel, message, _ = received
            if channel == "iopub":
                is_heard = True
            elif message.parent_id in asked:
                has_answered = True
                self.info = message.content
                ask_at_s = time.monotonic() + _ASK_AGAIN_S

    def close(self) -> None:
        """Close the sockets."""
        if self._monitor is not None:
            self._sockets["shell"].disable_monitor()
            self._monitor.close(linger=0)
        self._context.destroy(linger=0)
        self._wake_fd.close()
        self._waker.close()

    def abandon(self) -> None:
        """Close our descriptors only, in a forked child: the sockets are its parent's."""
        self._wake_fd.close()
        self._waker.close()
