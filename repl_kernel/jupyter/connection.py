"""Where a kernel listens, as its connection file says, and the sockets to it.

connection file --> Connection --> shell, control, stdin (DEALER), iopub (SUB), each over tcp or ipc, and
encrypted where the file has keys for it
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from repl_kernel.errors import KernelUnreachable
from repl_kernel.jupyter.wire import MAX_MESSAGE_BYTES, MessageCodec

if TYPE_CHECKING:
    import zmq

Channel = Literal["shell", "control", "stdin", "iopub"]

_CHANNELS: tuple[Channel, ...] = ("shell", "control", "stdin", "iopub")
_RECONNECT_MS = 20
"""A kernel that starts is there the moment it listens; trying costs nothing on one machine."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A kernel's addresses and keys; `curve_publickey` and `curve_secretkey` are both `None` where nothing
    is encrypted."""

    path: str
    transport: str
    ip: str
    ports: dict[Channel, int]
    key: bytes = field(repr=False)
    signature_scheme: str
    kernel_name: str
    curve_publickey: bytes | None
    curve_secretkey: bytes | None = field(repr=False)

    def codec(self, session: str) -> MessageCodec:
        """What packs and unpacks the messages of this connection."""
        return MessageCodec(self.key, self.signature_scheme, session)

    def socket(self, context: zmq.Context[Any], channel: Channel, identity: bytes = b"") -> zmq.Socket[Any]:
        """A socket for a channel, which drops nothing on our side; `connect` it.

        Its system buffer is left to the system: with a large fixed one a kernel went on dropping messages for
        seconds after we had stood still, for want of news that there is room again.
        """
        import zmq

        socket: zmq.Socket[Any] = context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
        socket.linger = 0
        socket.rcvhwm = socket.sndhwm = 0
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.reconnect_ivl = _RECONNECT_MS
        if identity:
            socket.identity = identity
        if self.curve_publickey is not None:
            socket.curve_serverkey = self.curve_publickey
            socket.curve_publickey = self.curve_publickey
            socket.curve_secretkey = self.curve_secretkey
        if channel == "iopub":
            socket.subscribe(b"")
        return socket

    def connect(self, socket: zmq.Socket[Any], channel: Channel) -> None:
        """Connect a channel's socket, as soon as somebody listens there; raises `KernelUnreachable`."""
        import zmq

        try:
            socket.connect(self._address(channel))
        except zmq.ZMQError as exc:
            raise KernelUnreachable(f"{self.path} names no address that exists: {exc.strerror}") from exc

    def _address(self, channel: Channel) -> str:
        separator = ":" if self.transport == "tcp" else "-"
        return f"{self.transport}://{self.ip}{separator}{self.ports[channel]}"


def read_connection_file(path: str) -> Connection:
    """What a connection file says; raises `KernelUnreachable` where it can't be read, or is none."""
    try:
        with open(path, "rb") as file:
            info = json.loads(file.read())
    except OSError as exc:
        raise KernelUnreachable(f"the connection file {path} can't be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise KernelUnreachable(f"{path} is no connection file: it is not JSON") from exc
    try:
        return _connection(os.path.abspath(path), info)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise KernelUnreachable(f"{path} is no connection file of a kernel: {exc!r}") from exc


def _connection(path: str, info: dict[str, Any]) -> Connection:
    public, secret = info.get("curve_publickey"), info.get("curve_secretkey")
    if (public is None) != (secret is None):
        raise KeyError("curve_publickey" if public is None else "curve_secretkey")
    connection = Connection(
        path=path,
        transport=_one_of(info.get("transport", "tcp"), "tcp", "ipc"),
        ip=str(info["ip"]),
        ports={channel: int(info[f"{channel}_port"]) for channel in _CHANNELS},
        key=info["key"].encode(),
        signature_scheme=info.get("signature_scheme") or "hmac-sha256",
        kernel_name=str(info.get("kernel_name") or ""),
        curve_publickey=None if public is None else public.encode(),
        curve_secretkey=None if secret is None else secret.encode(),
    )
    connection.codec("")  # raises for a scheme that there isn't
    return connection


def _one_of(value: str, *known: str) -> str:
    if value not in known:
        raise ValueError(f"transport {value!r}")
    return value
