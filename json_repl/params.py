"""What each method takes: its params checked by hand, so that a wrong one is named with what it should be.

Values here and in `json_repl.messages` are named tuples: a dataclass costs 0.4 ms at each start of a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from json_repl.cursor_params import Complete, Inspect
    from json_repl.timeline_params import Adopt, Branch, Rewind, Speculate


class Execute(NamedTuple):
    """Params of `execute`; `time_limit_s` of `None` means the session's own limit."""

    code: str
    time_limit_s: float | None = None
    stream: bool = False
    allow_input: bool = False
    tags: Mapping[str, object] | None = None
    atomic: bool = False


class History(NamedTuple):
    """Params of `history`; `last` of `None` means all records."""

    last: int | None = None


class InputReply(NamedTuple):
    """Params of `input_reply`: the line that `input()` returns, without its end; `None` is `EOFError`."""

    text: str | None


Params: TypeAlias = (
    "Execute | Complete | Inspect | History | InputReply | Rewind | Branch | Speculate | Adopt | None"
)
"""`None`: the method takes none."""


class BadParams(Exception):
    """Says which param is wrong and what it should be; `json_repl.messages` makes it a reply."""


def _parse_execute(given: Mapping[str, Any]) -> Execute:
    refuse_unknown(given, "execute", ("code", "time_limit_s", "stream", "allow_input", "tags", "atomic"))
    return Execute(
        code=text(given, "code"),
        time_limit_s=time_limit_s(given),
        stream=flag(given, "stream"),
        allow_input=flag(given, "allow_input"),
        tags=tags(given),
        atomic=flag(given, "atomic"),
    )


def _parse_history(given: Mapping[str, Any]) -> History:
    refuse_unknown(given, "history", ("last",))
    return History(last=None if given.get("last") is None else count(given, "last"))


def _parse_input_reply(given: Mapping[str, Any]) -> InputReply:
    refuse_unknown(given, "input_reply", ("text",))
    if "text" in given and given["text"] is None:
        return InputReply(text=None)
    return InputReply(text=text(given, "text"))


def _parse_nothing(given: Mapping[str, Any]) -> None:
    refuse_unknown(given, "this method", ())


def refuse_unknown(given: Mapping[str, Any], method: str, known: tuple[str, ...]) -> None:
    """Raise `BadParams` for a param that the method doesn't take."""
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "no params"
            raise BadParams(f"no such param: {name[:100]!r}; {method} takes {takes}")


def text(given: Mapping[str, Any], name: str) -> str:
    """A param that is a string; raises `BadParams`."""
    if name not in given:
        raise BadParams(f"{name} is missing; it must be a string")
    value = given[name]
    if not isinstance(value, str):
        raise BadParams(f"{name} must be a string")
    return value


def count(given: Mapping[str, Any], name: str) -> int:
    """A param that is an integer of 0 or more, of 63 bits at most; raises `BadParams`."""
    if name not in given:
        raise BadParams(f"{name} is missing; it must be an integer of 0 or more")
    value = given[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise BadParams(f"{name} must be an integer of 0 or more, below 2**63")
    return value


def flag(given: Mapping[str, Any], name: str) -> bool:
    """A param that is true or false, false where it is left out; raises `BadParams`."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise BadParams(f"{name} must be true or false")
    return value


def tags(given: Mapping[str, Any]) -> Mapping[str, object] | None:
    """The param `tags`; raises `BadParams`."""
    value = given.get("tags")
    if value is not None and not isinstance(value, dict):
        raise BadParams("tags must be an object")
    return value


def time_limit_s(given: Mapping[str, Any]) -> float | None:
    """The param `time_limit_s`; raises `BadParams`."""
    value = given.get("time_limit_s")
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_TIME_LIMIT_S:
        raise BadParams("time_limit_s must be a number of seconds above 0, at most a year, or null")
    return float(value)


MAX_COUNT = 2**63 - 1
"""What a reply can name again; no execution has such a number anyway."""

MAX_TIME_LIMIT_S = 366 * 24 * 3600
"""Timers of the system overflow not far above this; no limit at all is `null`."""


def _parse_cursor(method: str) -> Callable[[Mapping[str, Any]], Params]:
    """As `_parse_timeline`."""

    def parse(given: Mapping[str, Any]) -> Params:
        from json_repl.cursor_params import CURSOR_PARSERS

        return CURSOR_PARSERS[method](given)

    return parse


def _parse_timeline(method: str) -> Callable[[Mapping[str, Any]], Params]:
    """The parser of a method that most servers never hear of: its types are made when they do."""

    def parse(given: Mapping[str, Any]) -> Params:
        from json_repl.timeline_params import TIMELINE_PARSERS

        return TIMELINE_PARSERS[method](given)

    return parse


PARAMS_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Params]] = {
    "execute": _parse_execute,
    "interrupt": _parse_nothing,
    "restart": _parse_nothing,
    "variables": _parse_nothing,
    "complete": _parse_cursor("complete"),
    "inspect": _parse_cursor("inspect"),
    "history": _parse_history,
    "input_reply": _parse_input_reply,
    "snapshots": _parse_nothing,
    "snapshot": _parse_nothing,
    "rewind": _parse_timeline("rewind"),
    "branch": _parse_timeline("branch"),
    "speculate": _parse_timeline("speculate"),
    "adopt": _parse_timeline("adopt"),
    "discard": _parse_nothing,
    "ping": _parse_nothing,
    "shutdown": _parse_nothing,
}

ONE_SESSION_METHODS = frozenset(PARAMS_PARSERS) - {"input_reply", "ping"}
"""These also take `session_id`, that of a branch; without it, the process's first session is meant."""
