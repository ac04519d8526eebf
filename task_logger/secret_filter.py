"""The pre-filter: one search in a line's bytes that tells whether a closer look is needed.

literals of rules, needles of known secrets --> each by its rarest character --> one pattern of bytes

It costs 3 to 6 us for a line of 500 bytes: the rarest characters come first in the pattern, so that the
search skips whatever usual lines consist of, and looks around only where one of them stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from task_logger.secret_rules import RULES
from task_logger.secret_values import KnownSecret

_RAREST_FIRST = "ZQXJKVWYUGHBFMPNLDOCRISTAE/=+%-_jqzxkvwb7869435210ygfpmhdcu.lsnoirate"
"""The characters of log lines, roughly from the rare to the frequent."""

_ENOUGH_CHARACTERS = 8
"""So much of a known secret is looked for: a line that has it by chance is rare."""


def secret_filter(secrets: Iterable[KnownSecret]) -> re.Pattern[bytes]:
    """Make the pattern that every text with something to hide matches, whether JSON escaped it or not."""
    around: dict[str, list[tuple[str, str]]] = {}  # by the rarest character: what is before it, and after
    for text in _literals():
        at = min(range(len(text)), key=lambda index: _rarity(text[index]))
        around.setdefault(text[at], []).append((text[:at], text[at + 1 :]))
    for secret in secrets:
        for needle in secret.needles or ():
            starts = range(max(1, len(needle) - _ENOUGH_CHARACTERS))
            at = min(starts, key=lambda index: _rarity(needle[index]))
            around.setdefault(needle[at], []).append(("", needle[at + 1 : at + _ENOUGH_CHARACTERS]))
    parts = [_one_of(character, dict.fromkeys(sides)) for character, sides in around.items()]
    return re.compile(b"|".join([*parts, *(rule.filter for rule in RULES if rule.filter)]))


def _one_of(character: str, sides: Iterable[tuple[str, str]]) -> bytes:
    """A pattern for the character with any of these texts before and after it."""
    escaped = re.escape(character)
    preceded, others, last = [], [], set()
    for before, after in sides:
        if before:
            last.add(re.escape(before[-1]))
            preceded.append(f"(?<={re.escape(before)}{escaped}){re.escape(after)}")
        else:
            others.append(re.escape(after))
    if preceded:  # one look at the character before tells almost always
        others.append(f"(?<=[{''.join(sorted(last))}]{escaped})(?:{'|'.join(preceded)})")
    return f"{escaped}(?:{'|'.join(others)})".encode()


def _literals() -> Iterable[str]:
    for rule in RULES:
        if rule.filter is None:
            yield from rule.literals


def _rarity(character: str) -> int:
    place = _RAREST_FIRST.find(character)
    return place if place >= 0 else len(_RAREST_FIRST)
