"""The notebooks run anywhere, and show what is stored in them.

After a change: `WRITE_NOTEBOOKS=1 python -m pytest tests/notebooks` stores what they show; look at the plots.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel_host import RECORDED, list_fonts, register

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
NAMES = ["analysis", "rewind", "tour"]

MAX_BYTES = 150_000

VARIES = "varies"
"""The tag of a cell whose text hangs on the time that something took."""

_VARYING = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<session>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<hash>"),
    (re.compile(r" *\d+\.\d s ago"), "<age>"),
    (re.compile(r" *\d+\.\d MB of its own"), "<memory>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?"), "<time>"),
)


@pytest.fixture
def log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the kernels that are started meanwhile log; they are registered here, under their own names."""
    for name in list(os.environ):
        if name.startswith(("FLOW_", "TASK_LOG", "JPY_", "JUPYTER", "PYTEST_", "IPYTHON")):
            monkeypatch.delenv(name)
    list_fonts()
    register(tmp_path / "jupyter", "json_repl", RECORDED)
    register(tmp_path / "jupyter", "json_repl_isolated", (*RECORDED, "--isolated"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "task_logger"
    monkeypatch.setenv("TASK_LOG_DIR", str(folder))
    yield folder
    gc.collect()  # nbclient leaves sockets to it


def _read(name: str) -> Any:
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def _run(name: str, folder: Path) -> Any:
    """The notebook as it is after all of its cells have run, in a folder that holds nothing else."""
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = _read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    sockets = tempfile.mkdtemp(prefix="k-")
    manager = AsyncKernelManager(
        kernel_name=notebook.metadata.kernelspec.name, transport="ipc", ip=f"{sockets}/s"
    )
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=60,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(cleanup_kc=True)  # raises where a cell fails that isn't meant to
    finally:
        manager.context.destroy(linger=0)
        shutil.rmtree(sockets)
    return notebook


def _store(name: str, notebook: Any, log_folder: Path) -> None:
    """Write what it shows into the notebook; of this machine nothing is left in it."""
    import nbformat

    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    text = text.replace(str(log_folder), "…/task_logger")
    (FOLDER / f"{name}.ipynb").write_text(text + "\n", encoding="utf-8")


def _texts(notebook: Any, log_folder: Path) -> dict[str, list[tuple[str, str]]]:
    """What each cell shows, by its id: kinds of outputs with their text, without what differs each time."""
    return {
        cell.id: [(kind, _without_varying(text, cell, log_folder)) for kind, text in _outputs(cell)]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def _outputs(cell: Any) -> Iterator[tuple[str, str]]:
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.name, output.text
        elif output.output_type == "error":
            yield "error", "\n".join(output.traceback)
        else:
            yield " ".join((output.output_type, *sorted(output.data))), output.data["text/plain"]


def _without_varying(text: str, cell: Any, log_folder: Path) -> str:
    if VARIES in cell.metadata.get("tags", []):
        return ""
    text = text.replace(str(log_folder), "…/task_logger")
    for varying, instead in _VARYING:
        text = varying.sub(instead, text)
    return text


@pytest.mark.filterwarnings("ignore")  # of others: nbclient, zmq
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_is_stored_in_it(name: str, log_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    notebook = _run(name, tmp_path / "empty")
    if os.environ.get("WRITE_NOTEBOOKS"):
        _store(name, notebook, log_folder)
    assert _texts(notebook, log_folder) == _texts(_read(name), log_folder)
    assert list((tmp_path / "empty").iterdir()) == []


def test_all_notebooks_are_tested_and_named_in_the_readme() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"({name}.ipynb)" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_small_has_run_in_order_and_tells_nothing_of_the_machine(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_BYTES
    cells = [cell for cell in _read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for word in ("/tmp/", "/home/", "/root", "/usr/", "site-packages", sys.prefix, "ipykernel_"):
        assert word not in text, word
