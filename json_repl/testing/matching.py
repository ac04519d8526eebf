"""What was recorded beside what a test did: code, and outcomes field by field. Pure.

code, recorded request      -> the same? (a secret's placeholder in the recording stands for any text)
outcome, recorded outcome   -> the first field that differs
two texts                   -> where they part, and both lines with a caret
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import orjson

from json_repl.replay.normalizers import Normalizer, normalize
from task_logger.placeholders import PLACEHOLDER
from task_logger.record import ExecutionOutcome, ExecutionRecord, keep_text

FIELDS = ("status", "error", "result", "stdout", "stderr")
"""What is compared of an outcome, in this order."""

_MAX_LINE_CHARS = 100
_LEFT_OF_PARTING_CHARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDifference:
    """A field that differs, both as text."""

    field: str
    recorded: str
    replayed: str


def is_code_of(code: str, record: ExecutionRecord) -> bool:
    """Whether the code is what was recorded; of a long one the artifact's digest is compared."""
    text, artifact, _ = keep_text("code", code)
    recorded = record.request.code
    kept = [each.sha256 for each in record.outcome.artifacts if each.field == "code"]
    if text == recorded:
        return not kept or (artifact is not None and artifact.sha256 == kept[0])
    return "⟨secret:" in recorded and _pattern(recorded).fullmatch(text) is not None


def _pattern(recorded: str) -> re.Pattern[str]:
    """Matches a recorded text with its secrets put back: the same placeholder is the same secret."""
    pieces: list[str] = []
    groups: dict[str, str] = {}
    end = 0
    for match in re.finditer(PLACEHOLDER, recorded):
        pieces.append(re.escape(recorded[end : match.start()]))
        if match[0] in groups:
            pieces.append(f"(?P={groups[match[0]]})")
        else:
            groups[match[0]] = f"s{len(groups)}"
            pieces.append(f"(?P<{groups[match[0]]}>.+?)")
        end = match.end()
    pieces.append(re.escape(recorded[end:]))
    return re.compile("".join(pieces), re.DOTALL)


def first_difference(
    recorded: ExecutionOutcome,
    replayed: ExecutionOutcome,
    ignore: Collection[str],
    normalizers: Sequence[Normalizer] = (),
) -> FieldDifference | None:
    """Return the first field that differs and isn't ignored, `None` where none does.

    What a normalizer hides of both is no difference.
    """
    ours, theirs = _texts(recorded), _texts(replayed)
    for name in sorted(ours.keys() | theirs.keys(), key=_order):
        if name.partition("[")[0] in ignore or ours.get(name) == theirs.get(name):
            continue
        if (
            name not in ours
            or name not in theirs
            or (normalize(ours[name], normalizers).text != normalize(theirs[name], normalizers).text)
        ):
            nothing = "(nothing)"
            return FieldDifference(
                field=name, recorded=ours.get(name, nothing), replayed=theirs.get(name, nothing)
            )
    return None


def _order(name: str) -> tuple[int, str]:
    return FIELDS.index(name.partition("[")[0]), name


def _texts(outcome: ExecutionOutcome) -> dict[str, str]:
    """The compared fields as texts; a text that is too long for its line ends with its digest."""
    texts: dict[str, str] = {"status": outcome.status, "stdout": outcome.stdout, "stderr": outcome.stderr}
    if outcome.error is not None:
        texts["error"] = f"{outcome.error.type}: {outcome.error.message}"
    result: Mapping[str, object] = outcome.result or {}
    for mime, value in result.items():
        texts[f"result[{mime}]"] = value if isinstance(value, str) else orjson.dumps(value).decode()
    for artifact in outcome.artifacts:
        mime = artifact.field.removeprefix("result.")
        name = artifact.field if mime == artifact.field else f"result[{mime}]"
        if name.partition("[")[0] in FIELDS:
            texts[name] = f"{texts.get(name, '')}\n(all of it: SHA-256 {artifact.sha256})"
    return texts


def parting(recorded: str, other: str, labels: tuple[str, str]) -> str:
    """Say where two texts part, line and column from 1, and show both lines; nothing where they don't."""
    pairs = zip_longest(recorded.split("\n"), other.split("\n"))
    found = next(((at, *pair) for at, pair in enumerate(pairs, start=1) if pair[0] != pair[1]), None)
    if found is None:
        return ""
    number, ours, theirs = found
    column = _common_length(ours or "", theirs or "")
    start = max(0, column - _LEFT_OF_PARTING_CHARS)
    width = max(map(len, labels))
    shown = [f"line {number}, column {column + 1}"]
    for label, line in zip(labels, (ours, theirs), strict=True):
        text = "(no such line)" if line is None else line[start : start + _MAX_LINE_CHARS]
        shown.append(f"  {label:{width}} | {text}")
    shown.append(f"  {'':{width}} | {'':{column - start}}^")
    return "\n".join(shown)


def _common_length(one: str, other: str) -> int:
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))
