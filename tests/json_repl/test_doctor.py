"""`json-repl doctor`: what it finds is what a session gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "json_repl", "doctor", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_where_all_holds_every_denied_attempt_is_shown() -> None:
    found = doctor("--json")
    assert found.returncode == 0, found.stdout
    tiers = {tier["isolation"]: tier for tier in json.loads(found.stdout)["tiers"]}
    assert [tier["holds"] for tier in tiers.values()] == [True, True, True]
    assert len(tiers["sandbox"]["attempts"]) > len(tiers["process"]["attempts"]) > 0
    assert all(attempt["denied"] for tier in tiers.values() for attempt in tier["attempts"])
    text = doctor()
    assert text.returncode == 0
    assert "isolation='sandbox' holds" in text.stdout


def test_without_bubblewrap_it_says_no_and_how_to_get_it(tmp_path: Path) -> None:
    found = doctor("--json", PATH=str(tmp_path))
    assert found.returncode == 1
    sandbox = json.loads(found.stdout)["tiers"][-1]
    assert (sandbox["isolation"], sandbox["holds"], sandbox["layer"]) == ("sandbox", False, "bubblewrap")
    text = doctor(PATH=str(tmp_path))
    assert (text.returncode, text.stderr) == (1, "")
    assert "apt install bubblewrap" in text.stdout
    assert "isolation='process' holds" in text.stdout


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    doctor("--json", TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
