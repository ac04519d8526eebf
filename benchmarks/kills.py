"""What is left of a session that was SIGKILLed: how long until no process of it lives.

a session --starts--> keeper, its copies, worker inside `sum(range(10**12))`, programs that left its group
    ^-- SIGKILL: the clock starts              and stops once all of them have ended
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

from benchmarks.command import run_alone
from benchmarks.table import markdown
from repl_kernel.orphaned_programs import WORKER_NAME
from repl_kernel.process_tree import ProcessStat, descendants, read_stat

_SESSION = """
import sys
from json_repl.session import Session
folder, isolation, copies, code = sys.argv[1:]
session = Session("worker", log_dir=folder, task_id="T-1", isolation=isolation, snapshots="manual")
def run(code):
    outcome = session.execute_code(code)
    assert outcome["success"], outcome["stderr"]
run(code)
run("import os, subprocess")
run("apart = subprocess.Popen(['setsid', 'sleep', '1000'])")
run('''
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    os.execvp('sleep', ['sleep', '1000'])
_ = os.waitpid(pid, 0)
''')
last = 512  # at its end those states are kept whose distances grow with their age: others needn't be copied
for seq in range(5, last + 1):
    if len(session.snapshots()) == int(copies):
        break
    run("x = 1")
    age = max(1, last - seq)
    if seq % max(1, (1 << age.bit_length() - 1) // 8) == 0:
        session.snapshot()
assert len(session.snapshots()) >= int(copies)
print("ready", flush=True)
session.execute_code("sum(range(10**12))")
"""

_HEAPS = {
    "small heap": ("x = 1", 1.0),
    "1 GB of numpy": ("import numpy; data = numpy.ones((1 << 30) // 8)", 3.0),
    "1 GB of small objects": ("data = [[i] for i in range((1 << 30) // 104)]", 3.0),
}
"""What the session holds, and how many seconds its end may take at most."""

_PATIENCE_S = 60.0


class NotAsMeant(Exception):
    """The session that was to be killed did not come to be what it should."""


def kill_a_session(isolation: str, copies: int, code: str) -> float:
    """Start a session that runs `code` and is copied so often, kill it amid an execution.

    Returns the time in seconds until nothing below it lived. What has ended and is not reaped yet doesn't
    count: that is for whoever adopted it. Raises `NotAsMeant`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="kills-") as folder,
        subprocess.Popen(
            [sys.executable, "-c", _SESSION, folder, isolation, str(copies), code], stdout=subprocess.PIPE
        ) as session,
    ):
        try:
            assert session.stdout
            if session.stdout.readline() != b"ready\n":
                raise NotAsMeant("the session that was to be killed failed")
            left = _processes(session.pid, copies)
        finally:
            session.kill()
        killed_at = time.perf_counter()
        _wait(lambda: not any(map(lives, left)))
        return time.perf_counter() - killed_at


def _processes(pid: int, copies: int) -> list[ProcessStat]:
    """All below that session, once its worker computes and its programs run."""

    def is_complete() -> bool:
        below = descendants(pid)
        is_computing = any((stat.name, stat.state) == (WORKER_NAME, "R") for stat in below)
        return is_computing and [stat.name for stat in below].count("sleep") == 2

    _wait(is_complete)
    below = descendants(pid)
    if len(below) < copies + 4:  # keeper, worker, two programs
        raise NotAsMeant(f"the session has {len(below)} processes, not {copies} copies and 4 more")
    return below


def _wait(is_so: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise NotAsMeant(f"not so within {_PATIENCE_S:g} s")
        time.sleep(0.002)


def lives(process: ProcessStat) -> bool:
    """Whether this very process is still there: its number could be another's by now."""
    stat = read_stat(process.pid)
    return stat is not None and stat.state not in "ZX" and stat.start_ticks == process.start_ticks


def measure(*, kills: int = 50, copies: int = 50) -> dict[str, Any]:
    """Kill so many sessions of each tier and heap; the seconds until the last of their processes ended."""
    tiers = ["process"] + (["sandbox"] if shutil.which("bwrap") else [])
    rows = []
    for isolation in tiers:
        for heap, (code, most_s) in _HEAPS.items():
            took_s = [kill_a_session(isolation, copies, code) for _ in range(kills)]
            rows.append(
                {
                    "isolation": isolation,
                    "heap": heap,
                    "kills": kills,
                    "p50_s": round(median(took_s), 3),
                    "max_s": round(max(took_s), 3),
                    "most_s": most_s,
                }
            )
    return {"copies": copies, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    header = [f"session SIGKILLed with {found['copies']} copies", "kills", "all gone p50 s", "max s"]
    rows = [
        [f"{row['isolation']}, {row['heap']}", row["kills"], row["p50_s"], row["max_s"]]
        for row in found["rows"]
    ]
    return markdown(header, rows)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    return [
        (f"all gone after SIGKILL, {row['isolation']}, {row['heap']}, max s", row["max_s"], row["most_s"])
        for row in found["rows"]
    ]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer kills, of fewer copies")


QUICK = {"kills": 1, "copies": 10}

if __name__ == "__main__":
    sys.exit(main())
