"""The live replay: each recorded execution runs again, and what comes of it is compared.

recording -> plan -> LiveStates.run, step by step -> compare -> StepReport
                          +-- where any differs: all of it once more, the two replays compared
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from json_repl.errors import InvalidRequest
from json_repl.replay.bounds import Bounds, OutOfBounds
from json_repl.replay.comparison import Comparison, Difference, Observed
from json_repl.replay.errors import StateUnreachable
from json_repl.replay.evidence import Evidence, close_contents
from json_repl.replay.executors import ExecutorFactory, ReplayIsolation
from json_repl.replay.normalizers import Normalizer
from json_repl.replay.plan import Plan, PlannedStep, make_plan, misplaced
from json_repl.replay.recording import Fault, Recording
from json_repl.replay.report import Report, StepReport, Verdict, step_report
from json_repl.replay.second_replay import SecondReplay
from json_repl.replay.secrets import ReplaySecrets
from json_repl.replay.shells import shells_of
from json_repl.replay.states import LiveStates
from task_logger.record import ExecutionOutcome, ExecutionRecord

OnStep = Callable[[StepReport], object]

_NO_INPUT = "this execution may not ask for input"
"""How the error of code begins that asks where nobody answers: a recording doesn't hold the answers."""

_OTHER_MODULES = (
    "only the modules that it loaded differ: in the sandbox, which has no home, a library may find no cache "
    "of its own; --isolation process has one, if you trust this recording"
)

_LOOKS_OUTSIDE = (
    "ConnectionError",
    "FileNotFoundError",
    "ModuleNotFoundError",
    "PermissionError",
    "gaierror",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How a live replay goes.

    `first_line` and `last_line` bound what is compared, `None` for all; what comes before is run as far as
    states need it. `max_executions` and `max_seconds` bound what is run, `include` names statuses to run that
    usually aren't. A difference ends it unless `keep_going`.
    """

    isolation: ReplayIsolation = "sandbox"
    network: bool = False
    normalizers: tuple[Normalizer, ...] = ()
    include: Collection[str] = ()
    first_line: int | None = None
    last_line: int | None = None
    keep_going: bool = False
    max_executions: int | None = None
    max_seconds: float | None = None


class LiveReplay:
    """A recording, ready to be replayed live."""

    def __init__(self, recording: Recording, settings: LiveSettings | None = None) -> None:
        self.recording = recording
        self.settings = settings or LiveSettings()
        if not all(isinstance(each, Normalizer) for each in self.settings.normalizers):
            raise InvalidRequest(
                "normalizers", "must be of Normalizer: normalizers.choose gives those of names"
            )
        self.secrets = ReplaySecrets(recording, os.environ)
        self.shells = shells_of(recording.lines)
        without_code = Evidence(recording, self.secrets).without_code()
        plan = make_plan(recording.lines, self.settings.include, without_code)
        last_line = self.settings.last_line
        self.plan = plan if last_line is None else plan.until(last_line)
        self.first_line = self.settings.first_line or 1
        needed = _needed(self.plan, self.first_line)
        self.steps = tuple(
            step
            for step in self.plan.steps
            if step.line.number >= self.first_line or (step.skip is None and step.after in needed)
        )
        """Those that are run or reported."""

    @property
    def execution_count(self) -> int:
        """How many executions will run, if none differs."""
        return sum(step.skip is None for step in self.steps)

    def run(self, on_step: OnStep | None = None) -> Report:
        """Replay; `on_step` gets the report on each line as it comes. A KeyboardInterrupt ends it, reported.

        Raises `WorkerStartFailed` where no executor can be had, `SandboxUnavailable` for a sandbox.
        """
        began = time.monotonic()
        replay = _Replay(self)
        stopped, was_interrupted = None, False
        settings = self.settings
        with ExecutorFactory(settings.isolation, network=settings.network, shells=self.shells) as factory:
            try:
                stopped = replay.first_pass(factory, on_step)
                replay.second_pass(factory)
            except KeyboardInterrupt:
                was_interrupted = True
                stopped = f"interrupted; --from {replay.next_number()} goes on"
            except OutOfBounds as exc:
                stopped = str(exc)
                with suppress(OutOfBounds):
                    replay.second_pass(factory)
            finally:
                replay.second.forget()
        return Report(
            path=self.recording.path,
            mode="live",
            isolation=self.settings.isolation,
            steps=tuple(sorted(replay.reports, key=lambda report: report.number)),
            faults=_sorted((*self.recording.faults, *self.plan.faults)),
            took_s=time.monotonic() - began,
            prepared=replay.prepared,
            rebuilt=replay.rebuilt,
            stopped=stopped,
            was_interrupted=was_interrupted,
        )


class _Replay:
    """One run of a live replay, and what it has found so far."""

    def __init__(self, live: LiveReplay) -> None:
        self._live = live
        self._settings = live.settings
        self._evidence = Evidence(live.recording, live.secrets)
        self._bounds = Bounds(live.settings.max_executions, live.settings.max_seconds)
        self.second = SecondReplay(self._evidence, self._bounds, live.settings.normalizers)
        self.reports: list[StepReport] = []
        self.prepared = self.rebuilt = 0
        self._unsettled: set[str] = set()
        """The states whose execution could not tell all its changes in place."""
        self._recorded_unsettled = {
            state
            for step in live.plan.steps
            if not step.line.record.outcome.changes.diff_complete
            for state in (step.after, step.leaves)
            if state is not None
        }

    def next_number(self) -> int:
        """The line to go on from."""
        return self.reports[-1].number + 1 if self.reports else self._live.first_line

    def first_pass(self, factory: ExecutorFactory, on_step: OnStep | None) -> str | None:
        """Replay and compare; returns why it ended before the last line, `None` where it didn't.

        Raises `OutOfBounds`.
        """
        with closing(self._compared(factory)) as found:
            for report in found:
                self.reports.append(report)
                if on_step is not None:
                    on_step(report)
                is_last = report.number == self._live.steps[-1].line.number
                if report.verdict == "DIFF" and not self._settings.keep_going and not is_last:
                    return "it stops at the first difference; --keep-going goes on"
        return None

    def second_pass(self, factory: ExecutorFactory) -> None:
        """Tell what differs at random; raises `OutOfBounds`."""
        self.reports = self.second.tell(self._live.steps, self.reports, factory.open)

    def _compared(self, factory: ExecutorFactory) -> Generator[StepReport, None, None]:
        with LiveStates(self._live.steps, factory.open, self._evidence.code_of) as states:
            try:
                for step in self._live.steps:
                    if step.skip is None:
                        self._bounds.begin(max(step.line.number, self._live.first_line))
                    if step.line.number >= self._live.first_line:
                        yield self._replay(states, step)
                    else:
                        self._prepare(states, step)
                    states.let_go()
            finally:
                self.rebuilt = states.rebuilt

    def _prepare(self, states: LiveStates, step: PlannedStep) -> None:
        """Run a step for its state alone."""
        self.prepared += 1
        with suppress(StateUnreachable):
            close_contents(self._run(states, step))

    def _run(self, states: LiveStates, step: PlannedStep) -> ExecutionOutcome:
        outcome = states.run(step, self._bounds.limit_s(step.line.record))
        if not outcome.changes.diff_complete:
            self._unsettled.add(step.after)
        return outcome

    def _replay(self, states: LiveStates, step: PlannedStep) -> StepReport:
        number, record = step.line.number, step.line.record
        if step.skip is not None:  # a line that is out of order is so whether it is run or not
            self._evidence.skipped(step)
            wrong_place = misplaced(step)
            verdict: Verdict = "DIFF" if wrong_place else "SKIP"
            return step_report(number, record, verdict, reason=step.skip, differences=wrong_place)
        try:
            outcome = self._run(states, step)
        except StateUnreachable as exc:
            return step_report(number, record, "SKIP", reason=str(exc))
        self._bounds.check_cut_off(record, outcome.status, number)
        if _asked_for_input(record, outcome):
            reason = "it asks for input, and a recording doesn't hold the answers"
            return step_report(number, record, "SKIP", reason=reason, replayed_ms=outcome.elapsed_ms)
        observed = self._evidence.held(step, outcome, self._unsettled)
        recorded = self._evidence.observed(step, self._recorded_unsettled)
        found = self._evidence.compared(recorded, observed, self._settings.normalizers)
        return self._judge(step, observed, found, misplaced(step))

    def _judge(
        self,
        step: PlannedStep,
        observed: Observed,
        found: Comparison,
        wrong_place: tuple[Difference, ...],
    ) -> StepReport:
        differences = wrong_place + found.differences
        if found.differences:
            self.second.first[step.line.number] = observed
        else:
            close_contents(observed.outcome)
        return step_report(
            step.line.number,
            step.line.record,
            "DIFF" if differences else "MATCH",
            replayed_ms=observed.outcome.elapsed_ms,
            differences=differences,
            hidden=found.hidden,
            left_out=found.left_out,
            hints=self._hints(step.line.record, observed.outcome, differences) if differences else (),
        )

    def _hints(
        self, record: ExecutionRecord, outcome: ExecutionOutcome, differences: Sequence[Difference]
    ) -> tuple[str, ...]:
        is_moved = self._settings.isolation == "sandbox" != record.outcome.isolation
        if is_moved and all(each.field == "added_imports" for each in differences):
            return (_OTHER_MODULES,)
        error, recorded = outcome.error, record.outcome.error
        if error is None or (recorded is not None and recorded.type == error.type):
            return ()
        if error.type not in _LOOKS_OUTSIDE or self._settings.isolation != "sandbox":
            return ()
        return (
            "the sandbox has no files of yours and no network: --isolation process replays with both, "
            "if you trust this recording",
        )


def _needed(plan: Plan, first_line: int) -> set[str]:
    """The states that the compared steps start from, and those that lead there."""
    by_name = {step.after: step for step in plan.steps}
    needed: set[str] = set()
    pending = [step.before for step in plan.steps if step.line.number >= first_line]
    while pending:
        state = pending.pop()
        if state is not None and state not in needed:
            needed.add(state)
            if state in by_name:
                pending.append(by_name[state].before)
    return needed


def _asked_for_input(record: ExecutionRecord, outcome: ExecutionOutcome) -> bool:
    recorded, error = record.outcome.error, outcome.error
    if error is None or error.type != "EOFError" or not error.message.startswith(_NO_INPUT):
        return False
    return recorded is None or recorded.message != error.message


def _sorted(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.number))
