"""Gathers late output: what threads, tasks and programs of earlier executions write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl_kernel.capture import OpenSpool, OutputCollector
from task_logger.record import Artifact, LateOutput, OutputName

if TYPE_CHECKING:
    from repl_kernel.output_meter import OutputMeter


class LateCollector:
    """Late output by stream and execution, until the next record takes it."""

    def __init__(self, open_spool: OpenSpool, meter: OutputMeter | None = None) -> None:
        self._open_spool = open_spool
        self._meter = meter
        self._collectors: dict[tuple[OutputName, int | None], OutputCollector] = {}

    @property
    def has_some(self) -> bool:
        """Whether there may be any."""
        return bool(self._collectors)

    def of(self, name: OutputName, seq: int | None) -> OutputCollector:
        """The collector for what an execution wrote to a stream; `seq` is `None` where nobody knows which."""
        key = (name, seq)
        if key not in self._collectors:
            self._collectors[key] = OutputCollector("late_output", self._open_spool, self._meter)
        return self._collectors[key]

    def take(self, artifacts: list[Artifact]) -> tuple[LateOutput, ...]:
        """Hand over what there is, in order of appearance; adds the artifacts of what is too long."""
        late: list[LateOutput] = []
        for (name, seq), collector in self._collectors.items():
            if collector.size:
                text, artifact, _ = collector.finish()
                late.append(LateOutput(name=name, text=text, seq=seq))
                if artifact is not None:
                    artifacts.append(artifact)
        self._collectors = {}
        return tuple(late)
