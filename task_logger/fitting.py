"""Makes the fields of a line fit to be written; only what JSON or a line cannot hold as it is comes here.

fields -> JSON values    NaN, 2**70, bytes, sets, too deep: {"type": …, "text": …}
       -> Unicode        lone surrogates: backslashreplace text, named in `lossy`, exact bytes in an artifact
       -> short enough   a text over 1 MiB keeps its ends; a line over 16 MiB moves its largest fields
       -> the fields, and the artifacts that hold what they no longer do
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import orjson

from task_logger.errors import LineTooLarge
from task_logger.fields import JSON_OPTIONS, artifact_fields
from task_logger.record import KEPT_TEXT_BYTES, MAX_TEXT_BYTES, Artifact, elide, keep_text

MAX_LINE_BYTES = 16 << 20
"""No line of a log is longer."""

MAX_BODY_BYTES = MAX_LINE_BYTES - (1 << 20)
"""Longest body: what is left is for the chain, and for the pieces that `recovered` names."""

MAX_DEPTH = 240
"""Deeper values become text: orjson writes 254 levels and jq reads 256, of which the line takes a few."""

_JSON = "application/json"
_UNMOVABLE = frozenset({"artifacts", "lossy", "error", "result"})


@dataclass(frozen=True, slots=True)
class FittedLine:
    """Fields that can be written, and the artifacts, still with `content`, that hold the rest."""

    fields: dict[str, object]
    artifacts: tuple[Artifact, ...]


def fit(fields: Mapping[str, object], max_body_bytes: int | None = None) -> FittedLine:
    """Make every field of a line representable, and all of them together short enough.

    `max_body_bytes` of `None` is what a plain line may have.
    Raises `LineTooLarge` where a line has too much that cannot be moved (its lists `artifacts` and `lossy`).
    """
    most_bytes = max_body_bytes or MAX_BODY_BYTES
    fitting = _Fitting()
    fitted = {name: fitting.top_level(name, value) for name, value in fields.items()}
    if len(_dumps(fitted)) > most_bytes:
        fitting.move_largest(fitted, most_bytes)
    if fitting.artifacts:
        known = fitted.get("artifacts") or []
        assert isinstance(known, list)
        fitted["artifacts"] = [*known, *map(artifact_fields, fitting.artifacts)]
    if fitting.lossy:
        named = fields.get("lossy") or ()
        assert isinstance(named, (list, tuple))
        fitted["lossy"] = list(dict.fromkeys([*named, *fitting.lossy]))
    body_bytes = len(_dumps(fitted))
    if body_bytes > most_bytes:
        raise LineTooLarge(
            f"a line of {body_bytes} bytes is left after all fields that can be moved to artifacts were; "
            f"at most {most_bytes} are possible"
        )
    return FittedLine(fitted, tuple(fitting.artifacts))


def as_json(value: object, depth: int = 0) -> object:
    """Return the value with all that JSON cannot hold as `{"type": …, "text": …}`; surrogates stay."""
    if value is None or isinstance(value, (str, bool)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else _tagged(value, _integer_text(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _tagged(value, repr(float(value)))
    if isinstance(value, (list, tuple)):
        return _tagged(value, _deep_text(value)) if depth >= MAX_DEPTH else _list_as_json(value, depth)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return _tagged(value, _deep_text(value)) if depth >= MAX_DEPTH else _dict_as_json(value, depth)
    return _tagged(value, _repr(value))


# Loops and not comprehensions, which are frames of their own: a value may be MAX_DEPTH deep.
def _list_as_json(values: list[object] | tuple[object, ...], depth: int) -> list[object]:
    out: list[object] = []
    for value in values:
        out.append(as_json(value, depth + 1))
    return out


def _dict_as_json(values: Mapping[str, object], depth: int) -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in values.items():
        out[str(key)] = as_json(value, depth + 1)
    return out


def _tagged(value: object, text: str) -> dict[str, object]:
    return {"type": type(value).__name__, "text": text}


def _integer_text(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python converts to decimal
        return hex(value)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001  # a value's own __repr__ may raise anything
        return f"<{type(value).__name__} whose repr raised {type(exc).__name__}>"


@dataclass(frozen=True)
class _Text:
    """Finished text on the stack of `_deep_text`; `closes` is the container that ends with it."""

    text: str
    closes: int | None = None


def _deep_text(value: object) -> str:
    """Write a value too deep for JSON parsers, with a stack of its own: recursion would end there too."""
    pieces: list[str] = []
    containers_open: set[int] = set()
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, _Text):
            pieces.append(item.text)
            if item.closes is not None:
                containers_open.discard(item.closes)
        elif not isinstance(item, (list, tuple, Mapping)):
            pieces.append(python_json(as_json(item)))
        elif id(item) in containers_open:
            pieces.append('"<contains itself>"')
        else:
            containers_open.add(id(item))
            stack.extend(reversed(list(_container_parts(item))))
    return "".join(pieces)


def _container_parts(
    container: list[object] | tuple[object, ...] | Mapping[object, object],
) -> Iterator[object]:
    is_dict = isinstance(container, Mapping)
    yield _Text("{" if is_dict else "[")
    for index, item in enumerate(container):
        comma = "," if index else ""
        if isinstance(container, Mapping):
            yield _Text(f"{comma}{python_json(item if isinstance(item, str) else _repr(item))}:")
            yield container[item]
        else:
            yield _Text(comma)
            yield item
    yield _Text("}" if is_dict else "]", closes=id(container))


def python_json(value: object) -> str:
    """JSON by the standard library, all ASCII: it also takes lone surrogates."""
    import json

    return json.dumps(value, separators=(",", ":"))


def _dumps(value: object) -> bytes:
    return orjson.dumps(value, option=JSON_OPTIONS)


def without_surrogates(value: object) -> object:
    """Return a JSON value with each lone surrogate as its escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return list(map(without_surrogates, value))
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


def _is_text(mime: str) -> bool:
    return mime.startswith("text/") or mime.endswith(
        ("+xml", "/javascript", "/json", "+json", "/markdown", "/latex")
    )


class _Fitting:
    """The artifacts and lossy fields that fitting one line has brought about so far."""

    def __init__(self) -> None:
        self.artifacts: list[Artifact] = []
        self.lossy: list[str] = []

    def top_level(self, name: str, value: object) -> object:
        if name in ("result", "error") and isinstance(value, Mapping):
            return self.bundle(name, value)
        if name == "displays" and isinstance(value, (list, tuple)):
            return [self.bundle(f"displays.{index}", item) for index, item in enumerate(value)]
        if name == "late_output" and isinstance(value, (list, tuple)):
            return [self.bundle(f"late_output.{index}", item) for index, item in enumerate(value)]
        return self.part(name, value)

    def bundle(self, name: str, parts: object) -> object:
        """Fit parts by name; one that is neither text nor short enough leaves the line for an artifact."""
        if not isinstance(parts, Mapping) or not all(isinstance(key, str) for key in parts):
            return self.value(name, parts)
        fitted: dict[str, object] = {}
        for key, part in parts.items():
            clean = str(without_surrogates(key))
            path = f"{name}.{clean}"
            if clean != key:
                self.keep_exact(path, python_json(key).encode())
            if "/" in clean and not _is_text(clean) and isinstance(part, str) and len(part) > MAX_TEXT_BYTES:
                self.add(path, part.encode("utf-8", "surrogatepass"), f"{clean};base64")
            else:
                fitted[clean] = self.part(path, part)
        return fitted

    def part(self, path: str, value: object) -> object:
        if isinstance(value, str):
            text, artifact, lossy = keep_text(path, value)
            if artifact is not None:
                self.artifacts.append(artifact)
            if lossy:
                self.lossy.append(path)
            return text
        return self.value(path, value)

    def value(self, path: str, value: object) -> object:
        try:
            plain = as_json(value)
        except RecursionError:  # the caller was deep in its own stack already
            plain = _tagged(value, _deep_text(value))
        try:
            _dumps(plain)
        except TypeError:  # lone surrogates are all that is left to refuse
            self.keep_exact(path, python_json(plain).encode())
            return without_surrogates(plain)
        return plain

    def keep_exact(self, path: str, data: bytes) -> None:
        self.add(path, data, _JSON)
        self.lossy.append(path)

    def add(self, path: str, data: bytes, mime: str) -> None:
        if all(artifact.field != path for artifact in self.artifacts):
            digest = sha256(data).hexdigest()
            self.artifacts.append(
                Artifact(field=path, sha256=digest, bytes=len(data), mime=mime, content=data)
            )

    def move_largest(self, fields: dict[str, object], most_bytes: int) -> None:
        """Shorten fields, the largest first, until the line is short enough."""
        excess_bytes = len(_dumps(fields)) - most_bytes
        sized = [(len(_dumps(owner[key])), path, owner, key) for path, owner, key in _movable(fields)]
        for size_bytes, path, owner, key in sorted(sized, key=lambda entry: -entry[0]):
            if excess_bytes <= 0:
                return
            owner[key] = self.shorter(path, owner[key])
            excess_bytes -= size_bytes - len(_dumps(owner[key]))

    def shorter(self, path: str, value: object) -> object:
        if not isinstance(value, str):
            self.add(path, _dumps(value), _JSON)
            return [] if isinstance(value, list) else {}
        data = value.encode()
        if len(data) <= 2 * KEPT_TEXT_BYTES:
            return value
        self.add(path, data, "text/plain; charset=utf-8")
        return elide(data[:KEPT_TEXT_BYTES], data[-KEPT_TEXT_BYTES:], total_bytes=len(data))[0]


def _movable(fields: dict[str, object]) -> Iterator[tuple[str, dict[str, object], str]]:
    for name, value in fields.items():
        if name in ("error", "result") and isinstance(value, dict):
            if len(value) > 100:  # one artifact, not thousands
                yield name, fields, name
            else:
                yield from (
                    (f"{name}.{key}", value, key)
                    for key, part in value.items()
                    if isinstance(part, (str, list, dict))
                )
        elif name not in _UNMOVABLE and isinstance(value, (str, list, dict)):
            yield name, fields, name
