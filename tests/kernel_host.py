"""A real kernel process under a real kernel manager, for tests that talk to it as a front end does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
"""After this a reply that must come is taken for lost."""

RECORDED = (sys.executable, "-m", "json_repl.jupyter", "-f", "{connection_file}")
STOCK = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")


@cache
def list_fonts() -> None:
    """Have Matplotlib list this machine's fonts, once and for all.

    The first import of it on a machine does so: it imports more for that, and says so where it takes 5 s.
    """
    subprocess.run([sys.executable, "-c", "import matplotlib.pyplot"], check=True, capture_output=True)


def register(folder: Path, name: str, argv: Sequence[str] = RECORDED, display_name: str = "") -> Path:
    """Write a kernelspec below a folder for JUPYTER_PATH; returns the folder of its kernels."""
    spec = folder / "kernels" / name
    spec.mkdir(parents=True)
    described = {"argv": list(argv), "display_name": display_name or name, "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(described), encoding="utf-8")
    return folder / "kernels"


@dataclass
class Ran:
    """What a front end saw of one request: the reply's content, and messages of IOPub by type."""

    msg_id: str
    reply: dict[str, Any]
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def contents(self, msg_type: str) -> list[dict[str, Any]]:
        return [content for kind, content in self.seen if kind == msg_type]

    def text(self, name: str = "stdout") -> str:
        return "".join(content["text"] for content in self.contents("stream") if content["name"] == name)


class Kernel:
    """One kernel, and one client of it."""

    def __init__(self, manager: Any, client: Any, log_root: Path) -> None:
        self.manager = manager
        self.client = client
        self.log_root = log_root

    def run(self, code: str, **content: Any) -> Ran:
        """Run a cell, and wait for its reply and for idle."""
        return self.wait_for(self.client.execute(code, **content))

    def wait_for_text(self, msg_id: str, text: str) -> None:
        """Wait until a running cell has printed this, in one message or in several."""
        printed = ""
        while text not in printed:
            message = self.client.get_iopub_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") == msg_id and message["msg_type"] == "stream":
                printed += message["content"]["text"]

    def wait_for(self, msg_id: str) -> Ran:
        ran = Ran(msg_id, self.reply_of(msg_id))
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return ran
            ran.seen.append((message["msg_type"], message["content"]))

    def reply_of(self, msg_id: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") == msg_id:
                content: dict[str, Any] = message["content"]
                return content

    def send(self, msg_type: str, content: Any, **header: Any) -> str:
        """Send a message on the shell channel as it is, and return its id."""
        message = self.client.session.msg(msg_type, {})
        message["content"] = content
        message["header"].update(header)
        self.client.shell_channel.send(message)
        return str(message["msg_id"])

    def control(self, msg_type: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message on the control channel, and return the content of its reply."""
        message = self.client.session.msg(msg_type, dict(content))
        self.client.control_channel.send(message)
        while True:
            reply = self.client.get_control_msg(timeout=PATIENCE_S)
            if reply["parent_header"].get("msg_id") == message["msg_id"]:
                answer: dict[str, Any] = reply["content"]
                return answer

    def lines(self) -> list[dict[str, Any]]:
        """All lines in all logs of this kernel's root, in the order of each file."""
        return [
            json.loads(line)
            for path in sorted(self.log_root.glob("*/*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]

    def line_of(self, ran: Ran) -> dict[str, Any]:
        (line,) = [line for line in self.lines() if line["tags"]["msg_id"] == ran.msg_id]
        return line


@contextmanager
def running_kernel(
    folder: Path, argv: Sequence[str] = RECORDED, *, wait: bool = True, **environment: str
) -> Iterator[Kernel]:
    """A started kernel and its client; logs, profile and kernelspec are below `folder`."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    kernels = register(folder / "jupyter", "tested", argv)
    specs = KernelSpecManager(kernel_dirs=[str(kernels)], ensure_native_kernel=False)
    sockets = tempfile.mkdtemp(prefix="k-")  # their paths must be short; and no port can be somebody else's
    manager = KernelManager(
        kernel_name="tested",
        kernel_spec_manager=specs,
        transport="ipc",
        ip=f"{sockets}/s",
        shutdown_wait_time=PATIENCE_S,  # one that is told to end is not killed because it is slow
    )
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLOW_", "TASK_LOG", "JPY_", "PYTEST_"))
    }
    env |= {
        "TASK_LOG_DIR": str(folder / "logs"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        **environment,
    }
    with (folder / "kernel.stderr").open("wb") as stderr:
        manager.start_kernel(env=env, stdout=stderr, stderr=stderr)
    client = manager.blocking_client()
    client.start_channels()
    try:
        if wait:
            client.wait_for_ready(timeout=PATIENCE_S)
        yield Kernel(manager, client, folder / "logs")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        manager.context.destroy(linger=0)
        shutil.rmtree(sockets)
