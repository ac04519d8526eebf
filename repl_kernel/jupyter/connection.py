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
_CURVE_KEYS = ("curve_publickey", "curve_secretkey")
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
        """A socket for a channel, which drops nothing on our side; `connect` it. Raises `KernelUnreachable`.

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
            try:
                socket.curve_serverkey = self.curve_publickey
                socket.curve_publickey = self.curve_publickey
                socket.curve_secretkey = self.curve_secretkey
            except zmq.ZMQError as exc:
                socket.close()
                raise KernelUnreachable(f"{self.path} has CURVE keys that are none") from exc
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
    if os.path.exists(path) and not os.path.isfile(path):
        raise KernelUnreachable(f"{path} is no connection file: it is no regular file")
    try:
        with open(path, "rb") as file:
            info = json.loads(file.read())
    except OSError as exc:
        raise KernelUnreachable(f"the connection file {path} can't be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise KernelUnreachable(f"{path} is no connection file: it is not JSON") from exc
    try:
        return _connection(os.path.abspath(path), info)
    except (TypeError, ValueError) as exc:
        raise KernelUnreachable(f"{path} is no connection file of a kernel: {exc}") from exc


def _connection(path: str, info: object) -> Connection:
    """What the file's JSON says; raises `TypeError` or `ValueError` for what makes no sense."""
    if not isinstance(info, dict):
        raise TypeError("it is no JSON object")
    curve = [info.get(name) for name in _CURVE_KEYS]
    if curve.count(None) == 1:
        raise ValueError("it has only one of " + " and ".join(_CURVE_KEYS))
    public, secret = (None, None) if None in curve else (_text(info, name).encode() for name in _CURVE_KEYS)
    scheme = info.get("signature_scheme")
    connection = Connection(
        path=path,
        transport=_one_of(info.get("transport", "tcp"), "tcp", "ipc"),
        ip=_text(info, "ip"),
        ports={channel: _port(info, f"{channel}_port") for channel in _CHANNELS},
        key=_text(info, "key").encode(),
        signature_scheme="hmac-sha256" if scheme is None else _text(info, "signature_scheme"),
        kernel_name=str(info.get("kernel_name") or ""),
        curve_publickey=public,
        curve_secretkey=secret,
    )
    connection.codec("")  # raises for a scheme that there isn't
    return connection


def _text(info: dict[str, Any], name: str) -> str:
    value = info.get(name)
    if not isinstance(value, str):
        raise TypeError(f"its {name} must be a text")
    value.encode()  # raises for lone surrogates, which no address and no key has
    return value


def _port(info: dict[str, Any], name: str) -> int:
    value = info.get(name)
    if not isinstance(value, int) or not 0 < value < 1 << 16:
        raise ValueError(f"its {name} must be a port number, not {value!r}")
    return value


def _one_of(value: object, *known: str) -> str:
    if value not in known:
        raise ValueError(f"its transport is {value!r}, not {' or '.join(known)}")
    return str(value)
