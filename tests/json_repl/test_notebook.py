"""Notebooks, read and run as people run them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from json_repl.errors import UnreadableNotebook
from json_repl.notebook import read_notebook

Run = Callable[..., subprocess.CompletedProcess[str]]


def code(source: str, *tags: str, name: str = "") -> dict[str, Any]:
    about = {"tags": list(tags)} if tags else {}
    cell: dict[str, Any] = {
        "cell_type": "code",
        "metadata": about,
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
    return cell | {"id": name} if name else cell


def write(path: Path, cells: Sequence[object], nbformat: object = 4, **metadata: object) -> bytes:
    content = {"nbformat": nbformat, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path.read_bytes()


@pytest.fixture
def run(log_root: Path, tmp_path: Path) -> Run:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "json_repl", "run", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | environment,
            cwd=tmp_path,
            check=False,
        )

    return run


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_bytes().splitlines()]


MARKDOWN = {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "raise SystemExit"]}


def test_code_cells_run_in_order_and_the_file_stays_as_it_is(
    tmp_path: Path, log_root: Path, run: Run
) -> None:
    cells = [
        MARKDOWN,
        code("x = 1\nprint('hi')\ndisplay('shown')\nx + 1", name="first"),
        code(" \n"),
        code("raise SystemExit", "skip-execution"),
        code("%timeit -n1 -r1 x\n!echo from a shell", name="magic"),
    ]
    before = write(tmp_path / "study.ipynb", cells)
    done = run("study.ipynb")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("hi\n'shown'\n2\n")
    assert done.stdout.endswith("from a shell\n")
    assert (tmp_path / "study.ipynb").read_bytes() == before
    lines = lines_of(log_root / "local/unknown.study.jsonl")
    assert [(line["seq"], line["route"], line["tags"]) for line in lines] == [
        (1, "worker", {"shell": "ipython", "cell": "first"}),
        (2, "worker", {"shell": "ipython", "cell": "magic"}),
    ]


def test_the_first_cell_that_fails_ends_the_run(tmp_path: Path, log_root: Path, run: Run) -> None:
    cells = [
        code("1 / 0", "raises-exception", name="may"),
        code("print('on')\n{}['k']", name="fails"),
        code("print('never')"),
    ]
    write(tmp_path / "n.ipynb", cells)
    for arguments in (["--route", "local"], []):
        done = run("n.ipynb", *arguments)
        assert (done.returncode, done.stdout) == (1, "on\n")
        assert "ZeroDivisionError" in done.stderr
        assert done.stderr.endswith(
            "json-repl: stopped at cell 2 of 3 (fails) of n.ipynb; --keep-going runs the others too\n"
        )


def test_a_cell_that_may_raise_may_not_crash(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "n.ipynb", [code("import os\nos._exit(3)", "raises-exception"), code("print('never')")])
    done = run("n.ipynb")
    assert (done.returncode, done.stdout) == (1, "")


def test_magics_without_a_shell_that_knows_them_are_an_error_that_says_what_to_do(
    tmp_path: Path, run: Run
) -> None:
    write(tmp_path / "n.ipynb", [code("%matplotlib inline")])
    for arguments, environment in ((["--route", "local"], {}), ([], {"USE_SUBPROCESS_WORKER": "0"})):
        done = run("n.ipynb", *arguments, **environment)
        assert done.returncode == 1
        assert "SyntaxError" in done.stderr
        assert "run the notebook with --route worker" in done.stderr


def test_plan_and_task_come_from_the_environment_then_from_the_notebook(
    tmp_path: Path, log_root: Path, run: Run
) -> None:
    flow = {"plan_id": "P-1", "task_id": "T-7", "task_name": "study"}
    write(tmp_path / "n.ipynb", [code("1")], flow=flow)
    assert run("n.ipynb", "--route", "local").returncode == 0
    assert run("n.ipynb", "--route", "local", FLOW_TASK_ID="T-8").returncode == 0
    assert [path.name for path in sorted((log_root / "P-1").glob("*.jsonl"))] == [
        "7.study.jsonl",
        "8.study.jsonl",
    ]


def test_outcomes_can_be_printed_as_json_lines(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "n.ipynb", [code("1 + 1"), code("x = 1")])
    outcomes = [json.loads(line) for line in run("n.ipynb", "--json").stdout.splitlines()]
    assert [outcome["success"] for outcome in outcomes] == [True, True]
    assert outcomes[0]["result"]["text/plain"] == "2"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "n.ipynb is not a notebook: not JSON"),
        ("[" * 100_000, "n.ipynb is not a notebook: not JSON"),
        ("[]", "n.ipynb is not a notebook: it names no nbformat"),
        ('{"nbformat": "4"}', "it names no nbformat"),
        ('{"nbformat": 4}', "its cells must be a list"),
        ('{"nbformat": 4, "cells": [3]}', "cell 1 must be an object with a source"),
        ('{"nbformat": 4, "cells": [{"cell_type": "code", "source": [1]}]}', "cell 1 must be"),
        ('{"nbformat": 5, "cells": []}', "format 5; this version reads format 4"),
        ('{"nbformat": 3, "worksheets": []}', "jupyter nbconvert --to notebook --nbformat 4 n.ipynb"),
        ('{"nbformat": 4, "metadata": {"language_info": {"name": "R"}}, "cells": []}', "a notebook in R"),
    ],
)
def test_what_is_no_notebook_of_ours_is_one_line_and_exit_code_2(
    tmp_path: Path, run: Run, content: str, said: str
) -> None:
    (tmp_path / "n.ipynb").write_text(content)
    done = run("n.ipynb")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_a_notebook_that_is_not_there_is_one_line(run: Run) -> None:
    done = run("none.ipynb")
    assert (done.returncode, done.stderr) == (
        2,
        "json-repl: none.ipynb can't be read: No such file or directory\n",
    )


def test_a_source_is_a_text_or_a_list_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    write(path, [code("a\nb"), {**code(""), "source": ["a\n", "b"]}])
    assert [cell.code for cell in read_notebook(str(path)).cells] == ["a\nb", "a\nb"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["cells", "cell_type", "source", "metadata", "tags", "id", "kernelspec", "language"]
    ), inner, max_size=4),
)  # fmt: skip


@given(cells=JSON, metadata=JSON)
def test_any_content_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cells: Any, metadata: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": cells, "metadata": metadata}))
    with contextlib.suppress(UnreadableNotebook):
        assert all(isinstance(cell.code, str) for cell in read_notebook(str(path)).cells)
