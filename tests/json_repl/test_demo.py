"""The demo, as somebody sees it who tries it first."""

from __future__ import annotations

import csv
import json
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

SCHEMA = json.loads((Path(__file__).parent.parent / "execution.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def env(tmp_path: Path) -> Mapping[str, str]:
    return os.environ | {"TASK_LOG_DIR": str(tmp_path)}


def demo(env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "json_repl", "demo"],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        check=False,
    )


def test_the_tour_runs_and_its_log_holds_every_kind_of_execution(
    tmp_path: Path, env: Mapping[str, str]
) -> None:
    done = demo(env)
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.glob("*/*.jsonl")
    assert path.parent == tmp_path / "demo"
    assert str(path) in done.stdout
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    assert {line["route"] for line in lines} == {"worker"}
    assert [line["status"] for line in lines].count("error") == 1
    assert any("statistics" in line["added_imports"] for line in lines)
    (mutated,) = (line for line in lines if line["tags"]["cell"].startswith("A mutation in place"))
    assert "planets" in mutated["changed_vars"] or not mutated["diff_complete"]  # it says where time ran out
    assert all(line["stdout"] in done.stdout for line in lines)


def test_a_pipe_gets_plain_text_within_80_columns(env: Mapping[str, str]) -> None:
    shown = demo(env).stdout
    assert "\x1b" not in shown
    assert not re.search("[─│┌━]", shown)
    too_wide = [line for line in shown.splitlines() if len(line) > 80]
    # Commands and paths are there to be copied: they aren't broken.
    assert all(line.startswith(("jq ", "LOG=")) or ".jsonl" in line or "{" in line for line in too_wide)


def test_a_terminal_gets_colour(env: Mapping[str, str]) -> None:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "json_repl", "demo"],
        stdout=terminal,
        stderr=terminal,
        env={**env, "TERM": "xterm"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(60) == 0
    assert b"\x1b[" in shown


def test_without_jq_the_demo_says_how_to_get_it(tmp_path: Path, env: Mapping[str, str]) -> None:
    done = demo({**env, "PATH": str(tmp_path)})
    assert done.returncode == 0
    assert "apt install jq" in done.stdout


def test_the_data_agree_with_themselves() -> None:
    text = files("json_repl").joinpath("data", "planets.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert [row["name"] for row in rows][:3] == ["Mercury", "Venus", "Earth"]
    assert len(rows) == 8
    for row in rows:
        radius_m = float(row["diameter_km"]) * 500
        density = float(row["mass_1e24_kg"]) * 1e24 / (4 / 3 * math.pi * radius_m**3)
        assert density == pytest.approx(float(row["density_kg_m3"]), rel=0.11)
        kepler = float(row["orbital_period_d"]) ** 2 / float(row["distance_1e6_km"]) ** 3
        assert kepler == pytest.approx(365.2**2 / 149.6**3, rel=0.03)
