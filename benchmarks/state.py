"""What keeping states costs, and what getting them back takes.

sessions with and without snapshots --calls in turn--> p50, p99 and their ratios
a session --killed, rewound, branched, speculated--> how long until the outcome, and until the next answer
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.command import run_alone
from benchmarks.forking import call_in_fork
from benchmarks.state_peers import compare, compare_table
from benchmarks.table import markdown
from json_repl.session import Session
from repl_kernel.process_tree import descendants, read_stat

_LIMIT_S = 1800.0
_GIB = 1 << 30
_NUMPY = "import numpy; data = numpy.ones({bytes} // 8)"
_OBJECTS = "data = [[i] for i in range({bytes} // 104)]"
"""A list of one small number each, 104 bytes with the number and its place in the outer list."""

_DEATHS = {
    "SIGSEGV": "import ctypes; ctypes.string_at(0)",
    "os._exit": "import os; os._exit(1)",
    "os.abort": "import os; os.abort()",
    "SIGKILL": "import os; os.kill(os.getpid(), 9)",
}
_FRAGILE = """
import sqlite3, threading
numbers = iter(range(10**9)); numbers = (n for n in numbers)
lock = threading.Lock(); _ = lock.acquire()
database = sqlite3.connect(":memory:"); _ = database.execute("create table t (x)")
_ = database.execute("insert into t values (42)")
"""
_STATE = "next(numbers), lock.locked(), database.execute('select x from t').fetchone()[0], float(data[-1])"


def measure(
    *, calls: int = 500, deaths: int = 50, repeats: int = 10, size_bytes: int = _GIB
) -> dict[str, Any]:
    """Measure all of it, each in a process of its own."""
    parts: dict[str, Callable[[], Any]] = {
        "30 MB of numpy": lambda: _interleaved(_NUMPY, 30 << 20, 0.02, calls),
        "numpy": lambda: _interleaved(_NUMPY, size_bytes, 0.02, calls),
        "small objects": lambda: _interleaved(_OBJECTS, size_bytes, 0.1, max(20, calls // 4)),
    }
    return {
        "size_bytes": size_bytes,
        "calls": {name: call_in_fork(part, _LIMIT_S) for name, part in parts.items()},
        "back to back": call_in_fork(lambda: _back_to_back(max(4, calls // 25)), _LIMIT_S),
        "deaths": call_in_fork(lambda: _deaths(deaths, size_bytes), _LIMIT_S),
        "snapshots": call_in_fork(lambda: _snapshots(repeats, size_bytes), _LIMIT_S),
        "timeline": call_in_fork(lambda: _timeline(repeats, size_bytes), _LIMIT_S),
        "sleeping": call_in_fork(lambda: _sleeping(size_bytes), _LIMIT_S),
        "peers": call_in_fork(lambda: compare((10 << 20, 100 << 20, size_bytes)), _LIMIT_S),
    }


@contextmanager
def _session(snapshots: Any = "auto") -> Iterator[Session]:
    with (
        tempfile.TemporaryDirectory(prefix="state-") as folder,
        Session("worker", log_dir=folder, task_id="T-1", snapshots=snapshots) as session,
    ):
        yield session


def _run(session: Session, code: str) -> str | None:
    outcome = session.execute_code(code)
    if not outcome["success"]:
        raise RuntimeError(outcome["stderr"])
    result = outcome["result"]
    return None if result is None else str(result["text/plain"])


def _interleaved(fill: str, size_bytes: int, pause_s: float, calls: int) -> dict[str, Any]:
    """Small calls, apart, to sessions that differ in `snapshots` only; two of them in nothing."""
    with ExitStack() as stack:
        policies = {"auto": "auto", "off": "off", "off again": "off"}
        sessions = {name: stack.enter_context(_session(policy)) for name, policy in policies.items()}
        for session in sessions.values():
            _run(session, fill.format(bytes=size_bytes))
            for _ in range(20):
                _run(session, "x = 1")
        took_ns: dict[str, list[int]] = {name: [] for name in sessions}
        for names in _rounds(list(sessions), calls):
            for name in names:
                time.sleep(pause_s)
                began_ns = time.perf_counter_ns()
                sessions[name].execute_code("x = 1")
                took_ns[name].append(time.perf_counter_ns() - began_ns)
        found = {name: _quantiles(values) for name, values in took_ns.items()}
        time.sleep(0.1)
        newest = len(took_ns["auto"]) + 21  # the one that fills, and 20 before the calls
        kept = [one["seq"] for one in sessions["auto"].snapshots() if int(str(one["seq"])) > newest - 16]
        found["auto"]["missing"] = 16 - len(kept)  # a worker that makes no copies costs nothing
    return found


def _rounds(names: list[str], rounds: int) -> Iterator[list[str]]:
    """All names, again and again, in an order that changes; none is twice in a row.

    Whoever is called after a copy was made finds an awake processor: each must come after each.
    """
    order, last = random.Random(0), ""
    for _ in range(rounds):
        while (drawn := order.sample(names, len(names)))[0] == last:
            pass
        last = drawn[-1]
        yield drawn


def _back_to_back(blocks: int) -> dict[str, float]:
    """Calls of 1 ms a second, without a pause between them; in microseconds a call."""
    work = "for _ in range(20_000): pass"
    with _session("auto") as auto, _session("off") as off, _session("off") as again:
        sessions = {"auto": auto, "off": off, "off again": again}
        took_ns: dict[str, list[int]] = {name: [] for name in sessions}
        for session in sessions.values():
            _run(session, _NUMPY.format(bytes=100 << 20))
        for _ in range(blocks):
            for name, session in sessions.items():
                began_ns = time.perf_counter_ns()
                for _ in range(200):
                    session.execute_code(work)
                took_ns[name].append(time.perf_counter_ns() - began_ns)
    return {name: sum(values) / len(values) / 200 / 1e3 for name, values in took_ns.items()}


def _deaths(deaths: int, size_bytes: int) -> dict[str, Any]:
    outcome_ns, answer_ns, wrong = [], [], 0
    with _session() as session:
        _run(session, _NUMPY.format(bytes=size_bytes) + _FRAGILE)
        for number in range(deaths):
            for code in _DEATHS.values():
                state = _run(session, f"data[-1] = {number}; {_STATE}")
                time.sleep(0.05 + 2 * 0.02)
                began_ns = time.perf_counter_ns()
                outcome = session.execute_code(code)
                outcome_ns.append(time.perf_counter_ns() - began_ns)
                named = f"after execution {outcome['debug_info']['seq'] - 1} is live"
                began_ns = time.perf_counter_ns()
                _run(session, "x = 1")
                answer_ns.append(time.perf_counter_ns() - began_ns)
                first = str(state).partition(",")[0].strip("(")
                expected = str(state).replace(first, str(int(first) + 1), 1)
                if named not in outcome["notices"][0] or _run(session, _STATE) != expected:
                    wrong += 1
    return {
        "outcome": _quantiles(outcome_ns),
        "next answer": _quantiles(answer_ns),
        "deaths": len(outcome_ns),
        "wrong": wrong,
    }


def _snapshots(repeats: int, size_bytes: int) -> dict[str, float]:
    """How long one takes, in milliseconds, asked for: the worker's fork, and the request."""
    found: dict[str, float] = {}
    for name, fill, huge in (
        ("numpy, huge pages", _NUMPY, "1"),
        ("numpy, small pages", _NUMPY, "0"),
        ("small objects", _OBJECTS, "1"),
    ):
        for bytes_ in (100 << 20, size_bytes):
            os.environ["NUMPY_MADVISE_HUGEPAGE"] = huge
            with _session("manual") as session:
                _run(session, fill.format(bytes=bytes_))
                took_ns = []
                for _ in range(repeats):
                    _run(session, "x = 1")
                    took_ns.append(_timed(session.snapshot))
                found[f"{name}, {bytes_ >> 20} MiB"] = _quantiles(took_ns)["p50_us"] / 1e3
    return found


def _timeline(repeats: int, size_bytes: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with _session() as session:
        _run(session, _NUMPY.format(bytes=100 << 20))
        for seq in range(2, 102):
            _run(session, f"x = {seq}")
            time.sleep(0.03)
        seqs = [int(str(one["seq"])) for one in session.snapshots()]
        times: dict[str, list[int]] = {"rewind over 1": [], "rewind over 100": [], "branch": []}
        for _ in range(repeats):
            times["rewind over 100"].append(_timed(lambda: session.rewind(seqs[0])))
            session.rewind(seqs[-1])
            times["rewind over 1"].append(_timed(lambda: session.rewind(seqs[-2])))
            began_ns = time.perf_counter_ns()
            branch = session.branch(seqs[-1])
            times["branch"].append(time.perf_counter_ns() - began_ns)
            branch.close()
        found |= {f"{name}, 100 MiB, ms": _quantiles(took)["p50_us"] / 1e3 for name, took in times.items()}
    with _session() as session:
        _run(session, _NUMPY.format(bytes=size_bytes) + "; import time")
        time.sleep(0.2)
        took = [_timed(lambda: session.speculate(["time.sleep(1)"] * 8)) for _ in range(3)]
        found["speculate, 8 that sleep 1 s, s"] = min(took) / 1e9
    return found


def _sleeping(size_bytes: int) -> dict[str, float]:
    """What 50 sleeping copies hold for themselves."""
    with _session("manual") as session:
        _run(session, _NUMPY.format(bytes=size_bytes))
        worker_pid = int(str(_run(session, "import os; os.getpid()")))
        stat = read_stat(worker_pid)
        while len(session.snapshots()) < 50 and stat is not None:
            _run(session, "x = 1")
            session.snapshot()  # thinned as they are, it takes hundreds until 50 are kept
        time.sleep(0.1)  # those that were let go end
        copies = [each.pid for each in descendants(stat.parent_pid if stat else 0) if each.pid != worker_pid]
        return {"copies": len(copies), "private_mib": sum(map(_private_bytes, copies)) / (1 << 20)}


def _private_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))


def _timed(call: Callable[[], object]) -> int:
    began_ns = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - began_ns


def _quantiles(took_ns: list[int]) -> dict[str, float]:
    took_ns = sorted(took_ns)
    places = {"p50_us": 0.5, "p99_us": 0.99}
    found = {name: round(took_ns[int(len(took_ns) * share)] / 1e3, 1) for name, share in places.items()}
    return found | {"max_us": round(took_ns[-1] / 1e3, 1), "calls": len(took_ns)}


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    calls = [
        [
            f"{size}, {name}",
            one["p50_us"],
            one["p99_us"],
            one["p50_us"] / rows["off"]["p50_us"],
            one.get("missing", ""),
        ]
        for size, rows in found["calls"].items()
        for name, one in rows.items()
    ]
    hot = [
        [name, value, value / found["back to back"]["off"]] for name, value in found["back to back"].items()
    ]
    deaths = found["deaths"]
    after = [
        [f"{name}, of {deaths['deaths']}", deaths[name]["p50_us"] / 1e3, deaths[name]["max_us"] / 1e3]
        for name in ("outcome", "next answer")
    ]
    single = [
        [name, value] for part in ("snapshots", "timeline", "sleeping") for name, value in found[part].items()
    ]
    return "\n\n".join(
        [
            markdown(["small calls, apart", "p50 µs", "p99 µs", "× off", "of the last 16 not kept"], calls),
            markdown(["calls of 1 ms back to back, 100 MB", "µs a call", "× off"], hot),
            markdown([f"after a death ({deaths['wrong']} states wrong)", "p50 ms", "max ms"], after),
            markdown(["", "measured"], single),
            compare_table(found["peers"]),
        ]
    )


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    promised: list[tuple[str, float, float]] = []
    for size, (p50, p99) in {
        "30 MB of numpy": (1.10, 1.5), "numpy": (1.10, 1.5), "small objects": (1.15, None),
    }.items():  # fmt: skip
        rows = found["calls"][size]
        promised.append(
            (f"snapshots, {size}, p50 × off", rows["auto"]["p50_us"] / rows["off"]["p50_us"], p50)
        )
        promised.append((f"snapshots, {size}, of the last 16 states not kept", rows["auto"]["missing"], 0))
        if p99 is not None:
            ratio = rows["auto"]["p99_us"] / rows["off"]["p99_us"]
            promised.append((f"snapshots, {size}, p99 × off", ratio, p99))
    hot, deaths, line = found["back to back"], found["deaths"], found["timeline"]
    promised += [
        ("snapshots, back to back, × off", hot["auto"] / hot["off"], 1.10),
        ("death to outcome, max ms", deaths["outcome"]["max_us"] / 1e3, 120.0),
        ("death, next answer, p50 ms", deaths["next answer"]["p50_us"] / 1e3, 50.0),
        ("death, states that are wrong", deaths["wrong"], 0),
        ("speculate, 8 that sleep 1 s, s", line["speculate, 8 that sleep 1 s, s"], 1.3),
        ("50 sleeping copies, MiB", found["sleeping"]["private_mib"], 200.0),
    ]
    promised += [(name, value, 20.0) for name, value in line.items() if name.endswith("ms")]
    promised += [
        (f"snapshot, {name}, ms", value, 10.0 if "100 MiB" in name else 60.0)
        for name, value in found["snapshots"].items()
    ]
    return promised


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer calls, and less memory")


QUICK = {"calls": 40, "deaths": 3, "repeats": 3, "size_bytes": 200 << 20}

if __name__ == "__main__":
    sys.exit(main())
