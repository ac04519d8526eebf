"""What `complete` and `inspect` take; see `json_repl.params`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from json_repl.params import BadParams, count, refuse_unknown, text

if TYPE_CHECKING:
    from json_repl.params import Params


class Complete(NamedTuple):
    """Params of `complete`: the cursor, in code points, is in that code."""

    code: str
    cursor: int


class Inspect(NamedTuple):
    """Params of `inspect`; `detail_level` 1 asks for the source, too."""

    code: str
    cursor: int
    detail_level: int = 0


def _parse_complete(given: Mapping[str, Any]) -> Complete:
    refuse_unknown(given, "complete", ("code", "cursor"))
    return Complete(code=text(given, "code"), cursor=_cursor(given))


def _parse_inspect(given: Mapping[str, Any]) -> Inspect:
    refuse_unknown(given, "inspect", ("code", "cursor", "detail_level"))
    code, cursor, detail_level = text(given, "code"), _cursor(given), given.get("detail_level", 0)
    if isinstance(detail_level, bool) or detail_level not in (0, 1):
        raise BadParams("detail_level must be 0 or 1")
    return Inspect(code=code, cursor=cursor, detail_level=detail_level)


def _cursor(given: Mapping[str, Any]) -> int:
    """A place in the code, which has as many characters as it counts code points."""
    cursor, end = count(given, "cursor"), len(given["code"])
    if cursor > end:
        raise BadParams(f"cursor must be from 0 to {end}, the code's length in code points, not {cursor}")
    return cursor


CURSOR_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Params]] = {
    "complete": _parse_complete,
    "inspect": _parse_inspect,
}
