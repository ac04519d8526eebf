"""Runs several pieces of code at once, each in a copy of the same state; one of the copies may be kept.

snapshot --wake--> worker of candidate 1 --> outcome 1
         --wake--> worker of candidate 2 --> outcome 2      each with a socket and pipes of its own
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repl_kernel.capture import OpenSpool, OutputCollector
from repl_kernel.exchange import Exchange, WorkerDied
from repl_kernel.interruption import Interruption
from repl_kernel.late import LateCollector
from repl_kernel.lives import wake_beside
from repl_kernel.outcome import (
    Death,
    Gathered,
    death_outcome,
    outcome_from_reply,
    past_limit,
    past_time_limit,
)
from repl_kernel.process_tree import kill_descendants
from repl_kernel.snapshots import Snapshot
from repl_kernel.worker_link import death_of
from task_logger.record import ExecutionOutcome, ExecutionRequest, Isolation

if TYPE_CHECKING:
    from repl_kernel.enclosure import Enclosure
    from repl_kernel.limit_watch import LimitWatch

_DEATH_WAIT_S = 0.2
"""How long a worker that was killed may take to end."""

ExitStatus = Callable[[int], int | None]
"""How a worker with that pid has ended: the keeper knows."""


def _watch(enclosure: Enclosure | None) -> LimitWatch | None:
    if enclosure is None:
        return None
    from repl_kernel.limit_watch import LimitWatch

    return LimitWatch(enclosure, alone=False)


class Candidate:
    """One piece of code in a worker of its own."""

    def __init__(
        self,
        snapshot: Snapshot,
        request: ExecutionRequest,
        open_spool: OpenSpool,
        isolation: Isolation,
        enclosure: Enclosure | None = None,
        *,
        parent: str,
    ) -> None:
        """`parent` is the snapshot's state as the log names it."""
        self.request = request
        self.base = snapshot
        self.outcome: ExecutionOutcome | None = None
        self.link, notices = wake_beside(snapshot, seq=snapshot.seq)
        self._watch = _watch(enclosure)
        meter = None if self._watch is None else self._watch.meter
        self._streams = (
            OutputCollector("stdout", open_spool, meter),
            OutputCollector("stderr", open_spool, meter),
        )
        self._interruption = Interruption()
        self._exchange = Exchange(self._interruption, self._streams, LateCollector(open_spool), open_spool)
        self._exchange.limits = self._watch
        self._gathered = Gathered("worker", isolation, self._streams)
        self._gathered.notices += notices
        self._gathered.parent = parent
        self._begins = threading.Lock()
        self.has_ended = threading.Event()
        """That it has run, and its outcome is there."""
        self._interruption.arm(self.link)  # from here on, so that an interrupt before it runs is not lost

    def run_once(self, message: Mapping[str, Any], exit_status: ExitStatus) -> None:
        """Run the code to its end, and leave what came of it in `outcome`; called again, do nothing."""
        if not self._begins.acquire(blocking=False):
            return
        try:
            self._run(message, exit_status)
        finally:
            self.has_ended.set()

    def _run(self, message: Mapping[str, Any], exit_status: ExitStatus) -> None:
        limit_s = self.request.time_limit_s
        began_ns = time.perf_counter_ns()
        try:
            self.outcome = self._settle(self._exchange.run(self.link, dict(message), limit_s), limit_s)
            self._interruption.disarm()
        except WorkerDied:
            self._interruption.disarm()
            elapsed_ns = time.perf_counter_ns() - began_ns
            if not self.link.wait_for_death(0.0):  # it speaks another protocol now: nobody may adopt it
                self.link.signal(signal.SIGKILL)
                self.link.wait_for_death(_DEATH_WAIT_S)
            death = Death(*death_of(exit_status(self.link.inner_pid)), elapsed_ns)
            strike = None if self._watch is None else self._watch.strike_of_death(death.signal)
            self.outcome = death_outcome(
                death, self._interruption, strike, "this candidate can't be adopted", self._gathered
            )

    def _settle(self, reply: Mapping[str, Any], limit_s: float | None) -> ExecutionOutcome:
        """The outcome of a candidate that replied; raises `WorkerDied` where that can't be its reply."""
        self._gathered.parts, self._gathered.displays = self._exchange.parts, self._exchange.take_displays()
        try:
            outcome = outcome_from_reply(reply, self._gathered)
        except (KeyError, TypeError, AttributeError) as exc:
            raise WorkerDied(f"executed code has forged a reply that lacks its parts: {exc!r}") from exc
        strike = None if self._watch is None else self._watch.strike_of(outcome)
        if strike is not None:
            outcome = past_limit(outcome, strike)
        elif (
            limit_s is not None
            and self._interruption.reason == "timeout"
            and (outcome.status == "interrupted" or outcome.elapsed_ms > limit_s * 1000)
        ):
            return past_time_limit(outcome, limit_s)
        return outcome

    def interrupt(self) -> bool:
        """Interrupt it."""
        return self._interruption.begin("interrupted")

    def end(self) -> None:
        """Kill its worker and the programs it started."""
        kill_descendants(self.link.pid)
        self.link.signal(signal.SIGKILL)
        self.link.close()


def run_all(
    candidates: Sequence[Candidate], messages: Sequence[Mapping[str, Any]], exit_status: ExitStatus
) -> None:
    """Run candidates at once; returns when all have ended. The keeper is asked by one of them at a time."""
    lock = threading.Lock()

    def locked_status(pid: int) -> int | None:
        with lock:
            return exit_status(pid)

    interrupt: KeyboardInterrupt | None = None
    for candidate, message in zip(candidates, messages, strict=True):
        is_started = False
        while not is_started:
            try:  # an interrupt leaves open whether the thread has started: a second one does no harm
                threading.Thread(
                    target=candidate.run_once, args=(message, locked_status), name="json-repl candidate"
                ).start()
                is_started = True
            except KeyboardInterrupt as exc:
                interrupt = exc
    if interrupt is not None:
        for candidate in candidates:
            candidate.interrupt()
    for candidate in candidates:
        while not candidate.has_ended.is_set():
            try:
                candidate.has_ended.wait()
            except KeyboardInterrupt as exc:
                interrupt = exc
                for each in candidates:
                    each.interrupt()
    if interrupt is not None:
        raise interrupt
