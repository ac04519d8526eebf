"""A live replay that somebody ends: it says how to go on, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.json_repl.replay.recorded_logs import record

PATIENCE_S = 30.0
"""After this, what must happen is taken for failed."""


@pytest.mark.parametrize("isolation", ["process", "sandbox"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_says_how_to_go_on_and_leaves_nothing(
    number: signal.Signals, isolation: str, log_root: Path, tmp_path: Path
) -> None:
    path = record(["import time; time.sleep(0.01)", "x = 1", "print('here')", "time.sleep(0.05)", "x"])
    slow = path.read_text(encoding="utf-8").replace("time.sleep(0.05)", "time.sleep(3600)")
    other = tmp_path / "other" / "1.x.jsonl"
    other.parent.mkdir()
    other.write_text(slow, encoding="utf-8")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "json_repl", "replay", str(other), "--live", "--isolation", isolation]
    replay = subprocess.Popen(
        command, stdin=-3, stdout=-1, stderr=-1, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert replay.stdout
    assert replay.stderr
    try:
        shown = [replay.stdout.readline() for _ in range(3)]
        assert [line[:5] for line in shown] == ["MATCH"] * 3
        started = psutil.Process(replay.pid).children(recursive=True)
        assert started
        replay.send_signal(number)
        rest, errors = replay.communicate(timeout=PATIENCE_S)
    finally:
        replay.kill()
        replay.wait()
    assert (replay.returncode, errors) == (128 + number, "")
    assert "live: 3 MATCH; 100 % of what was compared matches" in rest
    assert "stopped: interrupted; --from 4 goes on" in rest
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert alive == []
    assert list(temporary.iterdir()) == []
