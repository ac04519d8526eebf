"""The pytest plugin: recordings (`*.exec.jsonl`) as tests, and `replay_session` to test with them.

Loaded in every pytest run where json-repl is installed, so it imports nothing: the rest is in
`json_repl.testing`, imported where a recording is used.
"""

from __future__ import annotations

import os

import pytest

TYPE_CHECKING = False  # `typing` is loaded by pytest; what is imported for types alone isn't
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from json_repl.testing.fixture import ReplaySessions
    from json_repl.testing.log_items import RecordingFile

RECORDING_SUFFIX = ".exec.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--record`."""
    parser.getgroup("json-repl").addoption(
        "--record",
        dest="json_repl_record",
        choices=("none", "new", "all"),
        default="none",
        help="what replay_session records with real sessions: nothing (the default, and all that CI may), "
        "recordings that aren't there yet, or all anew",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to record in CI: a test that records itself passes, whatever has changed."""
    mode = config.getoption("json_repl_record")
    if mode != "none" and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise pytest.UsageError(f"--record={mode} is refused where CI is set: record before you commit")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> RecordingFile | None:
    """Collect a recording, one test for each of its lines."""
    if not file_path.name.endswith(RECORDING_SUFFIX):
        return None
    from json_repl.testing.log_items import RecordingFile

    return RecordingFile.from_parent(parent, path=file_path)


@pytest.fixture
def replay_session(request: pytest.FixtureRequest) -> Iterator[ReplaySessions]:
    """Sessions that answer from a recording: `replay_session(path, mode="recorded", ignore=())`."""
    from json_repl.testing.fixture import ReplaySessions

    sessions = ReplaySessions(request)
    yield sessions
    sessions.finish()
