"""How forked children of a kernel print: through a socket to its IOPub thread, by ipykernel a TCP port.

Where the kernel's transport is ipc that port is the only one that other users could reach.
"""

from __future__ import annotations

from typing import Any

_LINGER_MS = 3000
"""As ipykernel's: how long a child waits until what it has printed is taken."""


def move_child_pipe(iopub_thread: Any, path: str) -> None:
    """Have the children of this kernel reach it by a socket at `path`; the TCP port is closed.

    To be called before user code runs; `iopub_thread` is ipykernel's, whose pipe is its own affair: where it
    looks otherwise than in ipykernel 7 nothing is changed.
    """
    import zmq

    pipe = getattr(iopub_thread, "_pipe_in", None)
    port = getattr(iopub_thread, "_pipe_port", None)
    if pipe is None or port is None:
        return

    def rebind() -> None:
        pipe.socket.bind(f"ipc://{path}")
        pipe.socket.unbind(f"tcp://127.0.0.1:{port}")

    def connect() -> tuple[Any, Any]:
        context: Any = zmq.Context()
        socket = context.socket(zmq.PUSH)
        socket.linger = _LINGER_MS
        socket.connect(f"ipc://{path}")
        return context, socket

    iopub_thread._setup_pipe_out = connect
    iopub_thread.io_loop.add_callback(rebind)  # a socket belongs to one thread
