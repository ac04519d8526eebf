"""What can be typed next: names, attributes, keys, modules.

code, cursor --> Place --> candidates in the namespace --> those that begin with what is typed --> reply

Calls are never evaluated, nor properties (see `lookup`), and nothing is imported. `__dir__` is asked, and may
do anything: the caller bounds the time.
"""

from __future__ import annotations

import keyword
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from repl_kernel.code_place import Place, place_of
from repl_kernel.cursor_reply import check_cursor, completion_reply
from repl_kernel.lookup import NotFound, find_stored

MAX_KEY_CHARACTERS = 200


def complete(namespace: Mapping[str, object], code: str, cursor: int) -> dict[str, object]:
    """The content of Jupyter's `complete_reply`; raises `RequestRefused` for a cursor outside the code."""
    check_cursor(code, cursor)
    place = place_of(code, cursor)
    try:
        matches = _matches(namespace, place)
    except NotFound:
        matches = []
    return completion_reply(matches, place.start, cursor)


def _matches(namespace: Mapping[str, object], place: Place) -> list[str]:
    if place.kind == "name":
        return _names(namespace, place.prefix)
    if place.kind == "attribute":
        return _chosen(_attributes(find_stored(namespace, place.owner)), place.prefix)
    if place.kind == "key":
        return _keys(namespace, place)
    if place.kind == "module":
        return _modules(place.prefix)
    if place.kind == "member":
        return _members(place.owner, place.prefix)
    return []


def _names(namespace: Mapping[str, object], prefix: str) -> list[str]:
    """Variables first, then built-in names and keywords."""
    variables = _chosen(tuple(namespace), prefix)
    others = (*sys.modules["builtins"].__dict__, *keyword.kwlist, *keyword.softkwlist)
    known = set(variables)
    return variables + [name for name in _chosen(others, prefix) if name not in known]


def _chosen(names: Iterable[object], prefix: str) -> list[str]:
    """Those that begin with the prefix, sorted; names that begin with `_` only where it does, too."""
    return sorted(
        {
            name
            for name in names
            if type(name) is str
            and name.startswith(prefix)
            and (prefix[:1] == "_" or name[:1] != "_")
            and name.isidentifier()
        }
    )


def _attributes(value: object) -> Iterable[object]:
    try:
        return dir(value)
    except Exception:  # noqa: BLE001 - a `__dir__` of the user's may raise anything
        return _stored_names(value)


def _stored_names(value: object) -> Iterable[object]:
    """What is in the object's `__dict__` and in its classes."""
    try:
        own: Any = object.__getattribute__(value, "__dict__")
    except Exception:  # noqa: BLE001 - it has none, or a class made it into something else
        own = {}
    classes = type.mro(value) if type(value) is type else type(value).__mro__
    return [*(own if type(own) is dict else ()), *(name for base in classes for name in base.__dict__)]


def _keys(namespace: Mapping[str, object], place: Place) -> list[str]:
    """The keys of a dict that are short texts, as they are written between its quotes, or with quotes."""
    value: Any = find_stored(namespace, place.owner)
    keys = [key for key in dict.keys(value) if type(key) is str] if issubclass(type(value), dict) else []
    short = [key for key in keys if len(key) <= MAX_KEY_CHARACTERS]
    if not place.quote:
        return sorted(map(repr, short)) + _names(namespace, "")
    written = {_written(key, place.quote) for key in short}
    return sorted(text for text in written if text.startswith(place.prefix))


def _written(key: str, quote: str) -> str:
    """A key as it is written between these quotes."""
    text = "".join(letter if letter in "'\"" else repr(letter)[1:-1] for letter in key)
    return text.replace(quote, "\\" + quote)


def _modules(prefix: str) -> list[str]:
    parent, dot, last = prefix.rpartition(".")
    if dot:
        return [f"{parent}.{name}" for name in _chosen(_submodules(parent), last)]
    import pkgutil

    found = (info.name for info in pkgutil.iter_modules())
    loaded = (name for name in tuple(sys.modules) if "." not in name)
    return _chosen((*sys.stdlib_module_names, *loaded, *found), prefix)


def _members(module_name: str, prefix: str) -> list[str]:
    """What can be imported from a module; of one that isn't loaded only its modules."""
    module = sys.modules.get(module_name)
    names = _attributes(module) if type(module) is ModuleType else ()
    return _chosen((*names, *_submodules(module_name)), prefix)


def _submodules(package: str) -> list[str]:
    """The modules in a package, which isn't imported for it."""
    import pkgutil
    from importlib.machinery import PathFinder

    module = sys.modules.get(package)
    path: Any = None
    if module is not None:
        path = getattr(module, "__path__", None)
    else:
        for position, _ in enumerate(package.split(".")):
            spec = PathFinder.find_spec(".".join(package.split(".")[: position + 1]), path)
            path = None if spec is None else spec.submodule_search_locations
            if path is None:
                break
    return [] if path is None else [info.name for info in pkgutil.iter_modules(list(path))]
