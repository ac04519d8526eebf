"""From a kernel manager's start to the first reply of a kernel: stock, ours, ours from a spare; interleaved.

start_kernel() --> channels --> execute_request `1` --> execute_reply --> the clock stops --> the kernel ends

A client that asks `wait_for_ready()` first, as most do, gets 200 ms on top, in all rows alike.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from benchmarks.command import run_alone
from benchmarks.table import markdown

QUICK = {"rounds": 3}

_LIMIT_S = 60.0
_WARM_NAMES = ("json_repl", "json_repl_isolated")
_STOCK = "ipykernel"
_WARM_BAR_MS = 60.0


def measure(*, rounds: int = 21) -> dict[str, Any]:
    """Return for each kind of start the median and the best, in ms; a round that isn't counted warms up."""
    took_ms: dict[str, list[float]] = {}
    with _own_kernels():
        for number in range(rounds + 1):
            found = {}
            for name in _WARM_NAMES:
                if number:
                    _wait_for_spare()
                # A start that doesn't take the spare, and then one that does.
                if name == "json_repl":
                    found[_STOCK] = _start("python3")
                found[f"{name}, cold"] = _start(f"cold-{name}")
                found[f"{name}, warm"] = _start(name)
            for kind, value in found.items():
                if number:
                    took_ms.setdefault(kind, []).append(value)
    return {
        kind: {"p50_ms": round(median(values), 1), "best_ms": round(min(values), 1), "starts": len(values)}
        for kind, values in took_ms.items()
    }


@contextmanager
def _own_kernels() -> Iterator[None]:
    """Kernel specifications as they come with the wheel, and beside them such as have no provisioner."""
    import json_repl
    from repl_kernel.jupyter.provisioner import SPARE_MODULE
    from repl_kernel.jupyter.spare_pool import pool_of_process

    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="jupyter-start-") as folder:
        shipped = os.path.join(os.path.dirname(json_repl.__file__), "data", "kernels")
        for name in _WARM_NAMES:
            shutil.copytree(os.path.join(shipped, name), os.path.join(folder, "kernels", name))
            with open(os.path.join(shipped, name, "kernel.json"), encoding="utf-8") as file:
                spec = json.load(file)
            del spec["metadata"]["kernel_provisioner"]
            os.mkdir(os.path.join(folder, "kernels", f"cold-{name}"))
            with open(os.path.join(folder, "kernels", f"cold-{name}", "kernel.json"), "w") as file:
                json.dump(spec, file)
        os.environ.update(JUPYTER_PATH=folder, TASK_LOG_DIR=os.path.join(folder, "logs"))
        try:
            yield
        finally:
            pool_of_process(SPARE_MODULE).close()
            os.environ.clear()
            os.environ.update(before)


def _wait_for_spare() -> None:
    from repl_kernel.jupyter.provisioner import SPARE_MODULE
    from repl_kernel.jupyter.spare_pool import pool_of_process

    pool, deadline = pool_of_process(SPARE_MODULE), time.monotonic() + _LIMIT_S
    while not pool.is_ready:
        if time.monotonic() > deadline:
            raise RuntimeError("no spare kernel was ever ready")
        time.sleep(0.05)


def _start(kernel_name: str) -> float:
    from jupyter_client.manager import KernelManager

    began_s = time.perf_counter()
    manager = KernelManager(kernel_name=kernel_name)
    manager.start_kernel(stderr=None if kernel_name in _WARM_NAMES else subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels(hb=False)
        asked = client.execute("1")
        while True:
            reply = client.get_shell_msg(timeout=_LIMIT_S)
            if reply["parent_header"].get("msg_id") == asked:
                break
        took_ms = (time.perf_counter() - began_s) * 1e3
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{kernel_name} gave a wrong reply: {reply['content']!r}")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return took_ms


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    base = found[_STOCK]["p50_ms"]
    rows = [
        [kind, one["p50_ms"], one["best_ms"], round(one["p50_ms"] / base, 2)] for kind, one in found.items()
    ]
    return markdown(["start to first reply", "p50 ms", "best ms", "× ipykernel"], rows)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    return [
        (f"{name} from a spare, first reply, p50 ms", found[f"{name}, warm"]["p50_ms"], _WARM_BAR_MS)
        for name in _WARM_NAMES
    ]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer starts")


if __name__ == "__main__":
    sys.exit(main())
