"""An isolated kernel as front ends start it, and a client that gathers all that comes of a cell."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any
from unittest import mock

from jupyter_client.manager import KernelManager

KERNEL_NAME = "isolated_in_test"
PATIENCE_S = 60.0
"""After this an answer that must come is taken for lost."""


@contextmanager
def registered(folder: Path, log_dir: Path, **more: str) -> Iterator[None]:
    """While the kernel can be found by name; `more` are variables for it."""
    spec = folder / "kernels" / KERNEL_NAME
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-m", "json_repl.jupyter", "-f", "{connection_file}", "--isolated"],
                "display_name": KERNEL_NAME,
                "language": "python",
            }
        )
    )
    ours = ("FLOW_", "TASK_LOG", "JPY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {
        "JUPYTER_PATH": str(folder),
        "TASK_LOG_DIR": str(log_dir),
        "FLOW_PLAN_ID": "P-1",
        "FLOW_TASK_ID": "T-7",
        "FLOW_TASK_NAME": "kernel",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLCONFIGDIR": str(folder / "mpl"),
        **more,
    }
    with mock.patch.dict(os.environ, environment, clear=True):
        yield


@dataclass(kw_only=True)
class Cell:
    """What came of one cell."""

    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [content for each, content in self.messages if each == kind]

    def stream(self, name: str) -> str:
        return "".join(content["text"] for content in self.of("stream") if content["name"] == name)

    @property
    def shown(self) -> list[str]:
        """The types of what front ends show, in order."""
        return [kind for kind, _ in self.messages if kind not in ("status", "execute_input")]


class IsolatedKernelHost:
    """One kernel process and its client."""

    def __init__(self) -> None:
        self._sockets = tempfile.mkdtemp(prefix="k-")  # no port, which could be somebody else's by then
        self.manager = KernelManager(kernel_name=KERNEL_NAME, transport="ipc", ip=f"{self._sockets}/s")
        self.manager.shutdown_wait_time = PATIENCE_S  # after half of it, it is killed
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE_S)

    @property
    def pid(self) -> int:
        provisioner: Any = self.manager.provisioner
        return int(provisioner.pid)

    def run(
        self,
        code: str,
        *,
        answers: Sequence[str] | None = None,
        on_message: Callable[[str, dict[str, Any]], object] | None = None,
        **options: Any,
    ) -> Cell:
        """Run a cell to its end; `answers` are for `input()`, `None` where it may not ask."""
        msg_id = self.client.execute(code, allow_stdin=answers is not None, **options)
        return self.gather(msg_id, answers, on_message)

    def gather(
        self,
        msg_id: str,
        answers: Sequence[str] | None = None,
        on_message: Callable[[str, dict[str, Any]], object] | None = None,
    ) -> Cell:
        cell, pending = Cell(), list(answers or ())
        deadline = time.monotonic() + PATIENCE_S
        is_idle = False
        while not (cell.reply and is_idle):
            assert time.monotonic() < deadline, f"no end of the cell; so far {cell}"
            if not is_idle:  # what comes then is of the next cell, if that was sent already
                is_idle = self._take_shown(msg_id, cell, on_message)
            if not cell.reply and (is_idle or self.client.shell_channel.msg_ready()):
                message = self.client.get_shell_msg(timeout=PATIENCE_S)
                if message["parent_header"].get("msg_id") == msg_id:
                    cell.reply = message["content"]
            if answers is not None and self.client.stdin_channel.msg_ready():
                cell.prompts.append(self.client.get_stdin_msg(timeout=PATIENCE_S)["content"])
                if on_message is not None:
                    on_message("input_request", cell.prompts[-1])
                if pending:
                    self.client.input(pending.pop(0))
        return cell

    def _take_shown(
        self, msg_id: str, cell: Cell, on_message: Callable[[str, dict[str, Any]], object] | None
    ) -> bool:
        """Take what the kernel publishes next, if that is soon; returns whether it was that all is."""
        try:
            message = self.client.get_iopub_msg(timeout=0.01)
        except Empty:
            return False
        if message["parent_header"].get("msg_id") != msg_id:
            return False
        kind, content = message["msg_type"], message["content"]
        cell.messages.append((kind, content))
        if on_message is not None:
            on_message(kind, content)
        return bool(kind == "status" and content["execution_state"] == "idle")

    def sync(self) -> None:
        """Wait until the kernel has received all that was sent before: it answers while a cell runs."""
        session, control = self.client.session, self.client.control_channel
        request = session.msg("kernel_info_request", {})
        session.send(control.socket, request)
        while control.get_msg(timeout=PATIENCE_S)["parent_header"]["msg_id"] != request["header"]["msg_id"]:
            pass  # of an interrupt before

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()
        shutil.rmtree(self._sockets)


def log_lines(log_dir: Path) -> list[dict[str, Any]]:
    """The lines of the task's log."""
    path = log_dir / "P-1" / "7.kernel.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
