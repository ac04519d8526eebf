"""What was recorded beside what a replay gave, field by field: pure.

Observed, Observed -> Comparison: the differences, each with its first line and column, and what was hidden

Times are not compared. A text that is too long for its line is compared by its artifact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from json_repl.replay.normalizers import Normalizer, count_hidden, normalize
from task_logger.record import Artifact, ExecutionOutcome

FIELDS = (
    "status", "error.type", "error.message", "result", "stdout", "stderr", "displays",
    "added_vars", "changed_vars", "removed_vars", "added_imports",
)  # fmt: skip
"""What is compared, in the order in which differences are told."""

TRACEBACK = "traceback"
"""The end of `stderr`, where the two sides word it in their own way; no field of its own."""

_OURS = "repl_kernel."

ReadArtifact = Callable[[Artifact], bytes | None]
"""Gives an artifact's bytes, `None` where they can't be had."""


def _no_artifact(artifact: Artifact) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """An outcome as a line holds it, and how its artifacts are read.

    `other_imports` are modules that count for neither side: an execution that was skipped had loaded them.
    `is_settled` is false where the search for changes in place had run out of time in the execution before:
    what that had missed is told in this one. `has_our_traceback` is false where IPython has worded it.
    """

    outcome: ExecutionOutcome
    other_imports: Collection[str] = ()
    is_settled: bool = True
    has_our_traceback: bool = True
    read_artifact: ReadArtifact = _no_artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field that differs.

    `line` and `column`, both from 1, are where the texts part, in the recorded one (lists are compared as one
    name a line). `is_random` says that two replays differ from each other as well, `None` where that wasn't
    tried; `cause` is why, where it can be seen.
    """

    field: str
    line: int
    column: int
    recorded: str
    replayed: str
    is_random: bool | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs, and how many places each normalizer has hidden, by its name."""

    differences: tuple[Difference, ...] = ()
    hidden: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Fields that could not be compared."""


def compare(recorded: Observed, replayed: Observed, normalizers: Sequence[Normalizer] = ()) -> Comparison:
    """Compare two outcomes of the same code."""
    left_out = _left_out(recorded, replayed)
    if TRACEBACK in left_out:
        recorded, replayed = _without_traceback(recorded), _without_traceback(replayed)
    one, other = recorded.outcome, replayed.outcome
    others = {*recorded.other_imports, *replayed.other_imports}
    if _is_plainly_alike(one, other, others):
        return Comparison(left_out=left_out) if left_out else _ALIKE
    differences: list[Difference] = []
    hidden: dict[str, int] = {}
    for name in FIELDS:
        if name in left_out:
            continue
        for path, ours, theirs in _differing(name, recorded, replayed, others):
            found = _difference(path, ours, theirs, normalizers if _is_free_text(path) else ())
            if found is not None:
                differences.append(found)
            else:
                for normalizer, count in count_hidden(ours, theirs, normalizers).items():
                    hidden[normalizer] = hidden.get(normalizer, 0) + count
    return Comparison(differences=tuple(differences), hidden=hidden, left_out=left_out)


_ALIKE = Comparison()


def _is_plainly_alike(one: ExecutionOutcome, other: ExecutionOutcome, others: Collection[str]) -> bool:
    """Whether nothing differs, the quick way; false tells nothing."""
    ours, theirs = one.changes, other.changes
    return (
        one.status == other.status
        and one.stdout == other.stdout
        and one.stderr == other.stderr
        and one.result == other.result
        and (one.error is None) is (other.error is None)
        and (one.error is None or other.error is None or _error_key(one) == _error_key(other))
        and not one.artifacts
        and not other.artifacts
        and not one.displays
        and not other.displays
        and list(ours.added_vars) == list(theirs.added_vars)
        and list(ours.removed_vars) == list(theirs.removed_vars)
        and list(ours.changed_vars) == list(theirs.changed_vars)
        and _imports(one, others) == _imports(other, others)
    )


def _error_key(outcome: ExecutionOutcome) -> tuple[str, str]:
    assert outcome.error is not None
    return outcome.error.type, outcome.error.message


def _left_out(recorded: Observed, replayed: Observed) -> tuple[str, ...]:
    one, other = recorded.outcome, replayed.outcome
    left_out: tuple[str, ...] = ()
    if not (
        one.changes.diff_complete
        and other.changes.diff_complete
        and recorded.is_settled
        and replayed.is_settled
    ):
        left_out += ("changed_vars",)
    if one.route != other.route:  # another process, with other modules loaded from the start
        left_out += ("added_imports",)
    if one.error is not None and not (recorded.has_our_traceback and replayed.has_our_traceback):
        left_out += (TRACEBACK,)
    return left_out


def _without_traceback(observed: Observed) -> Observed:
    """The same without the end of `stderr`, which is how it is worded; `error` says the rest."""
    outcome = observed.outcome
    traceback = "" if outcome.error is None else outcome.error.traceback
    return replace(observed, outcome=replace(outcome, stderr=outcome.stderr.removesuffix(traceback)))


def _differing(
    name: str, recorded: Observed, replayed: Observed, others: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """The texts of a field that are not the same, each with its name; a bundle has one for each type."""
    ours, theirs = _texts(name, recorded, others), _texts(name, replayed, others)
    for path in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(path, _Text("")), theirs.get(path, _Text(""))
        if (path in ours) is not (path in theirs) and name in ("result", "displays"):
            one = one if path in ours else _Text("(nothing)")
            other = other if path in theirs else _Text("(nothing)")
        if one.artifact is None and other.artifact is None:
            if one.text != other.text:
                yield path, one.text, other.text
        elif one.digest() != other.digest():
            yield path, one.whole(recorded), other.whole(replayed)


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    artifact: Artifact | None = None

    def digest(self) -> str:
        if self.artifact is not None:
            return self.artifact.sha256
        import hashlib

        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def whole(self, observed: Observed) -> str:
        """All of it; where its artifact can't be had, what the line has."""
        if self.artifact is None:
            return self.text
        data = observed.read_artifact(self.artifact)
        if data is None:
            missing = f"(artifact {self.artifact.sha256} of {self.artifact.bytes} bytes can't be read)"
            return f"{self.text}\n{missing}"
        return data.decode("utf-8", "backslashreplace")


def _texts(name: str, observed: Observed, others: Collection[str]) -> dict[str, _Text]:
    outcome = observed.outcome
    artifacts = {artifact.field: artifact for artifact in outcome.artifacts}
    if name in artifacts and name != "displays":
        inline = getattr(outcome, name, "")
        return {name: _Text(inline if isinstance(inline, str) else "", artifacts[name])}
    if name == "result":
        return _bundle_texts(name, name, outcome.result or {}, artifacts)
    if name == "displays":
        texts: dict[str, _Text] = {}
        for index, bundle in enumerate(outcome.displays):
            texts |= _bundle_texts(f"displays[{index}]", f"displays.{index}", bundle, artifacts)
        if name in artifacts:  # those that are too many for the line
            texts[name] = _Text("", artifacts[name])
        return texts
    if name.startswith("error."):
        error = outcome.error
        value = "" if error is None else getattr(error, name.removeprefix("error."))
        return {name: _Text(value)}
    if name in ("status", "stdout", "stderr"):
        return {name: _Text(getattr(outcome, name))}
    names = _imports(outcome, others) if name == "added_imports" else getattr(outcome.changes, name)
    return {name: _Text("\n".join(names))}


def _imports(outcome: ExecutionOutcome, others: Collection[str]) -> list[str]:
    """The new modules that are the code's; when the worker loads its own, its isolation decides."""
    added = outcome.changes.added_imports
    return [name for name in added if not name.startswith(_OURS) and name not in others]


def _bundle_texts(
    path: str, field: str, bundle: Mapping[str, object], artifacts: Mapping[str, Artifact]
) -> dict[str, _Text]:
    """The texts of a bundle by type; an image that is too long for the line is in an artifact alone."""
    start = f"{field}."
    left_out = [name.removeprefix(start) for name in artifacts if name.startswith(start)]
    return {
        f"{path}[{mime}]": _Text(_as_text(bundle.get(mime, "")), artifacts.get(f"{start}{mime}"))
        for mime in dict.fromkeys([*bundle, *left_out])
    }


def _as_text(value: object) -> str:
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1)
    )


def _is_free_text(path: str) -> bool:
    """Whether normalizers apply: to texts, not to names, and not to images."""
    if path.startswith(("result[", "displays[")):
        mime = path.rpartition("[")[2].removesuffix("]")
        return mime.startswith("text/") or mime in ("application/json", "image/svg+xml")
    return path in ("stdout", "stderr", "error.message")


def _difference(
    path: str, recorded: str, replayed: str, normalizers: Sequence[Normalizer]
) -> Difference | None:
    """The difference of two texts that aren't the same, `None` where normalizers make them so."""
    if normalizers:
        ours, theirs = normalize(recorded, normalizers), normalize(replayed, normalizers)
        if ours.text == theirs.text:
            return None
        at = ours.origin(common_length(ours.text, theirs.text))
    else:
        at = common_length(recorded, replayed)
    line, column = place_of(recorded, at)
    return Difference(field=path, line=line, column=column, recorded=recorded, replayed=replayed)


def common_length(one: str, other: str) -> int:
    """How many characters two texts begin with in common, by halving: texts can be long."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def place_of(text: str, at: int) -> tuple[int, int]:
    """Line and column, from 1, of a place in a text."""
    before = text[:at]
    return before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1
