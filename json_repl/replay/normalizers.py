r"""What is taken for alike although it differs: addresses, times, paths and the like, put as one word.

text --normalizer, one after the other--> Normalized: the text to compare, and where its places were

A normalizer is a pattern and what stands for each match. There are built-in ones by name, those that packages
offer (entry point group `json_repl.normalizers`: a `Normalizer`, or a pattern as text), and patterns
given as `/PATTERN/` or `/PATTERN/REPLACEMENT/`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from json_repl.replay.errors import UnknownNormalizer

ENTRY_POINTS = "json_repl.normalizers"

ALL = "all"
"""As a name: every built-in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """Puts `stands_for` (a text, in which nothing is expanded, or what a call makes of the match) for each
    match; `hides` says in words what differs then unseen."""

    name: str
    pattern: re.Pattern[str]
    stands_for: str | Callable[[re.Match[str]], str]
    hides: str

    def put(self, match: re.Match[str]) -> str:
        """What stands for a match; raises `UnknownNormalizer` where its call gives no text."""
        if isinstance(self.stands_for, str):
            return self.stands_for
        try:
            word = self.stands_for(match)
        except Exception as exc:
            raise UnknownNormalizer(self.name, f"raised {type(exc).__name__}: {exc}") from exc
        if not isinstance(word, str):
            raise UnknownNormalizer(self.name, f"gives a {type(word).__name__} for a match, not a text")
        return word

    def found(self, text: str) -> list[str]:
        """All that it stands for in a text."""
        return [match[0] for match in self.pattern.finditer(text)]


@dataclass(frozen=True, slots=True)
class Normalized:
    """A text after its normalizers; `origin` leads from a place in it to that in the text before."""

    text: str
    _passes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def origin(self, at: int) -> int:
        """The place in the original text of a place in this one; of what a word stands for, its start."""
        for ours, theirs in reversed(self._passes):
            index = bisect_right(ours, at) - 1
            is_word = index % 2 == 1  # pieces alternate: text as it was, a word that stands for a match
            at = theirs[index] if is_word else theirs[index] + at - ours[index]
        return at


def normalize(text: str, normalizers: Sequence[Normalizer]) -> Normalized:
    """Apply normalizers, in their order."""
    passes = []
    for normalizer in normalizers:
        pieces: list[str] = []
        ours, theirs = [0], [0]
        at = size = 0
        for match in normalizer.pattern.finditer(text):
            word = normalizer.put(match)
            size += match.start() - at
            ours.append(size)
            theirs.append(match.start())
            pieces += (text[at : match.start()], word)
            size += len(word)
            at = match.end()
            ours.append(size)
            theirs.append(at)
        if pieces:
            text = "".join([*pieces, text[at:]])
            passes.append((tuple(ours), tuple(theirs)))
    return Normalized(text, tuple(passes))


def count_hidden(recorded: str, replayed: str, normalizers: Iterable[Normalizer]) -> dict[str, int]:
    """How many differing places each normalizer has hidden, by its name; none are left out."""
    counts: dict[str, int] = {}
    for normalizer in normalizers:
        pairs = zip_longest(normalizer.found(recorded), normalizer.found(replayed))
        count = sum(one != other for one, other in pairs)
        if count:
            counts[normalizer.name] = count
        recorded, replayed = (normalize(text, [normalizer]).text for text in (recorded, replayed))
    return counts


def choose(names: Iterable[str]) -> tuple[Normalizer, ...]:
    """The normalizers of these names, patterns in slashes among them; raises `UnknownNormalizer`."""
    chosen: dict[str, Normalizer] = {}
    for name in names:
        if name == ALL:
            chosen |= BUILT_IN
        elif name.startswith("/"):
            chosen[name] = _of_pattern(name)
        else:
            chosen[name] = BUILT_IN.get(name) or _installed(name)
    return tuple(chosen.values())


def _of_pattern(text: str) -> Normalizer:
    parts = re.split(r"(?<!\\)/", text)
    if len(parts) not in (3, 4) or parts[0] or parts[-1] or not parts[1]:
        raise UnknownNormalizer(text, "must be /PATTERN/ or /PATTERN/REPLACEMENT/, a slash inside as \\/")
    return _compiled(text, parts[1].replace("\\/", "/"), parts[2] if len(parts) == 4 else "<…>")


def _compiled(name: str, pattern: str, stands_for: str) -> Normalizer:
    try:
        return Normalizer(
            name=name, pattern=re.compile(pattern), stands_for=stands_for, hides="what your pattern matches"
        )
    except (re.error, OverflowError, RecursionError) as exc:
        raise UnknownNormalizer(name, f"is no regular expression: {exc}") from exc


def _installed(name: str) -> Normalizer:
    from importlib.metadata import entry_points

    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join([ALL, *BUILT_IN, *sorted(found.names)])
        raise UnknownNormalizer(name, f"there is none; there are {known}, and /PATTERN/")
    try:
        loaded = found[name].load()
    except (Exception, SystemExit) as exc:
        raise UnknownNormalizer(name, f"can't be loaded: {type(exc).__name__}: {exc}") from exc
    if isinstance(loaded, str):
        return _compiled(name, loaded, f"<{name}>")
    if isinstance(loaded, Normalizer):
        if not _is_for_texts(loaded.pattern):
            raise UnknownNormalizer(name, "has a pattern that isn't compiled, or is for bytes")
        return loaded
    raise UnknownNormalizer(name, f"is a {type(loaded).__name__}, not a Normalizer or a pattern")


def _is_for_texts(pattern: object) -> bool:
    return isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str)


def _sorted_set(match: re.Match[str]) -> str:
    return "{" + ", ".join(sorted(match[0][1:-1].split(", "))) + "}"


_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?"

_WEEKDAY_OR_MONTH = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"

_NAMED_DATE = rf"(?:{_WEEKDAY_OR_MONTH}[a-z]*,?\s+)+\d{{1,2}},?\s+(?:{_CLOCK}\s+)?\d{{4}}"


def _built_in(
    name: str, pattern: str, stands_for: str | Callable[[re.Match[str]], str], hides: str
) -> Normalizer:
    return Normalizer(name=name, pattern=re.compile(pattern), stands_for=stands_for, hides=hides)


BUILT_IN = {
    each.name: each
    for each in (
        _built_in("addresses", r"\b0x[0-9a-fA-F]{5,16}\b", "<address>", "addresses of objects"),
        _built_in(
            "times",
            r"datetime\.(?:datetime|date|time)\([\d, ]+(?=[,)])"
            rf"|\b\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK})?(?:Z|[+-]\d\d:?\d\d)?"
            rf"|\b{_NAMED_DATE}"
            rf"|\b{_CLOCK}\b"
            r"|\b1[5-9]\d{8}(?:\.\d+|\d{3}|\d{6}|\d{9})?\b",
            "<time>",
            "dates and times",
        ),
        _built_in(
            "durations",
            r"\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\s?(?:ns|[uµμ]s|ms|s|secs?|seconds?|mins?|minutes?|h|hours?)\b",
            "<duration>",
            "how long something took",
        ),
        _built_in(
            "temp-names",
            r"\btmp[a-z0-9_]{8}(?![a-z0-9_])|(?<=/tmp/)[\w.-]+",
            "<temporary>",
            "names of temporary files",
        ),
        _built_in("paths", r"(?<![\w<./])(?:/[\w.@+~-]+)+/(?=[\w.@+~<-])", "<folder>/", "folders of paths"),
        _built_in("set-order", r"\{[^{}:]*, [^{}:]*\}", _sorted_set, "the order in which sets are shown"),
    )
}
"""Those that are always there, by name."""
