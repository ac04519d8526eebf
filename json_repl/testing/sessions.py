"""The sessions that a test gets in place of a real one.

execute(code) -> ReplaySession: is it the next recorded call? -> RecordedSession: its recorded outcome
                                                              -> LiveSession: a real Session's, compared
                                  no: the test fails, here
execute(code) -> RecordingSession: a real Session's
"""

from __future__ import annotations

import math
import os
from _thread import RLock
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from json_repl.errors import InvalidRequest, SessionClosed
from json_repl.session import Session
from json_repl.testing.matching import first_difference, is_code_of, parting
from json_repl.testing.recording import RecordedCall, read_responses
from json_repl.wire import wire_form
from task_logger.record import ExecutionRecord
from task_logger.task import events_beside

if TYPE_CHECKING:
    from json_repl.replay.normalizers import Normalizer
    from repl_kernel.executor import OnDisplay, OnInput, OnOutput

_ANEW = "if the change is meant, record anew: pytest --record=all"
_COST_TOLERANCE = 1e-9
"""Of USD, and of the sum; sums of floats differ by their order."""


class TestedSession:
    """What a test asks of a session, whether it replays or records."""

    __test__ = False  # pytest collects what is called so
    is_recording = False
    """Whether real code runs for a new recording: then the model must be the real one too."""

    def __init__(self) -> None:
        self.failure: str | None = None
        """Why the test failed in this session, `None` where it didn't."""
        self._codes: list[str] = []

    @property
    def log_path(self) -> str:
        """The path of the task log with the executions."""
        raise NotImplementedError

    def close(self) -> None:
        """End the session; idempotent."""
        raise NotImplementedError

    def llm_responses(self) -> list[dict[str, Any]]:
        """Return the recorded `llm_response` events, oldest first, as plain dicts.

        They hold what the program has given to `task_logger.llm_response`: what a test needs of the response
        itself must be in its `dimensions`.
        """
        return [dict(response.fields) for response in read_responses(self.log_path)]

    def assert_calls(self, codes: Sequence[str]) -> None:
        """Fail unless the code that was executed so far is this, in this order."""
        __tracebackhide__ = True
        if list(codes) != self._codes:
            expected, made = ("\n".join(map(repr, each)) for each in (codes, self._codes))
            where = parting(expected, made, ("expected", "made"))
            self._fail(None, f"the calls aren't the expected ones, {where}")

    def assert_final_text(self, text: str) -> None:
        """Fail unless `dimensions["text"]` of the last recorded `llm_response` is this."""
        __tracebackhide__ = True
        responses = read_responses(self.log_path)
        events = events_beside(self.log_path)
        if not responses:
            self._fail(None, "there is no llm_response beside it", events)
        last = responses[-1]
        recorded = last.fields.get("dimensions", {}).get("text")
        if not isinstance(recorded, str):
            self._fail(last.number, "this llm_response has no text in its dimensions", events)
        if not isinstance(text, str):  # what a program gives that found none
            self._fail(last.number, f"the final text is {text!r} now, and was {recorded!r}", events)
        if recorded != text:
            difference = parting(recorded, text, ("recorded", "now"))
            self._fail(last.number, f"the final text differs, {difference}", events)

    def assert_total_cost(self, usd: float) -> None:
        """Fail unless `cost_usd` of all recorded `llm_response` events adds up to this, and each has one."""
        __tracebackhide__ = True
        events, total = events_beside(self.log_path), 0.0
        for response in read_responses(self.log_path):
            cost = response.fields.get("cost_usd")
            if cost is None:
                self._fail(response.number, "this llm_response has no cost_usd", events)
            total += cost
        if not math.isclose(total, usd, rel_tol=_COST_TOLERANCE, abs_tol=_COST_TOLERANCE):
            self._fail(None, f"the responses cost {total:g} USD in all, not {usd:g}", events)

    def _fail(self, number: int | None, text: str, path: str | None = None) -> NoReturn:
        __tracebackhide__ = True
        shown = shown_path(self.log_path if path is None else path)
        place = shown if number is None else f"{shown}:{number}"
        self.failure = f"{place}: {text}"
        pytest.fail(self.failure)


class RecordingSession(TestedSession):
    """A real session whose log becomes a recording."""

    is_recording = True

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    @property
    def log_path(self) -> str:
        """The path of the task log, which is a temporary one until the test has passed."""
        return self._session.log_path

    def execute(self, code: str, **options: Any) -> ExecutionRecord:
        """Run code and return its record, as `Session.execute` does."""
        self._codes.append(code)
        return self._session.execute(code, **options)

    def execute_code(self, code: str, **options: Any) -> dict[str, Any]:
        """Run code and return the wire form of what came of it, as `Session.execute_code` does."""
        return wire_form(self.execute(code, **options), self.log_path)

    def close(self) -> None:
        """Close the real session; idempotent."""
        self._session.close()

    def __enter__(self) -> RecordingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(self, name), name)


class ReplaySession(TestedSession):
    """Takes the calls of one recorded session, in order; the test fails at the first that differs."""

    def __init__(self, path: str, calls: tuple[RecordedCall, ...]) -> None:
        super().__init__()
        self._path = path
        self._calls = calls
        self._turn = RLock()
        self._is_closed = self._has_restarted = False

    @property
    def log_path(self) -> str:
        """The path of the recording."""
        return self._path

    def execute(
        self,
        code: str,
        *,
        time_limit_s: float | None = None,
        tags: Mapping[str, object] | None = None,
        atomic: bool = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionRecord:
        """Give the record of the next call; the test fails unless its code is this."""
        __tracebackhide__ = True
        if type(code) is not str:
            raise InvalidRequest("code", f"must be a text, not a {type(code).__name__}")
        with self._turn:
            if self._is_closed:
                raise SessionClosed
            call = self._next(code)
            self._codes.append(code)
            options = {
                "time_limit_s": time_limit_s,
                "tags": tags,
                "atomic": atomic,
                "on_output": on_output,
                "on_input": on_input,
                "on_display": on_display,
            }
            return self._outcome(call, code, options)

    def execute_code(self, code: str, **options: Any) -> dict[str, Any]:
        """Give the wire form of what came of the next call; see `execute`."""
        __tracebackhide__ = True
        return wire_form(self.execute(code, **options), self.log_path)

    def restart(self) -> None:
        """Note that the namespace is empty now: the test fails at the next call if it wasn't so then.

        Only recordings on the worker route tell.
        """
        with self._turn:
            if self._is_closed:
                raise SessionClosed
            self._has_restarted = bool(self._codes)

    def close(self) -> None:
        """End the session; idempotent. Calls that were never made are told when the test is over."""
        self._is_closed = True

    def never_made(self) -> str | None:
        """Say which recorded call was never made, `None` where all were."""
        left = self._calls[len(self._codes) :]
        if not left:
            return None
        more = f", and {len(left) - 1} after it" if len(left) > 1 else ""
        code, place = left[0].record.request.code, f"{shown_path(self._path)}:{left[0].number}"
        return f"{place}: this call was never made{more}: {code!r}\n{_ANEW}"

    def __enter__(self) -> ReplaySession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _outcome(self, call: RecordedCall, code: str, options: Mapping[str, Any]) -> ExecutionRecord:
        raise NotImplementedError

    def _next(self, code: str) -> RecordedCall:
        __tracebackhide__ = True
        made = len(self._codes)
        if made == len(self._calls):
            last = self._calls[-1].number
            self._fail(last, f"the recorded session ends here, and one more call is made: {code!r}\n{_ANEW}")
        call = self._calls[made]
        if not is_code_of(code, call.record):
            labels = ("recorded", "called")
            where = parting(call.record.request.code, code, labels) or "in what its line leaves out"
            self._fail(call.number, f"the code differs from what was recorded, {where}\n{_ANEW}")
        if self._has_restarted and not _may_start_empty(call.record):
            self._fail(call.number, f"the session was restarted before this call; it wasn't then\n{_ANEW}")
        self._has_restarted = False
        return call


class RecordedSession(ReplaySession):
    """Answers from the recording alone: nothing runs."""

    @property
    def session_id(self) -> str:
        """That of the recorded session."""
        return self._calls[0].record.request.session_id

    def _outcome(self, call: RecordedCall, code: str, options: Mapping[str, Any]) -> ExecutionRecord:
        outcome, on_output = call.record.outcome, options["on_output"]
        if on_output is not None:
            for name, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
                if text:
                    on_output(name, text)
        return call.record

    def __getattr__(self, name: str) -> Any:
        __tracebackhide__ = True
        if hasattr(Session, name):
            raise AttributeError(
                f"a recording doesn't hold what Session.{name} gives; replay_session(…, mode='live') has it"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class LiveSession(ReplaySession):
    """Runs each call in a real session, and compares what comes of it with the recording."""

    def __init__(
        self,
        path: str,
        calls: tuple[RecordedCall, ...],
        session: Session,
        ignore: Collection[str],
        normalizers: Sequence[Normalizer],
    ) -> None:
        super().__init__(path, calls)
        self._session = session
        self._ignore = frozenset(ignore)
        self._normalizers = normalizers

    @property
    def session_id(self) -> str:
        """That of the real session."""
        return self._session.session_id

    def restart(self) -> None:
        """Empty the namespace of the real session; see `ReplaySession.restart`."""
        super().restart()
        self._session.restart()

    def close(self) -> None:
        """Close the real session; idempotent."""
        super().close()
        self._session.close()

    def _outcome(self, call: RecordedCall, code: str, options: Mapping[str, Any]) -> ExecutionRecord:
        __tracebackhide__ = True
        record = self._session.execute(code, **options)
        found = first_difference(call.record.outcome, record.outcome, self._ignore, self._normalizers)
        if found is not None:
            where = parting(found.recorded, found.replayed, ("recorded", "now"))
            self._fail(call.number, f"{found.field} differs from what was recorded, {where}\n{_ANEW}")
        return record

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(self, name), name)


def _may_start_empty(record: ExecutionRecord) -> bool:
    """Whether an execution may have started from the empty namespace: only workers tell from which."""
    return record.outcome.route != "worker" or record.outcome.parent == f"{record.request.session_id}:0"


def _real(tested: RecordingSession | LiveSession, name: str) -> Session:
    """The real session of one that has one, for what it doesn't do itself."""
    session: Session | None = tested.__dict__.get("_session")
    if session is None or name.startswith("_"):
        raise AttributeError(f"{type(tested).__name__!r} object has no attribute {name!r}")
    return session


def shown_path(path: str) -> str:
    """A path as people click it: from the working directory where that leads down to it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
