"""Which plan and task a notebook's cells belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from json_repl.notebook_task import notebook_task, task_of_notebook
from task_logger.record import TaskIds


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLOW_PLAN_ID", "FLOW_TASK_ID", "FLOW_TASK_NAME", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)


def notebook(folder: Path, metadata: Any) -> str:
    path = folder / "Sales of May.ipynb"
    path.write_text(json.dumps({"metadata": metadata, "cells": []}), encoding="utf-8")
    return str(path)


def ids(plan_id: str = "local", task_id: str = "unknown", task_name: str = "adhoc") -> TaskIds:
    return TaskIds(plan_id=plan_id, task_id=task_id, task_name=task_name)


def test_without_a_notebook_there_are_the_defaults() -> None:
    assert notebook_task() == ids()


def test_the_notebooks_metadata_names_plan_and_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = {"plan_id": "P-1", "task_id": "T-7", "task_name": "sales"}
    monkeypatch.setenv("JPY_SESSION_NAME", notebook(tmp_path, {"flow": flow}))
    assert notebook_task() == ids("P-1", "T-7", "sales")


def test_the_environment_wins_each_id_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", notebook(tmp_path, {"flow": {"plan_id": "P-1", "task_id": "T-7"}}))
    monkeypatch.setenv("FLOW_PLAN_ID", "P-2")
    assert notebook_task() == ids("P-2", "T-7", "Sales of May")


@pytest.mark.parametrize(
    "metadata", [{}, {"flow": None}, {"flow": "P-1"}, {"flow": {"plan_id": 7}}, None, []]
)
def test_a_notebook_that_names_none_gives_its_own_name(tmp_path: Path, metadata: Any) -> None:
    assert task_of_notebook(notebook(tmp_path, metadata)) == ids(task_name="Sales of May")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000])
def test_a_file_that_is_no_notebook_gives_its_own_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_bytes(content)
    assert task_of_notebook(str(path)) == ids(task_name="broken")


def test_a_name_of_no_file_is_the_tasks_name() -> None:
    assert task_of_notebook("/nowhere/console-1") == ids(task_name="console-1")


def test_metadata_that_is_known_is_not_read_again() -> None:
    assert task_of_notebook("/nowhere/a.ipynb", {"flow": {"task_id": "T-3"}}) == ids(
        task_id="T-3", task_name="a"
    )
