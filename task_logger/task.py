"""Which plan and task an execution belongs to, and where their log is.

arguments, else FLOW_* -> TaskIds of a session -> <root>/<plan>/<n>.<name>.jsonl
task_context(...)      -> TaskIds and tags of one execution, whatever its session's are
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from task_logger.errors import ConfigurationError
from task_logger.record import TaskIds

if TYPE_CHECKING:
    from concurrent.futures import Future

    from task_logger.keys import KeySource
    from task_logger.sealing import Sealer

MAX_NAME_BYTES = 100
"""Longest normalized name, in bytes of UTF-8: two of them and the rest fit a file name of 255."""

_MAX_NUMBER_DIGITS = 18
"""Longer task numbers count as none, so that a file name stays short."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """What `task_context` has set for this flow of control; an id of `None` is the session's own."""

    plan_id: str | None
    task_id: str | None
    task_name: str | None
    tags: Mapping[str, object]

    def task_ids(self, session_ids: TaskIds) -> TaskIds:
        """Return the ids in force: these, and the session's where these say nothing."""
        return TaskIds(
            plan_id=session_ids.plan_id if self.plan_id is None else self.plan_id,
            task_id=session_ids.task_id if self.task_id is None else self.task_id,
            task_name=session_ids.task_name if self.task_name is None else self.task_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How logs are written: their root folder, whether each line is synced, whether no line means no run.

    `sealer` seals each line, where TASK_LOG_SEAL_KEY names a key; `key` is that of TASK_LOG_KEY, which
    encrypts all that is kept.
    """

    root: str
    fsync: bool
    strict: bool
    sealer: Sealer | None = None
    key: KeySource | None = None


# Only its value in a context ever changes, which is what a context variable is for.
_context: ContextVar[TaskContext | None] = ContextVar("task_context", default=None)


def task_ids(plan_id: str | None = None, task_id: str | None = None, task_name: str | None = None) -> TaskIds:
    """Return the ids given, else those of the environment, else `local`, `unknown` and `adhoc`.

    Raises `ConfigurationError` for an id that is no text.
    """
    return TaskIds(
        plan_id=_given_or_set("plan_id", plan_id, "FLOW_PLAN_ID", "local"),
        task_id=_given_or_set("task_id", task_id, "FLOW_TASK_ID", "unknown"),
        task_name=_given_or_set("task_name", task_name, "FLOW_TASK_NAME", "adhoc"),
    )


def _given_or_set(name: str, given: str | None, variable: str, default: str) -> str:
    if given is None:
        return os.environ.get(variable) or default
    return _checked_text(name, given)


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(name, f"must be a text, not a {type(value).__name__}")
    return value


@contextmanager
def task_context(
    *, plan_id: str | None = None, task_id: str | None = None, task_name: str | None = None, **tags: object
) -> Iterator[TaskContext]:
    """Give executions of this flow of control other ids, and tags; `None` leaves an id as it is.

    Nested calls and asyncio tasks see it, threads started by `run_in_thread` too. Inner contexts add to outer
    ones. Raises `ConfigurationError` for an id that is no text.
    """
    for name, value in (("plan_id", plan_id), ("task_id", task_id), ("task_name", task_name)):
        if value is not None:
            _checked_text(name, value)
    outer = _context.get()
    if outer is not None:
        plan_id = outer.plan_id if plan_id is None else plan_id
        task_id = outer.task_id if task_id is None else task_id
        task_name = outer.task_name if task_name is None else task_name
        tags = {**outer.tags, **tags}
    context = TaskContext(plan_id=plan_id, task_id=task_id, task_name=task_name, tags=tags)
    token = _context.set(context)
    try:
        yield context
    finally:
        _context.reset(token)


current_context: Callable[[], TaskContext | None] = _context.get
"""Return what `task_context` has set here, `None` where nothing has."""


def run_in_thread(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
    """Start `fn` in a thread of its own that sees this flow's `task_context`; the future has its result."""
    import threading
    from concurrent.futures import Future

    context = copy_context()
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(context.run(fn, *args, **kwargs))
        except BaseException as exc:  # noqa: BLE001  # it is the caller's, who gets it from the future
            future.set_exception(exc)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, name=getattr(fn, "__name__", None)).start()
    return future


def normalize_task_name(text: str) -> str:
    """Return a name that is safe in file names: letters of any script, digits, `_`, `-`; all else is one `_`.

    In NFC, never empty, at most 100 bytes of UTF-8, cut at a character.
    """
    if len(text) <= MAX_NAME_BYTES and text.isascii() and text.replace("_", "").replace("-", "").isalnum():
        return text
    import unicodedata

    name = ""
    for char in unicodedata.normalize("NFC", text):
        if char.isalpha() or char.isdecimal() or char in "_-":
            name += char
            replaced = False
        elif not name or not replaced:
            name += "_"
            replaced = True
        if len(name) > MAX_NAME_BYTES:
            break
    return name.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore") or "_"


def task_number(task_id: str) -> int:
    """Return the number of a task id `T-<digits>`, and 0 for any other id."""
    digits = task_id.removeprefix("T-")
    is_number = (
        digits != task_id and digits.isascii() and digits.isdigit() and len(digits) <= _MAX_NUMBER_DIGITS
    )
    return int(digits) if is_number else 0


def log_root(log_dir: str | os.PathLike[str] | None = None) -> str:
    """Return the folder of all plans: the one given, else TASK_LOG_DIR, else one in the user's state folder.

    A first `~/`, which not every way to set a variable expands, is the user's home folder.
    Raises `ConfigurationError` for what is no path, or one with a NUL character.
    """
    setting = "log_dir"
    folder: object = os.fspath(log_dir) if isinstance(log_dir, os.PathLike) else log_dir
    if folder is None:
        setting = "TASK_LOG_DIR"
        folder = os.environ.get("TASK_LOG_DIR") or f"{_state_folder()}/task_logger"
    if not isinstance(folder, str) or not folder or "\0" in folder or not _is_path(folder):
        raise ConfigurationError(
            setting, f"must be the path of a folder, as a text without NUL, not {folder!r}"
        )
    return os.path.abspath(os.path.expanduser(folder) if folder.startswith("~/") else folder)


def _is_path(folder: str) -> bool:
    try:
        os.fsencode(folder)
    except UnicodeEncodeError:  # half a character, that no name in a folder stands for
        return False
    return True


def _state_folder() -> str:
    if "linux" in sys.platform:  # what platformdirs says there, without the 10 ms of importing it
        return os.environ.get("XDG_STATE_HOME", "").strip() or os.path.expanduser("~/.local/state")
    from platformdirs import user_state_dir

    return user_state_dir()


def plan_folder(root: str, plan_id: str) -> str:
    """Return the folder of a plan: its logs, pending files, artifacts and events."""
    return f"{root}/{normalize_task_name(plan_id)}"


def log_path(root: str, task: TaskIds) -> str:
    """Return the path of a task's log, which need not exist."""
    number = task_number(task.task_id)
    number_or_id = str(number) if number else normalize_task_name(task.task_id)
    return f"{plan_folder(root, task.plan_id)}/{number_or_id}.{normalize_task_name(task.task_name)}.jsonl"


def event_log_path(root: str, task: TaskIds) -> str:
    """Return the path of a task's events, which need not exist."""
    return events_beside(log_path(root, task))


def events_beside(path: str) -> str:
    """Return the path of the events that belong to the log at `path`; neither need exist."""
    folder, _, name = path.rpartition("/")
    return f"{folder or '.'}/events/{name.removesuffix('.zst').removesuffix('.jsonl')}.events.jsonl"


def check_settings(log_dir: str | os.PathLike[str] | None = None) -> LogSettings:
    """Read the TASK_LOG_* settings of the environment.

    Raises `ConfigurationError` for a value that makes no sense.
    """
    return LogSettings(
        root=log_root(log_dir),
        fsync=_choice("TASK_LOG_FSYNC", {"off": False, "always": True}),
        strict=_choice("TASK_LOG_STRICT", {"0": False, "1": True}),
        sealer=_sealer(),
        key=_key(),
    )


def _key() -> KeySource | None:
    if not os.environ.get("TASK_LOG_KEY"):
        return None
    from task_logger.keys import key_from_environment

    return key_from_environment()


def _sealer() -> Sealer | None:
    if not os.environ.get("TASK_LOG_SEAL_KEY"):
        return None
    from task_logger.sealing import sealer_from_environment

    return sealer_from_environment()


def _choice(variable: str, choices: Mapping[str, bool]) -> bool:
    value = os.environ.get(variable) or next(iter(choices))
    if value not in choices:
        raise ConfigurationError(variable, f"must be {' or '.join(choices)}, not {value!r}")
    return choices[value]
