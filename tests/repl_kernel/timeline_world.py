"""One worker with its timeline, as the tests talk to it, and its processes as seen from outside."""

from __future__ import annotations

import ast
import os
import signal
import time
from typing import Any, Literal

from repl_kernel.orphaned_programs import SNAPSHOT_NAME
from repl_kernel.process_tree import ProcessStat, descendants, read_stat
from repl_kernel.timeline import TimelineExecutor
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds

PATIENCE_S = 40.0
"""After this, what must happen is taken for failed."""

SESSION_ID = "01890000-0000-7000-8000-000000000000"
TASK = TaskIds(plan_id="P-1", task_id="T-1", task_name="timeline")


class World:
    """An executor, its executions numbered."""

    def __init__(
        self, snapshots: Literal["auto", "manual", "off"] = "auto", executor: TimelineExecutor | None = None
    ) -> None:
        self.executor = executor or TimelineExecutor(snapshots=snapshots)
        self.seq = 0

    def request(
        self, code: str, *, time_limit_s: float | None = None, atomic: bool = False
    ) -> ExecutionRequest:
        self.seq += 1
        return ExecutionRequest(
            code=code,
            session_id=SESSION_ID,
            seq=self.seq,
            task=TASK,
            timestamp="2026-01-01T00:00:00.000Z",
            tags={},
            time_limit_s=time_limit_s,
            allow_input=False,
            atomic=atomic,
            actor="test",
        )

    def run(self, code: str, *, time_limit_s: float | None = None, atomic: bool = False) -> ExecutionOutcome:
        """Run code, whatever comes of it."""
        return self.executor.execute(self.request(code, time_limit_s=time_limit_s, atomic=atomic))

    def do(self, code: str) -> int:
        """Run code that must succeed; returns its seq."""
        outcome = self.run(code)
        assert outcome.status == "ok", outcome.stderr
        return self.seq

    def value(self, code: str) -> Any:
        """The value of an expression, by its repr."""
        outcome = self.run(code)
        assert outcome.status == "ok", outcome.stderr
        assert outcome.result is not None
        return ast.literal_eval(str(outcome.result["text/plain"]))

    def keep(self, code: str) -> int:
        """Run code that must succeed, and let the worker idle until its state is kept; returns its seq."""
        seq = self.do(code)
        self.idle()
        return seq

    def idle(self) -> None:
        """Let the worker idle until the state after the last execution is kept."""
        wait_until(lambda: self.seq in self.kept())

    def kept(self) -> list[int]:
        return [int(str(one["seq"])) for one in self.executor.snapshots()]

    def branch(self, seq: int, *, reseed: bool = False) -> World:
        return World(executor=self.executor.branch(seq, SESSION_ID, reseed=reseed))

    def speculate(self, *codes: str, time_limit_s: float | None = None) -> list[ExecutionOutcome]:
        return self.executor.speculate([self.request(code, time_limit_s=time_limit_s) for code in codes])

    @property
    def worker_pid(self) -> int:
        return self.executor._lives.link.pid

    @property
    def keeper_pid(self) -> int:
        stat = read_stat(self.worker_pid)
        assert stat
        return stat.parent_pid

    def copies(self) -> list[ProcessStat]:
        """The sleeping copies, by their pid: the keeper's children, not the intermediates of their forks."""
        keeper_pid = self.keeper_pid
        copies = [
            stat
            for stat in descendants(keeper_pid)
            if stat.name == SNAPSHOT_NAME and stat.parent_pid == keeper_pid
        ]
        return sorted(copies, key=lambda stat: stat.pid)

    def kill_copies(self, *seqs: int) -> None:
        """Kill the sleeping copies that hold the states after these executions."""
        wait_until(lambda: len(self.copies()) == len(self.kept()))
        # They are made one after the other, and the kept ones are in that order.
        copies = sorted(self.copies(), key=lambda stat: (stat.start_ticks, stat.pid))
        for seq in seqs:
            pid = copies[self.kept().index(seq)].pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: is_gone(pid))

    def close(self) -> None:
        self.executor.close()


def private_bytes(pid: int) -> int:
    """What a process holds that no other one shares; 0 where it has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def is_gone(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is None or stat.state in "ZX"


def wait_until(is_so: Any, patience_s: float = PATIENCE_S) -> None:
    """Wait until something in another process is so, which nothing announces."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {patience_s} s"
        time.sleep(0.002)
