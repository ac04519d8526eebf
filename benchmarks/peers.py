"""The ways to run `x = 1`, measured side by side; each is opened once, then called again and again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

Call = Callable[[], object]

_ECHO = """
import socket, sys
peer = socket.socket(fileno=int(sys.argv[1]))
while message := peer.recv(65536):
    peer.sendall(message)
"""

_MESSAGE = b'{"code":"x = 1","id":1,"session":"0123456789abcdef"}'
"""About what a request weighs."""

KERNEL_START_LIMIT_S = 60.0


@contextmanager
def echo() -> Iterator[Call]:
    """A bare socketpair between two Python processes: the floor of any worker."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", _ECHO, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

        def call() -> None:
            ours.sendall(_MESSAGE)
            ours.recv(65536)

        yield call
        ours.close()
        process.wait()


@contextmanager
def bare() -> Iterator[Call]:
    """Compile and exec in this process, and nothing else."""
    namespace: dict[str, object] = {}
    yield lambda: exec(compile("x = 1", "<bare>", "exec"), namespace)


@contextmanager
def recorded(route: Any, log_dir: str, code: str = "x = 1") -> Iterator[Call]:
    """A session with all defaults on."""
    from json_repl.session import Session

    with Session(route=route, log_dir=log_dir, task_id="T-1", task_name=route) as session:

        def call() -> None:
            if not session.execute_code(code)["success"]:
                raise RuntimeError(f"{code!r} failed on the {route} route")

        yield call


@contextmanager
def ipykernel_client() -> Iterator[BlockingKernelClient]:
    """A started ipykernel and its blocking client, ready once the first reply is there."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)  # no thread of the client's beside the measurement
        client.execute("x = 1", reply=True, timeout=KERNEL_START_LIMIT_S)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextmanager
def ipykernel() -> Iterator[Call]:
    """What most people use: jupyter_client's `execute_interactive`."""
    with ipykernel_client() as client:

        def call() -> None:
            reply = client.execute_interactive("x = 1", timeout=60, output_hook=lambda message: None)
            if reply["content"]["status"] != "ok":
                raise RuntimeError("ipykernel failed")

        yield call


def open_all(stack: ExitStack, log_dir: str) -> dict[str, Call]:
    """Open every peer; the echo twice, to show how far two runs of the same differ."""
    peers = {
        "socketpair echo": echo(),
        "socketpair echo again": echo(),
        "bare compile + exec": bare(),
        "local": recorded("local", os.path.join(log_dir, "a")),  # a text is wanted
        "worker": recorded("worker", os.path.join(log_dir, "b")),
        "worker, print": recorded("worker", os.path.join(log_dir, "c"), "print('hi')"),
        "ipykernel": ipykernel(),
    }
    return {name: stack.enter_context(peer) for name, peer in peers.items()}
