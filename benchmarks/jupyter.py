"""What a cell costs on the recorded kernel, beside stock ipykernel: the same cells on both, in turn.

for each cell: execute --> execute_reply, and idle on IOPub --> the clock stops; the next kernel
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.command import run_alone
from benchmarks.peers import KERNEL_START_LIMIT_S
from benchmarks.table import markdown

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

QUICK = {"rounds": 20}

_STOCK, _AGAIN, _RECORDED = "ipykernel", "ipykernel again", "recorded"
_MODULES = {_STOCK: "ipykernel_launcher", _AGAIN: "ipykernel_launcher", _RECORDED: "json_repl.jupyter"}

_CELLS = {
    "assignment": "x = {number}",
    "expression": "x + 1",
    "print": "print(x)",
    "function": "def f(value):\n    return value + {number}\nnumbers = [f(i) for i in range(100)]",
    "mutation": "numbers.append(x)",
    "ten flushed lines": "for i in range(10):\n    print(i, flush=True)",
}
"""Each kind is measured by itself: they differ by more than the kernels do."""

_WARM_UP = 5
"""Rounds that aren't counted: the first cells import what later ones find loaded."""

_BAR = 1.10


def measure(*, rounds: int = 100) -> dict[str, Any]:
    """Return the median by kind of cell and kernel, in µs, and each kernel's ratio to stock ipykernel."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jupyter-"))
        clients = {name: stack.enter_context(_kernel(name, folder)) for name in _MODULES}
        took_ns: dict[tuple[str, str], list[int]] = {(kind, name): [] for kind in _CELLS for name in clients}
        names = list(clients)
        for number in range(_WARM_UP + rounds):
            for kind, code in _CELLS.items():
                for name in names:
                    took = _round_trip(clients[name], code.format(number=number))
                    if number >= _WARM_UP:
                        took_ns[kind, name].append(took)
            names = names[1:] + names[:1]  # whoever comes after whom
    p50_us = {kind: {name: median(took_ns[kind, name]) / 1e3 for name in _MODULES} for kind in _CELLS}
    return {
        "cells": rounds * len(_CELLS),
        "p50_us": p50_us,
        "ratio": {name: _ratio(took_ns, name) for name in (_AGAIN, _RECORDED)},
    }


def _ratio(took_ns: dict[tuple[str, str], list[int]], name: str) -> float:
    """The median over all cells of what a cell took, against the same cell on stock ipykernel just then."""
    pairs = (
        (ours, stock)
        for kind in _CELLS
        for ours, stock in zip(took_ns[kind, name], took_ns[kind, _STOCK], strict=True)
    )
    return median(ours / stock for ours, stock in pairs)


@contextmanager
def _kernel(name: str, folder: str) -> Iterator[BlockingKernelClient]:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    kernels = os.path.join(folder, name.replace(" ", "-"))
    spec_folder = os.path.join(kernels, "measured")
    os.makedirs(spec_folder)
    argv = [sys.executable, "-m", _MODULES[name], "-f", "{connection_file}"]
    with open(os.path.join(spec_folder, "kernel.json"), "w", encoding="utf-8") as file:
        json.dump({"argv": argv, "display_name": name, "language": "python"}, file)
    specs = KernelSpecManager(kernel_dirs=[kernels], ensure_native_kernel=False)
    manager = KernelManager(kernel_name="measured", kernel_spec_manager=specs)
    environment = {**os.environ, "TASK_LOG_DIR": os.path.join(folder, "logs"), "IPYTHONDIR": kernels}
    manager.start_kernel(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)
        client.wait_for_ready(timeout=KERNEL_START_LIMIT_S)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _round_trip(client: BlockingKernelClient, code: str) -> int:
    began_ns = time.perf_counter_ns()
    msg_id = client.execute(code)
    reply = None
    while reply is None or reply["parent_header"]["msg_id"] != msg_id:  # others answer the start's questions
        reply = client.get_shell_msg(timeout=KERNEL_START_LIMIT_S)
    while not _is_idle(client.get_iopub_msg(timeout=KERNEL_START_LIMIT_S), msg_id):
        pass
    took_ns = time.perf_counter_ns() - began_ns
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"{code!r} failed")
    return took_ns


def _is_idle(message: dict[str, Any], msg_id: str) -> bool:
    is_status = message["msg_type"] == "status" and message["parent_header"].get("msg_id") == msg_id
    return bool(is_status and message["content"]["execution_state"] == "idle")


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    rows = [
        [kind, *(round(row[name]) for name in _MODULES), round(row[_RECORDED] / row[_STOCK], 3)]
        for kind, row in found["p50_us"].items()
    ]
    ratios = found["ratio"]
    rows.append(
        [f"all {found['cells']}, × ipykernel", 1.0, round(ratios[_AGAIN], 3), round(ratios[_RECORDED], 3), ""]
    )
    return markdown(["a cell, p50 µs", *_MODULES, "×"], rows)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    return [("a cell, recorded kernel, × ipykernel", found["ratio"][_RECORDED], _BAR)]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer cells")


if __name__ == "__main__":
    sys.exit(main())
