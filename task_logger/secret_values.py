"""Secrets that are known by their value: those in the environment, and those a program names.

environment --names a secret? worth hiding?--> KnownSecret: its forms, in text, in base64, in hex
                                               and one needle for each: in every text that holds the form
"""

from __future__ import annotations

import os
import re
from binascii import a2b_base64, a2b_hex, b2a_base64
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MIN_SECRET_CHARACTERS = 8
"""Shorter values of the environment are left alone: they would be found in texts that have nothing to do
with them."""

_MIN_LINE_CHARACTERS = 16
"""Lines of a value of several lines are secrets of their own, if they are as long as this."""

_SECRET_PARTS = (
    "SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "APIKEY", "PRIVATE_KEY", "COOKIE",
)  # fmt: skip
_SECRET_ENDS = ("_KEY", "_PWD", "_PASS", "_AUTH", "_PAT")

_KEY_SETTINGS = ("TASK_LOG_KEY", "TASK_LOG_NEW_KEY", "TASK_LOG_SEAL_KEY")

_URL_PASSWORD = r"://([^\s/?#:@\"'<>]{0,200}):(?![{$<*])([^\s/?\"'<>]{3,256})@"
"""User and password, as the rule `url_password` has them."""

_BASE64_PART = r"(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{12}|\+|=$"
"""What paths hardly have, and keys in base64 do: one in 64 of them begins with a slash."""

_COMMON = frozenset(
    ("disabled", "enabled", "required", "optional", "password", "changeme", "undefined", "localhost",
     "development", "production", "anonymous", "automatic", "username", "interactive")
)  # fmt: skip

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
"""Characters that no form of text escapes."""

_STANDARD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_URL_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_MIN_NEEDLE_CHARACTERS = 5


class Encoded(NamedTuple):
    """What is in every base64 text of a value at one of its three alignments.

    `cut_left` and `cut_right` say that the character before, or after, still holds bits of the value.
    """

    text: str
    alphabet: frozenset[str]
    cut_left: bool
    cut_right: bool


class KnownSecret(NamedTuple):
    """One value: how it can stand in a text.

    `texts` are its forms by escape (as it is, JSON, `repr`, URL, HTML), `encoded` those in base64, `hexes`
    those in hex. Each text that holds a form holds one of `needles` as well; `None` where there is none.
    """

    name: str
    value: str
    texts: tuple[str, ...]
    encoded: tuple[Encoded, ...]
    hexes: tuple[str, ...]
    needles: tuple[str, ...] | None


def names_a_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret.

    Wider than what a worker is not given: hiding too much costs a program nothing.
    """
    upper = name.upper()
    return upper.endswith(_SECRET_ENDS) or any(part in upper for part in _SECRET_PARTS)


def is_worth_hiding(value: str) -> bool:
    """Whether a value can be a secret: not short, not a number, a path, a plain URL or a common word."""
    if len(value) < MIN_SECRET_CHARACTERS or value.lower() in _COMMON or len(set(value)) < 4:
        return False
    if value.startswith(("~/", "./", "../", "keyring:")) or (value.isdecimal() and len(value) < 12):
        return False
    if value.startswith("/") and re.search(_BASE64_PART, value) is None:
        return False
    return not (value.startswith(("http://", "https://")) and "@" not in value)


def secrets_in(environment: Mapping[str, str]) -> list[KnownSecret]:
    """Return what in an environment is to be hidden, sorted by name; each value once."""
    found: dict[str, str] = {}
    for name in sorted(environment):
        for value in _values_of(name, environment[name]):
            found.setdefault(value, name)
    return [known_secret(name, value) for value, name in found.items()]


def _values_of(name: str, value: str) -> Iterable[str]:
    if name in _KEY_SETTINGS and value.startswith("file:"):
        return _key_in_file(value.removeprefix("file:"))
    return values_within(value) if names_a_secret(name) else _url_passwords(value)


def values_within(value: str) -> list[str]:
    """Return a value, its lines where it has several, and passwords in URLs: all may be printed apart."""
    return _value_and_lines(value) + _url_passwords(value)


def _url_passwords(value: str) -> list[str]:
    """The passwords of URLs, as they stand there and decoded; none that is the user's name, or the scheme."""
    found: list[str] = []
    if "://" in value and "@" in value:
        for match in re.finditer(_URL_PASSWORD, value):
            from urllib.parse import unquote_to_bytes  # most environments have no such URL

            user, password = match.groups()
            if password != user and not value.endswith(password, 0, match.start()):
                found += [password, unquote_to_bytes(password).decode("utf-8", "surrogateescape")]
    return [password for password in dict.fromkeys(found) if is_worth_hiding(password)]


def _value_and_lines(value: str) -> list[str]:
    values = [value.strip()] if is_worth_hiding(value.strip()) else []
    if "\n" in value.strip():
        values += [
            line.strip()
            for line in value.splitlines()
            if len(line.strip()) >= _MIN_LINE_CHARACTERS and not line.startswith("-----")
        ]
    return values


def _key_in_file(path: str) -> list[str]:
    """The key itself: as the file has it, and its bytes where that is hex or base64."""
    try:
        descriptor = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            content = file.read(4096).strip()
    except (OSError, ValueError):
        return []  # who opens the log says what is wrong with it
    found = [content]
    for decode in (a2b_hex, a2b_base64):
        try:
            found.append(decode(content))
        except ValueError:
            pass
    texts = [key.decode("utf-8", "surrogateescape") for key in found]
    return [text for text in texts if is_worth_hiding(text)]


def known_secret(name: str, value: str) -> KnownSecret:
    """Work out the forms of a value."""
    data = value.encode("utf-8", "surrogateescape")
    texts = _text_forms(value)
    encoded = tuple(_base64_forms(data))
    hexes = (data.hex(), data.hex().upper())
    return KnownSecret(
        name=placeholder_name(name),
        value=value,
        texts=texts,
        encoded=encoded,
        hexes=hexes,
        needles=_needles(value, encoded, hexes),
    )


def placeholder_name(name: str) -> str:
    """The name of a secret as placeholders have it: ASCII letters, digits and `_`, at most 64."""
    return "".join(char if char in _SAFE and char not in ".-" else "_" for char in name)[:64] or "_"


def _text_forms(value: str) -> tuple[str, ...]:
    """As it is, and as the usual escapes write it, longest first."""
    if _SAFE.issuperset(value):
        return (value,)
    import json

    data = value.encode("utf-8", "surrogateescape")
    forms = {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        ascii(value)[1:-1],
        repr(data)[2:-1],
        json.dumps(value)[1:-1].replace("/", "\\/"),  # as PHP and some others write it
    }
    tags = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for double, single in (('"', "'"), ("&quot;", "&#x27;"), ("&#34;", "&#39;")):  # html.escape; Jinja
        forms.add(tags.replace('"', double).replace("'", single))
    for unescaped in (b"", b"/", b"~", b"/~"):
        for escape in ("%%%02X", "%%%02x"):
            quoted = "".join(
                chr(byte) if chr(byte) in _SAFE or byte in unescaped else escape % byte for byte in data
            )
            forms |= {quoted, quoted.replace("%20", "+")}
    forms |= {json.dumps(form)[1:-1] for form in forms if "\\" in form}  # a repr within JSON
    return tuple(sorted(forms, key=lambda form: -len(form)))


def _base64_forms(data: bytes) -> Iterable[Encoded]:
    for shift in range(3):
        whole = b2a_base64(b"\0" * shift + data, newline=False).decode()
        start = (8 * shift + 5) // 6
        core = whole[start : 8 * (shift + len(data)) // 6]
        for text, alphabet in ((core, _STANDARD), (core.replace("+", "-").replace("/", "_"), _URL_SAFE)):
            yield Encoded(
                text=text, alphabet=alphabet, cut_left=shift > 0, cut_right=(shift + len(data)) % 3 != 0
            )


def _needles(value: str, encoded: Iterable[Encoded], hexes: Iterable[str]) -> tuple[str, ...] | None:
    plain = _longest_run(value, _SAFE)
    if len(plain) < _MIN_NEEDLE_CHARACTERS:
        return None
    found = [plain, *hexes]
    for form in encoded:
        run = _longest_run(form.text, _STANDARD & _URL_SAFE)
        found.append(run if len(run) >= _MIN_NEEDLE_CHARACTERS else form.text)
    return tuple(dict.fromkeys(found))


def _longest_run(text: str, characters: frozenset[str]) -> str:
    runs = "".join(char if char in characters else "\0" for char in text).split("\0")
    return max(runs, key=len)
