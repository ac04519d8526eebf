"""Time to put the state of a namespace with one array aside, and to have it back, beside the peers.

ours: a snapshot, a rewind      dill: dump and load of the array
ipykernel: loses it             Kishu: a cell that changes one element, and a checkout

dill and Kishu have a virtual environment of their own, since Kishu pins libraries; `make bench` makes it.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.peers import KERNEL_START_LIMIT_S
from benchmarks.table import markdown

_LIMIT_S = 300.0
_PEERS_PYTHON = os.path.join(sys.prefix, "peers", "bin", "python")  # a text is wanted
_NOT_INSTALLED = {"instead": "not installed; `make bench` does that"}
_FILL = "import numpy; data = numpy.ones({bytes} // 8)"
_HEAD = "get_ipython().user_ns['_kishu']._kishu_branch.get_head().commit_id"
_CHECKOUT = "get_ipython().user_ns['_kishu'].checkout({commit!r}, skip_notebook=True)"

_DILL = """
import dill, numpy, sys, time
data = numpy.ones(int(sys.argv[1]) // 8)
began = time.perf_counter()
with open(sys.argv[2], "wb") as file:
    dill.dump({"data": data}, file)
put_aside = time.perf_counter()
with open(sys.argv[2], "rb") as file:
    dill.load(file)
print(put_aside - began, time.perf_counter() - put_aside)
"""


def compare(sizes_bytes: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each peer and size: `checkpoint_ms`, `restore_ms`, or why there are none (`instead`)."""
    rows = []
    for size_bytes in sizes_bytes:
        for name, peer in (
            ("json-repl", _ours),
            ("dill", _dill),
            ("Kishu", _kishu),
            ("ipykernel", _ipykernel),
        ):
            rows.append({"peer": name, "bytes": size_bytes} | peer(size_bytes))
    return rows


def compare_table(rows: list[dict[str, Any]]) -> str:
    """Render the rows, in Markdown."""
    return markdown(
        ["state of one array", "MiB", "put aside, ms", "have back, ms"],
        [
            [
                row["peer"],
                row["bytes"] >> 20,
                row.get("checkpoint_ms", "–"),
                row.get("restore_ms", row.get("instead")),
            ]
            for row in rows
        ],
    )


def _ours(size_bytes: int) -> dict[str, Any]:
    from json_repl.session import Session

    with (
        tempfile.TemporaryDirectory(prefix="state-") as folder,
        Session("worker", log_dir=folder, task_id="T-1", snapshots="manual") as session,
    ):
        session.execute_code(_FILL.format(bytes=size_bytes))
        took: list[tuple[float, float]] = []
        for _ in range(5):
            seq = session.execute_code("data[0] = 2")["debug_info"]["seq"]
            began = time.perf_counter()
            session.snapshot()
            put_aside = time.perf_counter()
            session.execute_code("data[0] = 3")
            changed = time.perf_counter()
            session.rewind(seq)
            took.append((put_aside - began, time.perf_counter() - changed))
    checkpoint_s, restore_s = (sorted(values)[2] for values in zip(*took, strict=True))
    return _row(checkpoint_s, restore_s)


def _dill(size_bytes: int) -> dict[str, Any]:
    if not os.path.exists(_PEERS_PYTHON):
        return _NOT_INSTALLED
    with tempfile.TemporaryDirectory(prefix="state-") as folder:
        path = os.path.join(folder, "state")  # a text is wanted
        command = [_PEERS_PYTHON, "-c", _DILL, str(size_bytes), path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True)
    return _row(*map(float, done.stdout.split()))


def _kishu(size_bytes: int) -> dict[str, Any]:
    """As in a notebook, without a front end: each cell is a commit, a checkout is asked for in between."""
    if not os.path.exists(_PEERS_PYTHON):
        return _NOT_INSTALLED
    with tempfile.TemporaryDirectory(prefix="state-") as folder, _kishu_kernel(folder) as kernel:
        kernel.run(_FILL.format(bytes=size_bytes))
        began = time.perf_counter()
        kernel.run("data[0] = 2")
        checkpoint_s = time.perf_counter() - began
        commit = kernel.value(_HEAD)
        kernel.run("data[0] = 3")
        began = time.perf_counter()
        kernel.value(_CHECKOUT.format(commit=commit))
        restore_s = time.perf_counter() - began
        if kernel.value("float(data[0]), len(data)") != (2.0, size_bytes // 8):
            return {"instead": f"fails: {kernel.complaint[:80]}"}
    return _row(checkpoint_s, restore_s)


class _Kernel:
    """A kernel that code is run in; `complaint` is the last exception that was shown."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.complaint = "the state is another"

    def run(self, code: str) -> None:
        reply = self._client.execute_interactive(code, timeout=_LIMIT_S, output_hook=self._see)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"])

    def value(self, expression: str) -> Any:
        """What an expression gives, evaluated without being a cell; a text where it is no literal."""
        reply = self._client.execute_interactive(
            "", silent=True, user_expressions={"it": expression}, timeout=_LIMIT_S, output_hook=self._see
        )
        found = reply["content"]["user_expressions"]["it"]
        if found["status"] != "ok":
            self.complaint = f"{found['ename']}: {found['evalue']}"
            return None
        text = found["data"]["text/plain"]
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text

    def _see(self, message: dict[str, Any]) -> None:
        if message["msg_type"] == "error":
            self.complaint = f"{message['content']['ename']}: {message['content']['evalue']}"


@contextmanager
def _kishu_kernel(folder: str) -> Iterator[_Kernel]:
    from jupyter_client.manager import KernelManager

    notebook = os.path.join(folder, "state.ipynb")  # texts are wanted
    with open(notebook, "w", encoding="utf-8") as file:
        json.dump({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, file)
    manager = KernelManager(kernel_name="python3", connection_file=os.path.join(folder, "kernel-1.json"))
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv = [_PEERS_PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # Its own test mode: else a checkout waits 5 s for a front end, which isn't there, to save the notebook.
    environment = os.environ | {"HOME": folder, "ENV_KISHU_TEST_MODE": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    manager.start_kernel(cwd=folder, env=environment, **quiet)
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=KERNEL_START_LIMIT_S)
        kernel = _Kernel(client)
        kernel.run(f"from kishu import init_kishu; init_kishu({notebook!r})")
        kernel.run("import numpy")
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _ipykernel(size_bytes: int) -> dict[str, Any]:
    """A kernel that dies is started anew: how long until it answers, without the state."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)
        client.execute(_FILL.format(bytes=size_bytes), reply=True, timeout=KERNEL_START_LIMIT_S)
        manager.kill_kernel() if hasattr(manager, "kill_kernel") else manager.signal_kernel(9)
        began = time.perf_counter()
        manager.restart_kernel(now=True)
        client.stop_channels()
        client = manager.blocking_client()
        client.start_channels(hb=False)
        reply = client.execute("data", reply=True, timeout=KERNEL_START_LIMIT_S)
        took_s = time.perf_counter() - began
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    lost = reply["content"]["status"] == "error"
    return {"instead": f"{'loses it' if lost else 'has it'}; answers anew after {took_s * 1e3:,.0f}"}


def _row(checkpoint_s: float, restore_s: float) -> dict[str, Any]:
    return {"checkpoint_ms": round(checkpoint_s * 1e3, 2), "restore_ms": round(restore_s * 1e3, 2)}
