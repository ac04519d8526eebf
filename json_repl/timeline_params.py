"""What the methods about earlier and tried-out states take; see `json_repl.params`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from json_repl.params import BadParams, count, flag, refuse_unknown, tags, time_limit_s

if TYPE_CHECKING:
    from json_repl.params import Params

MAX_CANDIDATES = 64
"""Candidates of one `speculate`: each is a process."""


class Rewind(NamedTuple):
    """Params of `rewind`: the execution whose state is to be live again."""

    seq: int


class Branch(NamedTuple):
    """Params of `branch`: the execution whose state a new session begins with."""

    seq: int
    reseed: bool = False


class Speculate(NamedTuple):
    """Params of `speculate`; `time_limit_s` holds for each piece of code, `None` means the session's own."""

    codes: tuple[str, ...]
    time_limit_s: float | None = None
    tags: Mapping[str, object] | None = None


class Adopt(NamedTuple):
    """Params of `adopt`: the position, from 0, in the list that `speculate` was given."""

    candidate: int


def _parse_rewind(given: Mapping[str, Any]) -> Rewind:
    refuse_unknown(given, "rewind", ("seq",))
    return Rewind(seq=count(given, "seq"))


def _parse_branch(given: Mapping[str, Any]) -> Branch:
    refuse_unknown(given, "branch", ("seq", "reseed"))
    return Branch(seq=count(given, "seq"), reseed=flag(given, "reseed"))


def _parse_speculate(given: Mapping[str, Any]) -> Speculate:
    refuse_unknown(given, "speculate", ("codes", "time_limit_s", "tags"))
    codes = given.get("codes")
    if not isinstance(codes, list) or not codes or not all(isinstance(code, str) for code in codes):
        raise BadParams("codes must be a list of strings, of at least one")
    if len(codes) > MAX_CANDIDATES:
        raise BadParams(f"codes must be at most {MAX_CANDIDATES}, not {len(codes)}: each runs in a process")
    return Speculate(codes=tuple(codes), time_limit_s=time_limit_s(given), tags=tags(given))


def _parse_adopt(given: Mapping[str, Any]) -> Adopt:
    refuse_unknown(given, "adopt", ("index",))
    return Adopt(candidate=count(given, "index"))


TIMELINE_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Params]] = {
    "rewind": _parse_rewind,
    "branch": _parse_branch,
    "speculate": _parse_speculate,
    "adopt": _parse_adopt,
}
