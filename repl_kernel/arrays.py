"""The contents of arrays and data frames, read without slow library code and without any of the user's.

array -> its buffer, piece by piece -> one number
frame -> the arrays behind its blocks, names of its axes -> the same
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

PIECE_BYTES = 128 << 10
"""Hashed at once, about 60 us: how far a deadline can be missed."""

Check = Callable[[], None]
"""Raises when the time is over."""
Reader = Callable[[Any, Check], object]

_HEAP_TYPE = 1 << 9


def library_reader(kind: type) -> Reader | None:
    """Return what reads the contents of objects of this type, `None` where it is no array or frame.

    Only libraries that are already loaded are looked at.
    """
    if issubclass(kind, ndarray_types()):
        return array_contents
    if kind is _loaded("array", "array"):
        return buffer_contents
    frames = (_loaded("pandas", "DataFrame"), _loaded("pandas", "Series"))
    if any(frame is not None and issubclass(kind, frame) for frame in frames):
        return frame_contents
    index = _loaded("pandas", "Index")
    if index is not None and issubclass(kind, index):
        return _index_contents
    return None


def ndarray_types() -> tuple[type, ...]:
    """Return numpy's array type, where it is loaded."""
    ndarray = _loaded("numpy", "ndarray")
    return () if ndarray is None or ndarray.__flags__ & _HEAP_TYPE else (ndarray,)


def buffer_contents(value: Any, check: Check) -> object:
    """Hash everything in the value's buffer."""
    with memoryview(value) as view:
        if not view.c_contiguous:
            return hash(view.tobytes())
        if view.nbytes == 0:
            return 0
        with view.cast("B") as octets:
            result = hash((view.format, view.nbytes))
            for start in range(0, len(octets), PIECE_BYTES):
                check()
                result = hash((result, bytes(octets[start : start + PIECE_BYTES])))
            return result


def array_contents(value: Any, check: Check) -> object:
    """Return shape, type and hashed elements of an ndarray; those of type `object` come as a list."""
    ndarray = sys.modules["numpy"].ndarray
    plain = value if type(value) is ndarray else ndarray.view(value, ndarray)
    described = (plain.shape, plain.dtype.str)
    if plain.dtype.hasobject:
        check()
        return described, plain.tolist()
    if plain.dtype.kind in "mM":  # dates have no buffer format
        plain = plain.view("i8")
    try:
        if plain.flags.c_contiguous:
            return described, buffer_contents(plain, check)
        if plain.flags.f_contiguous:
            return described, buffer_contents(plain.T, check)
    except (ValueError, BufferError):  # a type without a buffer format, such as numpy's strings
        check()
        return described, [plain.tolist()] if plain.size < PIECE_BYTES // 16 else _unreadable(plain)
    return described, _strided_contents(plain, check)


def _unreadable(plain: Any) -> object:
    raise ValueError(f"the elements of a {plain.dtype} array can't be read as bytes")


def _strided_contents(plain: Any, check: Check) -> object:
    if plain.ndim == 0 or plain.nbytes <= PIECE_BYTES:
        return hash(plain.tobytes())
    check()
    return hash(tuple(_strided_contents(row, check) for row in plain))


def frame_contents(value: Any, check: Check) -> object:
    """Return the contents of the arrays behind a DataFrame or a Series, and of its axes."""
    attributes = object.__getattribute__(value, "__dict__")
    manager = attributes["_mgr"]
    managers = sys.modules["pandas.core.internals.managers"]
    if type(manager) not in (managers.BlockManager, managers.SingleBlockManager):
        raise TypeError("not a block manager of pandas")
    blocks = [
        (block.mgr_locs.as_array.tobytes(), _block_contents(block.values, check)) for block in manager.blocks
    ]
    axes = [_index_contents(axis, check) for axis in manager.axes]
    return blocks, axes, attributes.get("_name"), attributes.get("_attrs")


def _block_contents(values: Any, check: Check) -> object:
    reader = library_reader(type(values))
    if reader is not None:
        return reader(values, check)
    backing = getattr(values, "_ndarray", None)
    if backing is not None:  # dates, categories, strings held by numpy
        return array_contents(backing, check)
    parts = [getattr(values, name, None) for name in ("_data", "_mask")]
    if all(part is not None for part in parts):  # nullable numbers
        return [_block_contents(part, check) for part in parts]
    return id(
        getattr(values, "_pa_array", values)
    )  # arrow's arrays never change: another one takes their place


def _index_contents(axis: Any, check: Check) -> object:
    # The labels of an index never change, so its address stands for them; its names can be set in place.
    attributes = object.__getattribute__(axis, "__dict__")
    return id(axis), len(axis), attributes.get("_name"), attributes.get("_names")


def _loaded(module: str, name: str) -> Any:
    found = sys.modules.get(module)
    if type(found) is not ModuleType:
        return None
    value = found.__dict__.get(name)
    return value if isinstance(value, type) else None
