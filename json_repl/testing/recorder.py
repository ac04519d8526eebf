"""Makes a recording with real sessions, and puts it in its place when the test has passed.

real Session -> task log, events, artifacts in a temporary folder --install--> path, and what is beside it

A recording that is there is replaced only if it can be read.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from json_repl.errors import RecordingRefused
from json_repl.session import Session
from json_repl.testing.recording import RecordedCall, read_calls, read_responses
from task_logger.artifacts import artifact_path
from task_logger.errors import LogNotFound
from task_logger.key_places import KEY_SETTING
from task_logger.task import events_beside

_ID_TICK_S = 0.001
"""Ids of sessions sort by the millisecond: one apart, they tell which session was opened first."""


class Recorder:
    """The recording of one path in one test; its sessions write to one task log."""

    def __init__(self, path: str) -> None:
        """Nothing is at `path` before `install`. Raises `RecordingRefused` where it may not be replaced."""
        _check_replaceable(path)
        self.path = path
        self._root = tempfile.mkdtemp(prefix="json-repl-recording-")
        self._opened: set[str] = set()

    def open(self) -> Session:
        """Start a session whose log becomes the recording; route and ids are those of the environment."""
        time.sleep(_ID_TICK_S)
        session = Session(log_dir=self._root)
        self._opened.add(session.session_id)
        return session

    def install(self) -> None:
        """Put the recording in its place, its sessions being closed.

        Raises `RecordingRefused`; what was there is then untouched.
        """
        logs = sorted(Path(self._root).glob("*/*.jsonl"))
        if len(logs) != 1:
            what = "several tasks, and a recording is of one" if logs else "no execution"
            raise RecordingRefused(self.path, f"can't be made: the test has logged {what}")
        log = str(logs[0])
        calls = read_calls(log)
        if not self._opened <= {call.record.request.session_id for call in calls}:
            raise RecordingRefused(self.path, "can't be made: a session of it has executed nothing")
        read_responses(log)
        _check_replaceable(self.path)  # it may have come meanwhile
        try:
            self._put(log, calls)
        except OSError as exc:
            folder = os.path.dirname(exc.filename or self.path)
            raise RecordingRefused(
                self.path, f"can't be put in its place: {folder!r}: {exc.strerror}"
            ) from exc

    def _put(self, log: str, calls: tuple[RecordedCall, ...]) -> None:
        folder, plan = os.path.dirname(self.path), os.path.dirname(log)
        os.makedirs(folder, exist_ok=True)
        shas = {artifact.sha256 for call in calls for artifact in call.record.outcome.artifacts}
        files = [(artifact_path(plan, sha), artifact_path(folder, sha)) for sha in sorted(shas)]
        events = events_beside(self.path)
        has_events = os.path.exists(events_beside(log))
        if has_events:
            files.append((events_beside(log), events))
        _put_all([*files, (log, self.path)])
        if not has_events and os.path.exists(events):
            os.remove(events)  # of the recording that was replaced

    def close(self) -> None:
        """Remove the temporary folder; idempotent."""
        shutil.rmtree(self._root, ignore_errors=True)


def _check_replaceable(path: str) -> None:
    if os.environ.get(KEY_SETTING):
        raise RecordingRefused(
            path, f"can't be made: recordings are plain, and {KEY_SETTING} is set; unset it"
        )
    if os.path.lexists(f"{path}.zst"):
        raise RecordingRefused(path, "is there compressed; remove that first")
    try:
        read_calls(path)
        read_responses(path)
    except LogNotFound:
        events = events_beside(path)
        if os.path.lexists(events):
            raise RecordingRefused(path, f"is gone, but its events {events!r} are there") from None
        if os.path.lexists(path):
            raise RecordingRefused(path, "is a link to nothing; remove it first") from None


def _put_all(files: Sequence[tuple[str, str]]) -> None:
    """Copy files to their places, each of which has the old or the new one at any time.

    None is replaced before there is room for all: where one can't be, all are as they were.
    """
    copies: list[str] = []
    try:
        for source, target in files:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            descriptor, copy = tempfile.mkstemp(prefix=".", dir=os.path.dirname(target))
            os.close(descriptor)
            copies.append(copy)
            shutil.copyfile(source, copy)
        for copy, (_, target) in zip(list(copies), files, strict=True):
            os.replace(copy, target)
            copies.remove(copy)
    finally:
        for copy in copies:
            os.remove(copy)
