"""What a value is, in a few JSON values, without running any code of the user's; and previews for people.

value -> its true type -> name of the type, and what values of known types can be asked
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable
from itertools import islice
from types import ModuleType
from typing import Any

PREVIEW_CHARACTERS = 80
PREVIEW_ITEMS = 6
PREVIEW_DEPTH = 3

_SIZED = frozenset(map(id, (list, dict, set, frozenset, tuple, range)))
_SIZED_IN_BYTES = frozenset(map(id, (str, bytes, bytearray)))
_SIZED_OF_COLLECTIONS = ("deque", "OrderedDict", "defaultdict")
_FEW_BYTES = frozenset(map(id, (int, float, bool, complex, type(None))))
_type_slots: Any = type.__dict__
_type_name: Callable[[type], str] = _type_slots["__qualname__"].__get__
_type_module: Callable[[type], object] = _type_slots["__module__"].__get__


def describe(value: object) -> dict[str, object]:
    """Describe a value for a record: `type`; `length`, or `shape` and `dtype`; `bytes` where cheap.

    Only values of exactly the types known here are asked, so that no `__len__` or `shape` of a user runs.
    """
    kind: Any = type(value)
    sized: Any = value
    if id(kind) in _FEW_BYTES:
        return {"type": kind.__name__}
    if id(kind) in _SIZED:
        return {"type": kind.__name__, "length": len(sized)}
    if id(kind) in _SIZED_IN_BYTES:
        return {"type": kind.__name__, "length": len(sized), "bytes": sys.getsizeof(value)}
    return {"type": type_name(kind), **_measures(value, kind)}


def type_name(kind: type) -> str:
    """Return the name a person expects: `int`, `numpy.ndarray`, and `Name` for a class of the user's."""
    name, module = _type_name(kind), _type_module(kind)
    if type(module) is not str or module in ("builtins", "__main__") or module not in sys.modules:
        return name
    top = module.partition(".")[0]
    return f"{top if _loaded(top, name) is kind else module}.{name}"


def _measures(value: Any, kind: type) -> dict[str, object]:  # noqa: PLR0911  a table, in effect
    try:
        if kind is _loaded("numpy", "ndarray"):
            return {"shape": list(value.shape), "dtype": str(value.dtype), "bytes": value.nbytes}
        if kind is _loaded("pandas", "DataFrame"):
            return {"shape": list(value.shape)}
        if kind is _loaded("pandas", "Series"):
            return {"shape": list(value.shape), "dtype": str(value.dtype)}
        if kind is _loaded("array", "array"):
            return {"length": len(value), "bytes": len(value) * value.itemsize}
        if any(kind is _loaded("collections", name) for name in _SIZED_OF_COLLECTIONS):
            return {"length": len(value)}
    except Exception:  # noqa: BLE001  a damaged array or frame still has its type
        return {}
    return {}


def _loaded(module: str, name: str) -> object:
    found = sys.modules.get(module)
    return found.__dict__.get(name) if type(found) is ModuleType else None


def preview(value: object, limit: int = PREVIEW_CHARACTERS) -> str:
    """Return a repr of at most `limit` characters; what a `__repr__` of the user's raises is contained."""
    text = _short_repr(value, limit, PREVIEW_DEPTH)
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def _short_repr(value: Any, limit: int, depth: int) -> str:
    kind = type(value)
    if kind is str or kind is bytes or kind is bytearray:
        return repr(value[: limit + 1])
    if kind is int and value.bit_length() > 4 * limit + 64:
        return f"<int of {value.bit_length()} bits>"
    if kind in (list, tuple, set, frozenset, dict):
        return _short_items(value, kind, limit, depth)
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  anything can come out of a user's __repr__
        return f"<{type_name(kind)}: repr raised {type_name(type(error))}>"
    return " ".join(str.__str__(text)[: 4 * limit].split())


def _short_items(value: Any, kind: type, limit: int, depth: int) -> str:
    start, end = ("[", "]") if kind is list else ("(", ")") if kind is tuple else ("{", "}")
    if kind is frozenset:
        start, end = "frozenset({", "})"
    if not value:
        return repr(value)
    if depth == 0:
        return f"{start}…{end}"
    inner = [
        ": ".join(_short_repr(part, limit, depth - 1) for part in item)
        for item in islice(_as_parts(value, kind), PREVIEW_ITEMS)
    ]
    if len(value) > PREVIEW_ITEMS:
        inner.append("…")
    elif kind is tuple and len(value) == 1:
        return f"({inner[0]},)"
    return f"{start}{', '.join(inner)}{end}"


def _as_parts(value: Any, kind: type) -> Iterable[tuple[object, ...]]:
    if kind is dict:
        return value.items()  # type: ignore[no-any-return]  # of a dict
    return ((item,) for item in value)


def describe_all(namespace: dict[str, object], hidden: Container[str]) -> list[dict[str, object]]:
    """Describe every variable of a namespace, by name: `name`, what `describe` says, and `preview`."""
    names = [
        name for name in tuple(namespace) if type(name) is str and name[:1] != "_" and name not in hidden
    ]
    found = []
    for name in sorted(names):
        try:
            value = namespace[name]
        except KeyError:  # a thread, or a __repr__, deleted it meanwhile
            continue
        found.append({"name": name, **describe(value), "preview": preview(value)})
    return found
