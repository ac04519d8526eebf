"""Which global names a piece of code touches, told from its bytecode without running anything.

code -> code objects in it -> functions of the namespace that these name -> names read, names stored
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from opcode import opmap
from types import CodeType, FunctionType

MAX_CODE_OBJECTS = 64
"""Bounds the walk through functions that name functions; the search goes on with the other names anyway."""

_DELETES = (opmap["DELETE_NAME"], opmap["DELETE_GLOBAL"])
_STORING = bytes(op in (opmap["STORE_NAME"], opmap["STORE_GLOBAL"], *_DELETES) for op in range(256))
_JUMPS_BACK = frozenset(op for name, op in opmap.items() if "BACKWARD" in name)
_INDIRECT = frozenset(("globals", "vars", "locals", "exec", "eval", "delattr", "setattr", "__dict__"))
"""Code that uses one of these can drop a name where its bytecode doesn't show it."""
_EXTENDED_ARG = opmap["EXTENDED_ARG"]


def reachable_code(code: CodeType, namespace: dict[str, object]) -> list[CodeType]:
    """List `code`, the code objects nested in it, and those of the namespace's functions that these name."""
    found = [code]
    seen = {id(code)}
    for current in found:  # grows while it is walked
        if len(found) >= MAX_CODE_OBJECTS:
            break
        for other in (*_nested_code(current), *_named_code(current, namespace)):
            if id(other) not in seen:
                seen.add(id(other))
                found.append(other)
    return found


def _nested_code(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if type(constant) is CodeType)


def _named_code(code: CodeType, namespace: dict[str, object]) -> Iterator[CodeType]:
    for name in code.co_names:
        value = namespace.get(name)
        if type(value) is FunctionType:
            yield value.__code__


def stored_low_bytes(instructions: bytes) -> set[int]:
    """Return the low bytes of the indices of names that may be bound or deleted: a fast sieve."""
    return set(compress(instructions[1::2], instructions[::2].translate(_STORING)))


def store_sites(code: CodeType, instructions: bytes, name: str) -> list[int]:
    """List the operation of each instruction that binds or deletes a global `name`, one of `code.co_names`.

    `instructions` is `code.co_code`, which is a copy each time it is asked for.
    """
    index = code.co_names.index(name)
    found = []
    argument = 0
    for at in range(0, len(instructions), 2):
        op = instructions[at]
        argument = argument << 8 | instructions[at + 1]
        if op == _EXTENDED_ARG:
            continue
        if argument == index and _STORING[op]:
            found.append(op)
        argument = 0
    return found


def may_store_twice(code: CodeType, instructions: bytes, sites: list[int]) -> bool:
    """Tell whether one run of `code` can drop the object bound to a name and then bind the name again.

    `sites` is what `store_sites` lists. A single store, not in a loop, happens while the old object is still
    bound, so that the new one cannot get its address; a deletion, a second store or a loop can free it first.
    """
    if len(sites) > 1 or sites[0] in _DELETES:
        return True
    return not _JUMPS_BACK.isdisjoint(instructions[::2]) or not _INDIRECT.isdisjoint(code.co_names)
