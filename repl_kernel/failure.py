"""An exception of executed code -> the parts of an `ExecutionError`: the user's frames, none of ours."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from opcode import opmap
from types import TracebackType
from typing import TYPE_CHECKING

from task_logger.record import ExecutionError

if TYPE_CHECKING:
    from repl_kernel.limits import Strike

_OUR_FOLDERS = (os.path.dirname(__file__) + os.sep,)

_NAME_OF = type.__dict__["__name__"].__get__
_TRACEBACK_OF = BaseException.__dict__["__traceback__"].__get__
"""What a class of the user's, or its metaclass, can't answer otherwise, or raise in."""

_LINE_OF = {name: SyntaxError.__dict__[name].__get__ for name in ("filename", "lineno")}

_UNPRINTABLE = "<its text could not be made: {}>"


def describe_failure(exc: BaseException, filename: str) -> ExecutionError:
    """Take an exception apart; `filename` is the name under which the execution's code was compiled.

    An exception whose own `__str__` fails, or deletes itself, is described all the same.
    """
    try:
        message = str.__str__(str(exc))  # a text, even where __str__ returns something derived from it
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001 - the user's __str__ may raise anything
        message = _UNPRINTABLE.format(name_of(failure))
    try:
        text = "".join(_format(exc))
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001
        text = f"{name_of(exc)}: {message}\n({_UNPRINTABLE.format(name_of(failure))})\n"
    return ExecutionError(type=name_of(exc), message=message, traceback=text, line=line_of(exc, filename))


def name_of(exc: BaseException) -> str:
    """The name of an exception's class, whatever its metaclass makes of that."""
    return str(_NAME_OF(type(exc)))


def condemned(error: ExecutionError, strike: Strike) -> ExecutionError:
    """An error of the code's that a limit is behind: its type becomes the verdict, its text says so."""
    was = f"{error.type}: {error.message}".removesuffix(": ")
    traceback = f"{error.traceback}{strike.verdict}: {strike.message}\n"
    message = f"{strike.message}; the code got {was}"
    return replace(error, type=strike.verdict, message=message, traceback=traceback)


def is_interrupt(exc: BaseException) -> bool:
    """Whether somebody interrupted the code; false for a KeyboardInterrupt that the code raised by itself."""
    if type(exc) is not KeyboardInterrupt or exc.__traceback__ is None:
        return False
    entry = exc.__traceback__
    while entry.tb_next is not None:
        entry = entry.tb_next
    return entry.tb_frame.f_code.co_code[entry.tb_lasti] != opmap["RAISE_VARARGS"] or _is_ours(entry)


def _is_ours(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_filename.startswith(_OUR_FOLDERS)


def _format(exc: BaseException) -> list[str]:
    described = traceback.TracebackException(type(exc), exc, _TRACEBACK_OF(exc))
    pending: list[traceback.TracebackException | None] = [described]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list(_frames_of_the_user(part.stack))
        pending += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    lines = list(described.format())
    # Python prints the header even when every frame below it was ours.
    if lines[:1] == ["Traceback (most recent call last):\n"] and not described.stack:
        del lines[0]
    return lines


def _frames_of_the_user(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Leave out our frames, and those between us and the code: the event loop's, where it awaits."""
    frames = [frame for frame in stack if not frame.filename.startswith(_OUR_FOLDERS)]
    first = next((index for index, frame in enumerate(frames) if frame.filename.startswith("<execution ")), 0)
    return frames[first:]


def line_of(exc: BaseException, filename: str) -> int | None:
    """The last line of the code of that name that an exception came through, `None` where it didn't."""
    if issubclass(type(exc), SyntaxError) and _LINE_OF["filename"](exc) == filename:
        claimed: object = _LINE_OF["lineno"](exc)
        return claimed if isinstance(claimed, int) else None
    line = None
    entry: TracebackType | None = _TRACEBACK_OF(exc)
    while entry is not None:
        if entry.tb_frame.f_code.co_filename == filename:
            line = entry.tb_lineno
        entry = entry.tb_next
    return line
