"""A recorded Python session: every execution is one line of a task log."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not imported before the worker is started
if TYPE_CHECKING:
    from json_repl.client import SessionProcess
    from json_repl.default_session import execute_code
    from json_repl.pool import SessionPool
    from json_repl.session import Session

__version__ = "0.1.0"

__all__ = ["Session", "SessionPool", "SessionProcess", "__version__", "execute_code"]

_HOMES = {
    "Session": "session",
    "SessionPool": "pool",
    "SessionProcess": "client",
    "execute_code": "default_session",
}


def __getattr__(name: str) -> object:
    # Imported when asked for: `python -m json_repl` starts a worker before it imports anything else.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"json_repl.{_HOMES[name]}"), name)
