"""Both sides of a comparison: what the recording says of a step, and what a replay gave, alike in form.

recorded line, artifacts of its plan's folder ----> Observed
outcome of a replay, as a line would hold it -----> Observed
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from json_repl.replay.comparison import Comparison, Observed, compare
from json_repl.replay.errors import StateUnreachable
from json_repl.replay.normalizers import Normalizer
from json_repl.replay.plan import PlannedStep
from json_repl.replay.recording import RecordedLine, Recording
from json_repl.replay.secrets import ReplaySecrets
from json_repl.replay.shells import ran_in_ipython
from task_logger import artifacts
from task_logger.errors import ArtifactError
from task_logger.record import Artifact, ExecutionOutcome

_CODE_MISSING = "all of its code is in an artifact that can't be read"


class Evidence:
    """What a recording says, its artifacts included, and what a replay gave."""

    def __init__(self, recording: Recording, secrets: ReplaySecrets) -> None:
        self._recording = recording
        self._secrets = secrets
        self._lost_imports: dict[str, set[str]] = {}

    def observed(self, step: PlannedStep, unsettled: Collection[str]) -> Observed:
        """What was recorded; `unsettled` are states whose execution could not tell all its changes."""
        record = step.line.record
        return Observed(
            outcome=record.outcome,
            has_our_traceback=not (record.outcome.route == "local" and ran_in_ipython(record)),
            is_settled=step.before not in unsettled,
            other_imports=self._lost_imports.get(step.session_id, ()),
            read_artifact=self._read,
        )

    def compared(
        self, recorded: Observed, replayed: Observed, normalizers: Sequence[Normalizer]
    ) -> Comparison:
        """What differs; secrets count as their placeholders, on both sides."""
        found = compare(recorded, replayed, normalizers)
        if not found.differences:
            return found
        whole = tuple(replace(each, content=self._read(each)) for each in recorded.outcome.artifacts)
        given = replace(recorded.outcome, artifacts=whole) if whole else recorded.outcome
        outcome = self._secrets.redacted(given)
        if outcome is given:
            return found
        redacted = replace(recorded, outcome=outcome, read_artifact=_read_content)
        try:
            return compare(redacted, replayed, normalizers)
        finally:
            close_contents(outcome)

    def held(self, step: PlannedStep, outcome: ExecutionOutcome, unsettled: Collection[str]) -> Observed:
        """What a replay gave, as a line would hold it; `unsettled` as in `observed`."""
        return Observed(
            outcome=self._secrets.kept(step.line.record.request, outcome),
            is_settled=step.before not in unsettled,
            read_artifact=_read_content,
        )

    def skipped(self, step: PlannedStep) -> None:
        """A step isn't run: what it had loaded, others of its session load in its stead."""
        lost = self._lost_imports.setdefault(step.session_id, set())
        lost.update(step.line.record.outcome.changes.added_imports)

    def code_of(self, step: PlannedStep) -> str:
        """All of a step's code, with its secrets; of a long one, or one that is no Unicode, the line has only
        a part.

        Raises `StateUnreachable` where the artifact with all of it can't be read.
        """
        code = self._recorded_code(step.line)
        if code is None:
            raise StateUnreachable(step.after, _CODE_MISSING)
        return self._secrets.restored(code)

    def without_code(self) -> dict[int, str]:
        """The lines whose code can't be had, by number, and why."""
        found: dict[int, str] = {}
        for line in self._recording.lines:
            code = self._recorded_code(line)
            reason = _CODE_MISSING if code is None else self._secrets.why_not_whole(code)
            if reason is not None:
                found[line.number] = reason
        return found

    def _recorded_code(self, line: RecordedLine) -> str | None:
        artifact = next((each for each in line.record.outcome.artifacts if each.field == "code"), None)
        if artifact is None:
            return line.record.request.code
        data = self._read(artifact)
        return None if data is None else data.decode("utf-8", "surrogatepass")

    def _read(self, artifact: Artifact) -> bytes | None:
        try:
            with artifacts.get(self._recording.folder, artifact.sha256) as file:
                return file.read()
        except (ArtifactError, OSError):
            return None


def _read_content(artifact: Artifact) -> bytes | None:
    content = artifact.content
    if content is None or isinstance(content, bytes):
        return content
    content.seek(0)
    return content.read()


def close_contents(outcome: ExecutionOutcome) -> None:
    """Close the files that hold an outcome's artifacts: nobody keeps them."""
    for artifact in outcome.artifacts:
        if artifact.content is not None and not isinstance(artifact.content, bytes):
            artifact.content.close()
