"""A recorded session as a test: what was recorded runs again, and what differs is told to the column."""

from __future__ import annotations

from json_repl.replay.dry_run import dry_run
from json_repl.replay.landing import Landing
from json_repl.replay.normalizers import Normalizer
from json_repl.replay.recording import Recording, load_recording
from json_repl.replay.report import Report, StepReport
from json_repl.replay.runner import LiveReplay, LiveSettings

__all__ = [
    "Landing",
    "LiveReplay",
    "LiveSettings",
    "Normalizer",
    "Recording",
    "Report",
    "StepReport",
    "dry_run",
    "load_recording",
]
