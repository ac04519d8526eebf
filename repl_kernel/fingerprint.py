"""The contents of objects as numbers, to be compared later without keeping the objects.

values -> one C pickling of them all, a separator between -> hash of each piece
       -> what pickle can't write by itself -> `_Walk.reducer_override` -> its parts, or its address

Nothing of the user's is called: containers are walked in C, instances through the interpreter's own
`__dict__` slot and the collector's view of what they refer to; all else counts by its address alone.
"""

from __future__ import annotations

import sys
from _io import _IOBase
from _pickle import Pickler
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from gc import get_referents
from time import perf_counter_ns
from types import GetSetDescriptorType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any, cast

from repl_kernel.arrays import library_reader, ndarray_types

MAX_RECURSION = 10_000
"""Deeper than this the C stack of 8 MiB may not hold; user code can raise the interpreter's limit past it."""

_SEPARATOR = 0x5E9A_7C41_D2B8_036F_91E4_2AD7_6C3B_48F5
"""Stands between two values; an integer, since pickle writes these in full each time."""
_SEPARATOR_BYTES = b"\x8a\x10" + _SEPARATOR.to_bytes(16, "little")


class _Plain:
    """What an ordinary class looks like to the interpreter."""


_type_slot: Any = type.__dict__
_type_dict: Callable[[type], MappingProxyType[str, object]] = _type_slot["__dict__"].__get__
_type_mro: Callable[[type], tuple[type, ...]] = _type_slot["__mro__"].__get__
_type_flags: Callable[[type], int] = _type_slot["__flags__"].__get__
_basic_size: Callable[[type], int] = _type_slot["__basicsize__"].__get__
_dict_offset: Callable[[type], int] = _type_slot["__dictoffset__"].__get__
_PLAIN_LAYOUT = (_basic_size(_Plain), _dict_offset(_Plain))
_HEAP_TYPE = 1 << 9
_NATIVE = frozenset(map(id, (list, dict, set, frozenset, tuple, bytearray)))
_WALKED_TYPES = (deque, defaultdict, OrderedDict, SimpleNamespace, MappingProxyType, MethodType, slice)


class OutOfTime(Exception):
    """The deadline passed before the contents were read."""


class TooDeep(Exception):
    """User code raised the recursion limit so far that a walk could overrun the stack, and runs threads."""


class TooLarge(Exception):
    """The values together don't fit one frame of a pickle, whose header would disturb the pieces."""


def pickled_together(values: list[object], deadline_ns: int, plain: Iterable[int] = ()) -> bytes:
    """Write some small values, in a form that only `fingerprints` reads.

    `plain` are the places of those whose type `is_plain`: their `__dict__` takes their place in `values`,
    which is much faster; their type is then not part of the fingerprint. `deadline_ns` is on the clock of
    `perf_counter_ns`. Raises `OutOfTime`, `TooLarge` past 64 KiB in all, and whatever stops the walk of
    extreme objects: `ValueError` where one contains itself, `RecursionError`, …
    """
    getters: dict[int, Callable[[Any], object] | None] = {}
    for place in plain:
        kind = type(values[place])
        dict_of = getters.get(id(kind)) or getters.setdefault(id(kind), _instance_dict_getter(kind))
        if dict_of is not None:
            values[place] = dict_of(values[place])
    payload: list[object] = [_SEPARATOR] * (2 * len(values) + 1)
    payload[1::2] = values
    sink = _OneFrame()
    walk = _Walk(sink, deadline_ns)
    walk.fast = True  # without memory of what it wrote, so that pieces don't depend on each other
    _dump(walk, tuple(payload))
    return sink.frame


def fingerprints(frame: bytes) -> list[tuple[int, int]]:
    """Return, for each value written together, a number that tells its contents, and its length."""
    return [(hash(piece), len(piece)) for piece in frame.split(_SEPARATOR_BYTES)[1:-1]]


def fingerprint(value: object, deadline_ns: int) -> int:
    """Return the number of one value of any size, which may contain itself; raises as `fingerprints` does."""
    sink = _Rolling(deadline_ns)
    _dump(_Walk(sink, deadline_ns), value)
    return sink.result


def _dump(walk: _Walk, value: object) -> None:
    limit = sys.getrecursionlimit()
    if limit <= MAX_RECURSION:
        walk.dump(value)
        return
    if len(sys._current_frames()) > 1:  # lowering it could break a thread that needs it
        raise TooDeep
    sys.setrecursionlimit(MAX_RECURSION)
    try:
        walk.dump(value)
    finally:
        sys.setrecursionlimit(limit)


class _OneFrame:
    """Takes all that is pickled in one call; a second call means that it was too large."""

    __slots__ = ("frame",)

    def __init__(self) -> None:
        self.frame = b""

    def write(self, data: bytes) -> None:
        if self.frame:
            raise TooLarge
        self.frame = data


class _Rolling:
    """Hashes what is pickled, 64 KiB at a time, until the deadline."""

    __slots__ = ("deadline_ns", "result")

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.result = 0

    def write(self, data: bytes | bytearray) -> None:
        self.result = hash((self.result, bytes(data)))
        if perf_counter_ns() > self.deadline_ns:
            raise OutOfTime


def _part() -> None:
    """Stands for the type of every object that pickle can't write by itself; never called."""


_KNOWN_TO_PICKLE = {id(_part): (0, _part)}


class _Walk(Pickler):
    """A pickler that calls nothing of the objects it writes; serves one walk, to keep nothing alive."""

    def __init__(self, sink: _OneFrame | _Rolling, deadline_ns: int) -> None:
        super().__init__(sink, 5)
        self.memo = _KNOWN_TO_PICKLE
        self._deadline_ns = deadline_ns
        self._readers: dict[int, Callable[[Any], object] | None] = {}
        self._kinds: list[type] = []  # their addresses are keys while they live

    def reducer_override(self, value: object) -> tuple[Any, ...]:
        kind = type(value)
        try:
            read = self._readers[id(kind)]
        except KeyError:
            self._kinds.append(kind)
            read = self._readers[id(kind)] = self._reader(kind)
        if read is None:
            return _part, (id(value), id(kind))
        return _part, (id(value), id(kind)), read(value)

    def _reader(self, kind: type) -> Callable[[Any], object] | None:
        """Choose how objects of a type show their contents; `None`: by their address alone."""
        reader = library_reader(kind)
        if reader is not None:
            own_dict = _instance_dict_getter(kind) if issubclass(kind, ndarray_types()) else None
            if own_dict is not None:  # a subclass, such as a masked array
                return lambda value: (reader(value, self._check), own_dict(value))
            return lambda value: reader(value, self._check)
        if _is_opaque(kind):
            return _by_value(kind)
        dict_of = _instance_dict_getter(kind)
        if dict_of is not None and _has_plain_layout(kind):
            return dict_of
        return lambda value: _parts(value, kind, dict_of)

    def _check(self) -> None:
        if perf_counter_ns() > self._deadline_ns:
            raise OutOfTime


def has_contents(kind: type) -> bool:
    """Tell whether objects of this type can change in place where it can be seen."""
    return id(kind) in _NATIVE or library_reader(kind) is not None or not _is_opaque(kind)


def is_plain(kind: type) -> bool:
    """Tell whether all contents of objects of this type are in their `__dict__`."""
    if not _has_plain_layout(kind) or _is_opaque(kind) or library_reader(kind) is not None:
        return False
    return _instance_dict_getter(kind) is not None


def _has_plain_layout(kind: type) -> bool:
    return (_basic_size(kind), _dict_offset(kind)) == _PLAIN_LAYOUT


def _is_opaque(kind: type) -> bool:
    """Tell whether objects of a type count by their address alone: functions, classes, modules, files, …"""
    if not _type_flags(kind) & _HEAP_TYPE:
        return kind not in _WALKED_TYPES and not issubclass(kind, BaseException)
    threading = sys.modules.get("threading")
    bases = (ModuleType, type, _IOBase)
    return issubclass(kind, bases if threading is None else (*bases, threading.Thread))


def _by_value(kind: type) -> Callable[[Any], object] | None:
    """Return what reads an immutable object of the standard library, whose address may be used again."""
    if _type_flags(kind) & _HEAP_TYPE:
        return None
    if kind in (complex, range):
        return repr
    if kind.__module__ == "datetime" and kind.__name__ in ("date", "datetime", "time", "timedelta"):
        return cast(Callable[[Any], object], kind.__reduce__)
    return cast(Callable[[Any], object], kind.__str__) if kind.__module__ == "decimal" else None


def _instance_dict_getter(kind: type) -> Callable[[Any], object] | None:
    """Find the interpreter's own way to the `__dict__` of objects, past what a class may call so."""
    for base in _type_mro(kind):
        slot = _type_dict(base).get("__dict__")
        if type(slot) is GetSetDescriptorType and base is not type:
            return slot.__get__
    return None


def _parts(value: Any, kind: type, dict_of: Callable[[Any], object] | None) -> list[object]:
    if dict_of is not None:
        dict_of(value)  # from now on it exists, and the collector shows it with the names in it
    parts: list[object] = get_referents(value)
    if issubclass(kind, dict):  # the collector leaves out keys that are text
        parts.append(dict.copy(value))
        if issubclass(kind, OrderedDict):
            parts.append(list(OrderedDict.__iter__(value)))
    elif issubclass(kind, bytearray):
        parts.append(bytearray.copy(value))
    return parts
