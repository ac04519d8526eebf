"""The kernels by name in what runs notebooks without a browser: papermill and `jupyter execute`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat.v4
import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent.parent
KERNELS = {"json_repl": "local", "json_repl_isolated": "worker"}
"""Each with the route that its lines name."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command where Jupyter finds our kernels as they are shipped, and writes below a folder."""
    shutil.copytree(PROJECT / "json_repl" / "data" / "kernels", tmp_path / "jupyter" / "kernels")
    ours = ("FLOW_", "TASK_LOG", "JPY_", "JUPYTER", "PYTEST_")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "FLOW_PLAN_ID": "P-1",
        "FLOW_TASK_ID": "T-7",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "TASK_LOG_DIR": str(tmp_path / "logs"),
    }

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def _write(path: Path, *codes: str, tags: tuple[str, ...] = ()) -> None:
    """A notebook that names no kernel; the tags are for its first cell."""
    cells = [nbformat.v4.new_code_cell(code) for code in codes]  # type: ignore[no-untyped-call]
    cells[0].metadata["tags"] = list(tags)
    notebook = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    path.write_text(nbformat.v4.writes_json(notebook), encoding="utf-8")  # type: ignore[no-untyped-call]


def _texts(path: Path) -> list[str]:
    """What each cell of a notebook shows."""
    texts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        shown = [each.get("text") or each.get("data", {}).get("text/plain", "") for each in cell["outputs"]]
        texts.append("".join("".join(text) for text in shown))
    return texts


def _lines(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "logs" / "P-1").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("kernel", KERNELS)
def test_papermill_runs_a_notebook_with_its_parameters_and_each_cell_is_a_line(
    kernel: str, run: Run, tmp_path: Path
) -> None:
    _write(tmp_path / "in.ipynb", "factor = 1", "%cd -q .", "print(6 * factor)", tags=("parameters",))
    options = ("-k", kernel, "-l", "python", "-p", "factor", "7")
    done = run(sys.executable, "-m", "papermill", *options, "in.ipynb", "out.ipynb")
    assert done.returncode == 0, done.stderr
    assert _texts(tmp_path / "out.ipynb") == ["", "", "", "42\n"]
    lines = _lines(tmp_path)
    assert [(line["seq"], line["route"], line["status"]) for line in lines] == [
        (seq, KERNELS[kernel], "ok") for seq in range(1, 5)
    ]
    assert [line["stdout"] for line in lines] == ["", "", "", "42\n"]
    assert lines[1]["changed_vars"] == ["factor"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_papermill_stops_at_the_cell_that_fails_and_so_does_the_log(
    kernel: str, run: Run, tmp_path: Path
) -> None:
    _write(tmp_path / "in.ipynb", "x = 1", "x / 0", "x = 2")
    done = run(sys.executable, "-m", "papermill", "-k", kernel, "-l", "python", "in.ipynb", "out.ipynb")
    assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert [line["status"] for line in _lines(tmp_path)] == ["ok", "error"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_jupyter_execute_runs_a_notebook_by_the_name_of_the_kernel(
    kernel: str, run: Run, tmp_path: Path
) -> None:
    _write(tmp_path / "cells.ipynb", "x = [1]", "x.append(2)\nx")
    jupyter = str(Path(sys.executable).with_name("jupyter"))
    done = run(jupyter, "execute", f"--kernel_name={kernel}", "--inplace", "cells.ipynb")
    assert done.returncode == 0, done.stderr
    assert _texts(tmp_path / "cells.ipynb") == ["", "[1, 2]"]
    lines = _lines(tmp_path)
    assert [line["code"] for line in lines] == ["x = [1]", "x.append(2)\nx"]
    # A change in place is looked for as long as there is time: the line says where that ran out.
    assert [line["changed_vars"] for line in lines] == [[], ["x"] if lines[1]["diff_complete"] else []]


def test_a_cell_that_kills_its_process_leaves_jupyter_execute_running_on_the_isolated_kernel(
    run: Run, tmp_path: Path
) -> None:
    _write(
        tmp_path / "cells.ipynb", "import ctypes; ctypes.string_at(0)", "6 * 7", tags=("raises-exception",)
    )
    jupyter = str(Path(sys.executable).with_name("jupyter"))
    done = run(jupyter, "execute", "--kernel_name=json_repl_isolated", "--inplace", "cells.ipynb")
    assert done.returncode == 0, done.stderr
    assert _texts(tmp_path / "cells.ipynb")[1] == "42"
    assert [line["status"] for line in _lines(tmp_path)] == ["crashed", "ok"]
