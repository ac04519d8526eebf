"""The fixture `replay_session`: which session a test gets for a path, and what is checked when it is over.

path, --record -> no recording, may record  -> Recorder -> RecordingSession
               -> no recording              -> the test fails
               -> a recording               -> its next session -> RecordedSession or LiveSession
test over, passed -> every recorded call made? -> new recordings put in their places
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from typing import Any, Literal

import pytest

from json_repl.errors import InvalidRequest, RecordingRefused
from json_repl.replay.normalizers import Normalizer, choose
from json_repl.session import Session
from json_repl.testing.matching import FIELDS
from json_repl.testing.recorder import Recorder
from json_repl.testing.recording import RecordedCall, by_session, read_calls
from json_repl.testing.sessions import (
    LiveSession,
    RecordedSession,
    RecordingSession,
    ReplaySession,
    shown_path,
)
from task_logger.errors import LogNotFound

Mode = Literal["recorded", "live"]


class _Ending:
    """Learns how the test itself ended: a hook of its own, there while the fixture is."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self.has_passed = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> None:
        if item is self._item and call.when == "call":
            self.has_passed = call.excinfo is None


class ReplaySessions:
    """The sessions of one test; called, it gives the next one of a recording."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        """Of the test that asks for the fixture."""
        self._record: str = request.config.getoption("json_repl_record")
        self._folder = str(request.path.parent)
        self._plugins = request.config.pluginmanager
        self._ending = _Ending(request.node)
        self._plugins.register(self._ending)
        self._left: dict[str, list[tuple[RecordedCall, ...]]] = {}  # recorded sessions that weren't asked for
        self._recorders: dict[str, Recorder] = {}
        self._replayed: list[ReplaySession] = []
        self._recorded: list[RecordingSession] = []
        self._live_root: str | None = None

    def __call__(
        self,
        path: str | os.PathLike[str],
        mode: Mode = "recorded",
        ignore: Collection[str] = (),
        normalizers: Collection[str] = (),
    ) -> RecordedSession | LiveSession | RecordingSession:
        """Give a session for a recording: the first call the first session in it, and so on.

        A relative `path` is relative to the folder of the test. In `mode` `recorded` nothing runs, in `live`
        each call runs in a real session, on the route and in the isolation that were recorded, and is
        compared; `ignore` are fields that aren't: of `status`, `error`, `result`, `stdout` and `stderr`;
        `normalizers` hide what may differ, by the names (and patterns in slashes) of `json-repl replay`.
        Fails the test where the recording isn't there, can't be read, or has no further session.
        """
        __tracebackhide__ = True
        _check(mode, ignore, normalizers)
        chosen = choose(normalizers)
        whole = os.path.realpath(os.path.join(self._folder, os.fspath(path)))
        try:
            if self._is_recorded_now(whole):
                return self._open_recorder(whole)
            calls = self._next_session(whole)
        except RecordingRefused as exc:
            pytest.fail(str(exc))
        session = (
            self._open_live(whole, calls, ignore, chosen) if mode == "live" else RecordedSession(whole, calls)
        )
        self._replayed.append(session)
        return session

    def finish(self) -> None:
        """Close all; where the test has passed, check that all was made, and keep what was recorded."""
        __tracebackhide__ = True
        self._plugins.unregister(self._ending)
        try:
            for session in (*self._replayed, *self._recorded):
                session.close()
            if self._ending.has_passed:
                self._check()
                for recorder in self._recorders.values():
                    recorder.install()
        except RecordingRefused as exc:
            pytest.fail(str(exc), pytrace=False)
        finally:
            for recorder in self._recorders.values():
                recorder.close()
            if self._live_root is not None:
                shutil.rmtree(self._live_root, ignore_errors=True)

    def _check(self) -> None:
        for session in (*self._replayed, *self._recorded):
            if session.failure is not None:  # the test has caught it, or it came in another thread
                pytest.fail(session.failure, pytrace=False)
        unopened = [RecordedSession(path, calls) for path, left in self._left.items() for calls in left]
        for replayed in (*self._replayed, *unopened):
            text = replayed.never_made()
            if text is not None:
                pytest.fail(text, pytrace=False)

    def _is_recorded_now(self, path: str) -> bool:
        if path in self._recorders or self._record == "all":
            return True
        return self._record == "new" and path not in self._left and not os.path.lexists(path)

    def _open_recorder(self, path: str) -> RecordingSession:
        recorder = self._recorders.get(path)
        if recorder is None:
            recorder = self._recorders[path] = Recorder(path)
        session = RecordingSession(recorder.open())
        self._recorded.append(session)
        return session

    def _next_session(self, path: str) -> tuple[RecordedCall, ...]:
        __tracebackhide__ = True
        if path not in self._left:
            try:
                self._left[path] = by_session(read_calls(path))
            except LogNotFound:
                pytest.fail(f"{shown_path(path)}: there is no recording; pytest --record=new makes one")
        if not self._left[path]:
            pytest.fail(f"{shown_path(path)}: one more session is asked for than was recorded")
        return self._left[path].pop(0)

    def _open_live(
        self,
        path: str,
        calls: tuple[RecordedCall, ...],
        ignore: Collection[str],
        normalizers: Sequence[Normalizer],
    ) -> LiveSession:
        __tracebackhide__ = True
        outcome = calls[0].record.outcome
        if outcome.route not in ("local", "worker"):
            place = f"{shown_path(path)}:{calls[0].number}"
            pytest.fail(f"{place}: recorded on the {outcome.route} route, which can't be replayed live here")
        if self._live_root is None:
            self._live_root = tempfile.mkdtemp(prefix="json-repl-live-")
        isolation = outcome.isolation if outcome.route == "worker" else None
        session = Session(outcome.route, isolation=isolation, log_dir=self._live_root)
        return LiveSession(path, calls, session, ignore, normalizers)


def _check(mode: str, ignore: Collection[str], normalizers: Collection[str]) -> None:
    if mode not in ("recorded", "live"):
        raise InvalidRequest("mode", f"must be 'recorded' or 'live', not {mode!r}")
    if isinstance(ignore, str) or not set(ignore) <= set(FIELDS):
        raise InvalidRequest("ignore", f"must be a collection of {', '.join(FIELDS)}, not {ignore!r}")
    if isinstance(normalizers, str) or not all(isinstance(name, str) for name in normalizers):
        raise InvalidRequest("normalizers", f"must be a collection of names, not {normalizers!r}")
