"""What the methods of the server do, `execute` excepted; loaded with the first of them.

Request -> act() -> Session -> result
                            -> error -> error_parts() -> code, message, data
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from json_repl import messages
from json_repl.cursor_params import Complete, Inspect
from json_repl.errors import InvalidRequest, SessionClosed
from json_repl.params import History
from json_repl.timeline_params import Adopt, Branch, Rewind, Speculate

if TYPE_CHECKING:
    from json_repl.messages import Request
    from json_repl.served import ServedSessions


def act(sessions: ServedSessions, request: Request) -> object:
    """Do what a request asks, `execute` excepted, and return its result."""
    session, params = sessions.of(request.session_id), request.params
    result: object = {}
    if isinstance(params, Speculate):
        result = session.speculate(params.codes, time_limit_s=params.time_limit_s, tags=params.tags)
    elif isinstance(params, Rewind):
        result = session.rewind(params.seq)
    elif isinstance(params, Branch):
        branch = session.branch(params.seq, reseed=params.reseed)
        sessions.add(branch)
        result = {"session_id": branch.session_id, "route": branch.route, "log": branch.log_path}
    elif isinstance(params, Adopt):
        session.adopt(params.candidate)
    elif isinstance(params, Complete):
        result = session.complete(params.code, params.cursor)
    elif isinstance(params, Inspect):
        result = session.inspect(params.code, params.cursor, params.detail_level)
    elif isinstance(params, History):
        result = session.history(params.last)
    elif request.method == "variables":
        result = session.variables()
    elif request.method == "snapshots":
        result = session.snapshots()
    elif request.method == "snapshot":
        result = session.snapshot()
    elif request.method == "discard":
        session.discard()
    elif request.method == "restart":
        session.restart()
    return result


def error_parts(exc: BaseException, method: str) -> tuple[int, str, Mapping[str, object] | None]:
    """The code, the message and the data of the RPC error that says why a method wasn't carried out."""
    from repl_kernel.errors import RequestRefused, SnapshotGone

    if isinstance(exc, SessionClosed):
        return messages.SESSION_CLOSED, f"session closed, not run: {exc}", None
    if isinstance(exc, SnapshotGone):
        return messages.BAD_PARAMS, str(exc), {"seq": exc.seq, "nearest": exc.nearest}
    if isinstance(exc, InvalidRequest):
        # Where it names no param but the method itself, no other params would help.
        return messages.INTERNAL_ERROR if exc.argument == method else messages.BAD_PARAMS, str(exc), None
    if isinstance(exc, RequestRefused):
        return messages.INTERNAL_ERROR, str(exc), None
    return messages.INTERNAL_ERROR, f"{type(exc).__name__}: {exc}", None
