"""What differs at random is told from what has changed: by a second replay, compared with the first.

steps up to the last that differs -> LiveStates.run -> compare with the first replay -> told apart
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from json_repl.replay.bounds import Bounds, OutOfBounds
from json_repl.replay.causes import cause_of
from json_repl.replay.comparison import Comparison, Difference, Observed, compare
from json_repl.replay.errors import StateUnreachable
from json_repl.replay.evidence import Evidence, close_contents
from json_repl.replay.normalizers import Normalizer
from json_repl.replay.plan import PlannedStep
from json_repl.replay.report import StepReport
from json_repl.replay.states import LiveStates, OpenExecutor


class SecondReplay:
    """A replay that is compared with the one before; `first` is what that gave where it differs, by line."""

    def __init__(self, evidence: Evidence, bounds: Bounds, normalizers: Sequence[Normalizer]) -> None:
        self._evidence = evidence
        self._bounds = bounds
        self._normalizers = normalizers
        self.first: dict[int, Observed] = {}

    def tell(
        self, steps: Sequence[PlannedStep], reports: Sequence[StepReport], open_executor: OpenExecutor
    ) -> list[StepReport]:
        """Return the reports with what a second replay tells of their differences; raises `OutOfBounds`."""
        places = [at for at, step in enumerate(steps) if step.line.number in self.first]
        if not places:
            return list(reports)
        steps = steps[: places[-1] + 1]
        by_name = {step.after: step for step in steps}
        by_number = {report.number: report for report in reports}
        for step, again in self._compared(steps, open_executor):
            report = by_number[step.line.number]
            before = _code_before(step, by_name)
            by_number[report.number] = replace(report, differences=_told(report, again, before))
        return [by_number[report.number] for report in reports]

    def forget(self) -> None:
        """Close what the first replay gave."""
        for observed in self.first.values():
            close_contents(observed.outcome)
        self.first.clear()

    def _compared(
        self, steps: Sequence[PlannedStep], open_executor: OpenExecutor
    ) -> Iterator[tuple[PlannedStep, Comparison]]:
        unsettled: set[str] = set()
        with LiveStates(steps, open_executor, self._evidence.code_of) as states:
            for step in steps:
                if step.skip is not None:
                    continue
                if self._bounds.is_late():
                    raise OutOfBounds("--max-seconds have passed: what differs at random is not told apart")
                try:
                    outcome = states.run(step, self._bounds.limit_s(step.line.record))
                except StateUnreachable:
                    continue
                states.let_go()
                if not outcome.changes.diff_complete:
                    unsettled.add(step.after)
                if (first := self.first.get(step.line.number)) is None:
                    close_contents(outcome)
                    continue
                again = self._evidence.held(step, outcome, unsettled)
                yield step, compare(first, again, self._normalizers)
                close_contents(again.outcome)


def _code_before(step: PlannedStep, by_name: Mapping[str, PlannedStep]) -> Iterator[tuple[int, str]]:
    """The code that led to a step's state, newest first, each with the number of its line."""
    seen: set[str] = set()
    state = step.before
    while state is not None and state not in seen and (earlier := by_name.get(state)) is not None:
        seen.add(state)
        yield earlier.line.number, earlier.line.record.request.code
        state = earlier.before


def _told(report: StepReport, again: Comparison, before: Iterator[tuple[int, str]]) -> tuple[Difference, ...]:
    """The differences of a line, with what a second replay tells of them."""
    random = {each.field: each for each in again.differences}
    earlier = list(before) if random else []
    told = []
    for difference in report.differences:
        other = random.get(difference.field)
        if difference.field == "seq":
            told.append(difference)
        elif other is None:
            told.append(replace(difference, is_random=False))
        else:
            cause = cause_of(other.recorded, other.replayed, report.code, earlier)
            told.append(replace(difference, is_random=True, cause=cause))
    return tuple(told)
