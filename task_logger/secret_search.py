"""What one session hides, and where it is in a text.

environment, own values and patterns --> Secrets --find--> the places of a text to hide, none overlapping

Found are known values in all their forms, well-known tokens, and what own patterns match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from task_logger.errors import ConfigurationError
from task_logger.secret_filter import secret_filter
from task_logger.secret_rules import MAX_SECRET_CHARACTERS, find_by_rules
from task_logger.secret_values import KnownSecret, known_secret, placeholder_name, secrets_in

_MIN_OWN_CHARACTERS = 4


class Place(NamedTuple):
    """Where a secret stands in a text; `value` is what its placeholder's tag is of."""

    start: int
    end: int
    name: str
    value: str


class Secrets:
    """What one session hides; grows by `add`, which one thread calls at a time."""

    def __init__(
        self, environment: Mapping[str, str], own: Mapping[str, str | re.Pattern[str]] | None = None
    ) -> None:
        """Hide the environment's secrets, well-known tokens, and own values and patterns by name.

        Raises `ConfigurationError` for one that can't be.
        """
        self._known: tuple[KnownSecret, ...] = tuple(secrets_in(environment))
        self._patterns: tuple[tuple[str, re.Pattern[str]], ...] = ()
        for name, secret in (own or {}).items():
            self._add(name, secret)
        self._make_filter()

    def add(self, name: str, secret: str | re.Pattern[str]) -> None:
        """Hide this as well from now on; raises `ConfigurationError` for what would hide everything."""
        self._add(name, secret)
        self._make_filter()

    def may_be_in(self, data: bytes) -> bool:
        """Whether a closer look is needed; false means that there is nothing, in JSON's escapes neither."""
        return self._search(data) is not None or self._looks_always

    def find(self, text: str) -> list[Place]:
        """Return the places to hide, in order; where some overlap, one place is all of them."""
        found: list[Place] = []
        for start, end in self._neighbourhoods(text):
            part = text[start:end]
            found += [place for secret in self._known for place in _places_of(secret, part, start)]
            found += [
                Place(start + first, start + last, name, part[first:last])
                for first, last, name in find_by_rules(part)
            ]
        for name, pattern in self._patterns:
            for match in pattern.finditer(text):
                if match.end() > match.start():
                    found.append(Place(*match.span(), name, match[0]))
        return _apart(found, text)

    def _neighbourhoods(self, text: str) -> list[tuple[int, int]]:
        """The parts of a long text around what the pre-filter finds; outside of them there is nothing."""
        if len(text) < 4 * self._reach or self._unfiltered or not text.isascii():
            return [(0, len(text))]
        parts: list[tuple[int, int]] = []
        data, at = text.encode(), 0
        while (match := self._search(data, at)) is not None:
            start, at = max(0, match.start() - self._reach), match.end() + self._reach
            if parts and start <= parts[-1][1]:
                start = parts.pop()[0]
            parts.append((start, min(len(text), at + self._reach)))
        return parts

    def _add(self, name: str, secret: str | re.Pattern[str]) -> None:
        if not isinstance(name, str):
            raise ConfigurationError("redact", "takes secrets by name: {'NAME': value or compiled pattern}")
        if isinstance(secret, re.Pattern):
            if not isinstance(secret.pattern, str) or secret.search("") is not None:
                raise ConfigurationError("redact", "takes patterns of text that don't match the empty text")
            self._patterns += ((placeholder_name(name), secret),)
        elif isinstance(secret, str) and len(secret) >= _MIN_OWN_CHARACTERS:
            self._known += (known_secret(name, secret),)
        else:
            raise ConfigurationError(
                "redact", f"takes texts of at least {_MIN_OWN_CHARACTERS} characters and compiled patterns"
            )

    def _make_filter(self) -> None:
        self._search = secret_filter(self._known).search
        self._unfiltered = any(secret.needles is None for secret in self._known)
        self._looks_always = self._unfiltered or bool(self._patterns)
        longest = max((len(form) for secret in self._known for form in secret.texts), default=0)
        self._reach = max(MAX_SECRET_CHARACTERS, 2 * longest)


def _places_of(secret: KnownSecret, text: str, offset: int) -> Iterator[Place]:
    """Where a value is in a part of a text that begins at `offset`."""
    if secret.needles is not None and not any(needle in text for needle in secret.needles):
        return
    for form in (*secret.texts, *secret.hexes):
        for start in _starts(form, text):
            yield Place(offset + start, offset + start + len(form), secret.name, secret.value)
    for encoded in secret.encoded:
        for start in _starts(encoded.text, text):
            first, end = start, start + len(encoded.text)
            # What is cut off holds some bits of the value, in the characters beside.
            if encoded.cut_left and start > 0 and text[start - 1] in encoded.alphabet:
                first -= 1
            if encoded.cut_right and text[end : end + 1] in encoded.alphabet:
                end += 1
            yield Place(offset + first, offset + end, f"{secret.name}_base64", secret.value)


def _starts(form: str, text: str) -> Iterator[int]:
    at = text.find(form)
    while at >= 0:
        yield at
        at = text.find(form, at + 1)


def _apart(found: list[Place], text: str) -> list[Place]:
    """Join places that overlap: all is hidden, under the name of the one that holds the others."""
    found.sort(key=lambda place: (place.start, -place.end))  # stable: known values stay before rules
    apart: list[Place] = []
    for place in found:
        if not apart or place.start >= apart[-1].end:
            apart.append(place)
        elif place.end > apart[-1].end:
            last = apart[-1]
            apart[-1] = Place(last.start, place.end, last.name, text[last.start : place.end])
    return apart
