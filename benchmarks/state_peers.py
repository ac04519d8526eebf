"""Time to put the state of a namespace with one array aside, and to have it back, beside the peers.

ours: a snapshot, a rewind | dill: dump and load of the array | ipykernel: loses it | Kishu: where it installs
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import KERNEL_START_LIMIT_S
from benchmarks.table import markdown

_LIMIT_S = 300.0

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
        session.execute_code(f"import numpy; data = numpy.ones({size_bytes} // 8)")
        took: list[tuple[float, float]] = []
        for _ in range(5):
            seq = session.execute_code("x = 1")["debug_info"]["seq"]
            began = time.perf_counter()
            session.snapshot()
            put_aside = time.perf_counter()
            session.execute_code("x = 2")
            changed = time.perf_counter()
            session.rewind(seq)
            took.append((put_aside - began, time.perf_counter() - changed))
    checkpoint_s, restore_s = (sorted(values)[2] for values in zip(*took, strict=True))
    return _row(checkpoint_s, restore_s)


def _dill(size_bytes: int) -> dict[str, Any]:
    if importlib.util.find_spec("dill") is None:
        return {"instead": "not installed here"}
    with tempfile.TemporaryDirectory(prefix="state-") as folder:
        command = [
            sys.executable,
            "-c",
            _DILL,
            str(size_bytes),
            os.path.join(folder, "state"),
        ]  # a text is wanted
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True)
    return _row(*map(float, done.stdout.split()))


def _kishu(_size_bytes: int) -> dict[str, Any]:
    if importlib.util.find_spec("kishu") is None:
        return {"instead": "not installed here"}
    return {"instead": "not measured by this program"}


def _ipykernel(size_bytes: int) -> dict[str, Any]:
    """A kernel that dies is started anew: how long until it answers, without the state."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)
        client.execute(
            f"import numpy; data = numpy.ones({size_bytes} // 8)", reply=True, timeout=KERNEL_START_LIMIT_S
        )
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
