"""What can be said of the object under the cursor: signature, type, value, documentation.

code, cursor --> dotted names there --> the first that means an object --> text --> reply

Calls are never evaluated, nor properties (see `lookup`). `__repr__` and `__doc__` are asked, and may do
anything: the caller bounds the time.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable, Mapping
from types import ModuleType

from repl_kernel.code_place import names_at
from repl_kernel.cursor_reply import check_cursor, inspection_reply
from repl_kernel.description import describe, preview, type_name
from repl_kernel.lookup import NotFound, find
from repl_kernel.run_code import safe_repr

MAX_VALUE_CHARACTERS = 2_000
MAX_TEXT_CHARACTERS = 64_000
"""Of the documentation, and of the source."""

_LARGE_BUILT_INS = (str, bytes, bytearray, int, list, tuple, set, frozenset, dict)
"""Values whose whole repr may take long: they get a preview."""


def inspect(
    namespace: Mapping[str, object], code: str, cursor: int, detail_level: int = 0
) -> dict[str, object]:
    """The content of Jupyter's `inspect_reply`, with the source as well from `detail_level` 1 on.

    Raises `RequestRefused` for a cursor outside the code.
    """
    check_cursor(code, cursor)
    for name in names_at(code, cursor):
        try:
            value = find(namespace, name)
        except NotFound:
            continue
        return inspection_reply(_text(name, value, with_source=detail_level > 0))
    return inspection_reply(None)


def _text(name: str, value: object, *, with_source: bool) -> str:
    lines = [
        ("Signature", _asked(lambda: _signature(name, value))),
        ("Type", type_name(type(value))),
        ("Value", _asked(lambda: _value(value))),
        *((what.capitalize(), str(fact)) for what, fact in describe(value).items() if what != "type"),
        ("File", _asked(lambda: python_inspect.getsourcefile(value))),  # type: ignore[arg-type]  # it says so
    ]
    text = "\n".join(f"{label + ':':<11}{fact}" for label, fact in lines if fact)
    if documentation := _asked(lambda: python_inspect.getdoc(value)):
        text += f"\n\nDocumentation:\n{_capped(documentation, MAX_TEXT_CHARACTERS)}"
    if with_source and (source := _asked(lambda: python_inspect.getsource(value))):  # type: ignore[arg-type]  # it says so
        text += f"\n\nSource:\n{_capped(source, MAX_TEXT_CHARACTERS)}"
    return text


def _asked(question: Callable[[], object]) -> str | None:
    """The answer where it is a text; objects may not have one, or raise anything."""
    try:
        answer = question()
    except Exception:  # noqa: BLE001 - code of the user's may run in there
        return None
    return str.__str__(answer) if isinstance(answer, str) else None


def _signature(name: str, value: object) -> str | None:
    if not callable(value):
        return None
    return _capped(name.rpartition(".")[2] + str(python_inspect.signature(value)), MAX_VALUE_CHARACTERS)


def _value(value: object) -> str | None:
    """The value of what isn't known by its name: functions, classes and modules are."""
    if isinstance(value, (type, ModuleType, property)) or python_inspect.isroutine(value):
        return None
    if type(value) in _LARGE_BUILT_INS:
        return preview(value, MAX_VALUE_CHARACTERS)
    return _capped(safe_repr(value), MAX_VALUE_CHARACTERS)


def _capped(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    return f"{text[:max_characters]}… ({len(text) - max_characters} characters left out)"
