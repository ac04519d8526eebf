"""Notebooks replayed: IPython's shell on both sides, magics, images, the kernel's own commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from json_repl.replay import dry_run
from task_logger import TaskLogger
from tests.json_repl.replay.recorded_logs import change, record, replayed, told, verdicts
from tests.kernel_host import RECORDED, list_fonts, running_kernel

CELLS = (
    "from IPython.display import HTML, display\nx = [3, 1, 2]\ndisplay(HTML('<b>x</b>'), x)",
    "%%capture said\nprint('caught')",
    "said.stdout",
    "where = %pwd\nlisted = !echo one two\nlisted, isinstance(where, str)",
    "import matplotlib.pyplot as plt\nplt.plot(sorted(x));",
    "import sys\nprint('before', file=sys.stderr)\n1 / 0",
    "%no_such_magic",
    "In[1][:4], _3, x",
)


@pytest.fixture(autouse=True)
def _fonts_are_listed() -> None:
    list_fonts()


def write(path: Path, cells: tuple[str, ...]) -> None:
    written: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {"tags": ["raises-exception"]},
            "outputs": [],
            "execution_count": None,
            "source": code,
        }
        for number, code in enumerate(cells)
    ]
    path.write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": written}), encoding="utf-8"
    )


def other_image(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    image = lines[4]["displays"][0]["image/png"]
    lines[4]["displays"][0]["image/png"] = f"{image[:500]}{'A' if image[500] != 'A' else 'B'}{image[501:]}"
    return lines


@pytest.mark.usefixtures("no_leaks")
def test_a_notebook_that_was_run_replays_to_match_images_included(log_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "tour.ipynb", CELLS)
    command = [sys.executable, "-m", "json_repl", "run", str(tmp_path / "tour.ipynb"), "--keep-going"]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    (path,) = log_root.glob("*/*.jsonl")
    checked = dry_run(str(path))
    assert verdicts(checked) == ["READY"] * len(CELLS), told(checked)
    report = replayed(path)
    assert verdicts(report) == ["MATCH"] * len(CELLS), told(report)
    changed = replayed(change(path, tmp_path / "other" / "1.x.jsonl", other_image))
    (step,) = [step for step in changed.steps if step.verdict != "MATCH"]
    assert [(each.field, each.line, each.column) for each in step.differences] == [
        ("displays[0][image/png]", 1, 501)
    ]


def test_the_isolated_kernels_cells_replay_to_match_and_its_own_commands_are_lineage(tmp_path: Path) -> None:
    with running_kernel(tmp_path, (*RECORDED, "--isolated"), FLOW_TASK_ID="T-7") as kernel:
        for code in CELLS:
            kernel.run(code)
        kernel.run("x.append('lost')")
        kernel.run("%rewind 8")
        kernel.run("x")
        said = kernel.run("%branch 1").text()
        kernel.run("%rewind 0")
        kernel.run("x.append('in the branch'); x")
        kernel.run(f"%branch {kernel.lines()[0]['session_id']}")
        kernel.run("x, 'in the branch' in x")
        kernel.run("%snapshots")
        kernel.run("%rewind nowhere")
        kernel.run("x")
        assert "begins with the state after 1" in said
    (path,) = (tmp_path / "logs").glob("*/*.jsonl")
    expected = ["MATCH"] * 9 + ["SKIP", "MATCH", "SKIP", "SKIP", "MATCH"] + ["SKIP", "MATCH"] + ["SKIP"] * 2
    report = replayed(path)
    assert verdicts(report) == [*expected, "MATCH"], told(report)
    assert {step.reason for step in report.steps if step.verdict == "SKIP"} == {
        "the kernel answered it, no code ran; the lines after it start from the state that it left"
    }
    assert verdicts(dry_run(str(path))) == [
        "READY" if verdict == "MATCH" else "SKIP" for verdict in [*expected, "MATCH"]
    ]


@pytest.mark.slow
def test_the_recorded_kernels_cells_replay_in_a_worker_with_the_same_shell(tmp_path: Path) -> None:
    with running_kernel(tmp_path, FLOW_TASK_ID="T-7") as kernel:
        for code in CELLS:
            kernel.run(code)
    (path,) = (tmp_path / "logs").glob("*/*.jsonl")
    report = replayed(path)
    assert verdicts(report) == ["MATCH"] * len(CELLS), told(report)


def test_lines_of_another_kernel_are_skipped(log_root: Path) -> None:
    with TaskLogger("P-1", 7, "tapped") as log:
        log.write({"code": "x <- 1", "actor": "jupyter", "route": "jupyter", "isolation": "external"})
    (path,) = log_root.glob("*/*.jsonl")
    (step,) = dry_run(str(path)).steps
    assert (step.verdict, step.reason) == ("SKIP", "it was recorded on another kernel")


@pytest.mark.usefixtures("no_leaks")
def test_a_notebook_replays_in_the_sandbox_and_modules_for_a_missing_cache_are_explained(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code = "import os\nif not os.path.exists(os.path.expanduser('~/cache')): __import__('wave')"
    path = record(["x = 3\n!echo {x}", code, "%who_ls"], shell="ipython")
    report = replayed(path, isolation="sandbox")
    assert verdicts(report) == ["MATCH", "DIFF", "MATCH"], told(report)
    assert [each.field for each in report.steps[1].differences] == ["added_imports"]
    assert "--isolation process" in report.steps[1].hints[0]
