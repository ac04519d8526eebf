"""What is being typed where a cursor stands in code; looks at the text alone.

code, cursor --> strings, comments, brackets before it --> Place
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

PlaceKind = Literal["nothing", "name", "attribute", "key", "module", "member"]

_OPENINGS = re.compile(r"#|\"\"\"|'''|\"|'|[()\[\]{}]")
_STRING_ENDS = {
    '"""': re.compile(r'(?:[^"\\]++|\\.|"(?!""))*+"""', re.DOTALL),
    "'''": re.compile(r"(?:[^'\\]++|\\.|'(?!''))*+'''", re.DOTALL),
    '"': re.compile(r'(?:[^"\\\n]++|\\.)*+(?:"|\n)', re.DOTALL),
    "'": re.compile(r"(?:[^'\\\n]++|\\.)*+(?:'|\n)", re.DOTALL),
}
_IMPORT = re.compile(r"\s*import\s")
_FROM = re.compile(r"\s*from\s+(?P<module>[\w.]*+)(?P<import>\s+import\b\s*\(?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a cursor is at the end of: `prefix`, which begins at `start`.

    `name`; `attribute` of `owner`; `key` of `owner`, in `quote` (empty: none typed yet); `module` that is
    imported; `member` of the module `owner` that is imported from it; `nothing` that has a name.
    """

    kind: PlaceKind
    start: int
    prefix: str = ""
    owner: str = ""
    quote: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What is open at a cursor: a comment, a string from its quote on, brackets, the innermost last."""

    in_comment: bool = False
    quote: str = ""
    quote_at: int = 0
    brackets: tuple[int, ...] = ()


def place_of(code: str, cursor: int) -> Place:
    """What is being typed at the cursor."""
    before = _look_before(code, cursor)
    if before.in_comment:
        return Place(kind="nothing", start=cursor)
    if before.quote:
        return _in_string(code, cursor, before)
    imported = _in_import(code, cursor, before)
    if imported is not None:
        return imported
    text = _dotted_before(code, cursor)
    owner, dot, prefix = text.rpartition(".")
    if dot:
        kind: PlaceKind = "attribute" if _is_dotted(owner) else "nothing"
        return Place(kind=kind, start=cursor - len(prefix), prefix=prefix, owner=owner)
    if not text and code[cursor - 1 : cursor] == "[" and _is_dotted(_dotted_before(code, cursor - 1)):
        return Place(kind="key", start=cursor, owner=_dotted_before(code, cursor - 1))
    is_number = text[:1].isdecimal()
    return Place(kind="nothing" if is_number else "name", start=cursor - len(text), prefix=text)


def names_at(code: str, cursor: int) -> list[str]:
    """The dotted names that the cursor may be about: the one it is in, then those called around it."""
    before = _look_before(code, cursor)
    found: list[str] = []
    if not before.in_comment and not before.quote:
        end = cursor
        while end < len(code) and _is_letter(code[end]):
            end += 1
        found.append(_dotted_before(code, end))
    if not before.in_comment:
        calls = (at for at in reversed(before.brackets) if code[at] == "(")
        found += (_dotted_before(code, at) for at in calls)
    return [name for name in found if _is_dotted(name)]


def _in_string(code: str, cursor: int, before: _Before) -> Place:
    at = before.quote_at
    owner = _dotted_before(code, at - 1) if code[at - 1 : at] == "[" else ""
    if len(before.quote) > 1 or not _is_dotted(owner):
        return Place(kind="nothing", start=cursor)
    return Place(kind="key", start=at + 1, prefix=code[at + 1 : cursor], owner=owner, quote=before.quote)


def _in_import(code: str, cursor: int, before: _Before) -> Place | None:
    """The place where the statement at the cursor is an import, else `None`."""
    first = before.brackets[0] if before.brackets else cursor
    statement = code[code.rfind("\n", 0, first) + 1 : cursor].rpartition(";")[2]
    match = _IMPORT.match(statement)
    if match is not None:
        return _imported("module", cursor, statement[match.end() :].rpartition(",")[2].lstrip())
    match = _FROM.match(statement)
    if match is None:
        return None
    if match["import"] is None:
        return _imported("module", cursor, match["module"]) if match.end() == len(statement) else None
    prefix = statement[match.end() :].rpartition(",")[2].lstrip()
    return _imported("member", cursor, prefix, match["module"])


def _imported(kind: PlaceKind, cursor: int, prefix: str, owner: str = "") -> Place:
    is_whole = all(_is_letter(letter) or letter == "." for letter in prefix)
    if not is_whole or owner.startswith(".") or prefix.startswith("."):
        return Place(kind="nothing", start=cursor)
    return Place(kind=kind, start=cursor - len(prefix), prefix=prefix, owner=owner)


def _look_before(code: str, cursor: int) -> _Before:
    brackets: list[int] = []
    at = 0
    while (match := _OPENINGS.search(code, at, cursor)) is not None:
        opening, at = match[0], match.end()
        if opening == "#":
            at = code.find("\n", at, cursor)
            if at < 0:
                return _Before(in_comment=True, brackets=tuple(brackets))
        elif opening in "([{":
            brackets.append(match.start())
        elif opening in ")]}":
            del brackets[-1:]
        else:
            end = _STRING_ENDS[opening].match(code, at, cursor)
            if end is None:
                return _Before(quote=opening, quote_at=match.start(), brackets=tuple(brackets))
            at = end.end()
    return _Before(brackets=tuple(brackets))


def _dotted_before(code: str, end: int) -> str:
    """The letters and dots that end there."""
    start = end
    while start > 0 and (code[start - 1] == "." or _is_letter(code[start - 1])):
        start -= 1
    return code[start:end]


def _is_letter(character: str) -> bool:
    return ("_" + character).isidentifier()


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))
