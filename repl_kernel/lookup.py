"""The object that a dotted name means, found without running code of the user's.

Only what is stored is found: variables, what is in an object's `__dict__`, and what its class holds. A
`property`, a `__getattr__` and other code that would make up a value are not asked.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from inspect import getattr_static
from typing import Any

_PLAIN_DESCRIPTORS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    staticmethod,
    classmethod,
)
"""What a class holds that gives its value without code of the user's."""


class NotFound(LookupError):
    """No object has that name, or one would have to be made up to know."""


def find(namespace: Mapping[str, object], dotted: str) -> object:
    """The object of that name; raises `NotFound`. A property at its end is returned as such."""
    first, *rest = dotted.split(".")
    value = _variable(namespace, first)
    for position, name in enumerate(rest):
        value, is_stored = _attribute(value, name)
        if not is_stored and position < len(rest) - 1:
            raise NotFound(dotted)
    return value


def find_stored(namespace: Mapping[str, object], dotted: str) -> object:
    """As `find`; a property is not found."""
    owner, _, name = dotted.rpartition(".")
    if not owner:
        return _variable(namespace, name)
    value, is_stored = _attribute(find_stored(namespace, owner), name)
    if not is_stored:
        raise NotFound(dotted)
    return value


def _variable(namespace: Mapping[str, object], name: str) -> object:
    if name in namespace:
        return namespace[name]
    builtins = sys.modules["builtins"].__dict__
    if name in builtins:
        return builtins[name]
    raise NotFound(name)


def _attribute(owner: Any, name: str) -> tuple[object, bool]:
    """The value of an attribute and true; or what would compute it, and false."""
    try:
        found: Any = getattr_static(owner, name)
    except AttributeError as exc:
        raise NotFound(name) from exc
    kind = type(found)
    if kind in _PLAIN_DESCRIPTORS and not _wraps_code(found):
        try:
            if issubclass(type(owner), type):
                return type.__getattribute__(owner, name), True
            return object.__getattribute__(owner, name), True
        except Exception:  # noqa: BLE001 - C code that finds itself unprepared, such as a slot without a value
            return found, False
    has_code = any("__get__" in base.__dict__ for base in kind.__mro__)
    return found, not has_code


def _wraps_code(found: object) -> bool:
    """Whether a class method is one around a property, say, which it would ask."""
    return type(found) is classmethod and type(found.__func__) not in _PLAIN_DESCRIPTORS
