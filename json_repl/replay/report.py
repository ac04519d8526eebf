"""What a replay found: values, which text.py, page.py and as_json render.

steps: MATCH | DIFF | SKIP of a live replay; READY | DIFF | SKIP of a dry run, which has compared nothing
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from json_repl.replay.comparison import Difference
from json_repl.replay.recording import Fault
from task_logger.record import ExecutionRecord

Verdict = Literal["MATCH", "DIFF", "SKIP", "READY"]
Mode = Literal["live", "dry-run"]

_MAX_CODE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What came of one line of the recording.

    `number` is that of the line, `recorded_ms` and `replayed_ms` the wall time of the code then and now
    (`None` where it wasn't run). `reason` says why it is skipped, `hints` what may help with a difference,
    `hidden` how many places each normalizer has hidden.
    """

    number: int
    session_id: str
    seq: int
    code: str
    status: str
    verdict: Verdict
    recorded_ms: float
    replayed_ms: float | None = None
    differences: tuple[Difference, ...] = ()
    reason: str | None = None
    hidden: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether all that differs here differs between two replays as well."""
        return bool(self.differences) and all(each.is_random for each in self.differences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole replay.

    `prepared` counts the executions that were run only for their state, and not compared, `rebuilt` those
    that were run once more for it. `stopped` says why not all lines were come to, `None` where they were.
    """

    path: str
    mode: Mode
    isolation: str | None
    steps: tuple[StepReport, ...]
    faults: tuple[Fault, ...]
    took_s: float
    prepared: int = 0
    rebuilt: int = 0
    stopped: str | None = None
    was_interrupted: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """How many steps have which verdict; those that differ at random count apart, as `random`."""
        found = Counter("random" if step.is_random else step.verdict for step in self.steps)
        names = ("MATCH", "DIFF", "random", "SKIP") if self.mode == "live" else ("READY", "DIFF", "SKIP")
        return {name: found[name] for name in names}

    @property
    def match_percent(self) -> float | None:
        """Of those that were compared, how many match; `None` where none was."""
        compared = sum(step.verdict in ("MATCH", "DIFF") for step in self.steps)
        if self.mode != "live" or not compared:
            return None
        return 100.0 * self.counts["MATCH"] / compared

    @property
    def hidden(self) -> dict[str, int]:
        """How many places each normalizer has hidden."""
        total: Counter[str] = Counter()
        for step in self.steps:
            total.update(step.hidden)
        return dict(total)

    @property
    def has_differences(self) -> bool:
        """Whether anything differs."""
        return any(step.verdict == "DIFF" for step in self.steps)


def step_report(number: int, record: ExecutionRecord, verdict: Verdict, **more: Any) -> StepReport:
    """The report on a line with that record."""
    return StepReport(
        number=number,
        session_id=record.request.session_id,
        seq=record.request.seq,
        code=record.request.code[:_MAX_CODE_CHARACTERS],
        status=record.outcome.status,
        verdict=verdict,
        recorded_ms=record.outcome.elapsed_ms,
        **more,
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "path": report.path,
        "mode": report.mode,
        "isolation": report.isolation,
        "counts": report.counts,
        "match_percent": report.match_percent,
        "hidden": report.hidden,
        "prepared": report.prepared,
        "rebuilt": report.rebuilt,
        "took_s": round(report.took_s, 3),
        "stopped": report.stopped,
        "faults": [asdict(fault) for fault in report.faults],
        "steps": [asdict(step) for step in report.steps],
    }
