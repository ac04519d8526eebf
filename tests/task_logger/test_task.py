"""Which plan and task something belongs to, and where their log is."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import platformdirs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from task_logger.errors import ConfigurationError
from task_logger.record import TaskIds
from task_logger.task import (
    check_settings,
    current_context,
    log_path,
    log_root,
    normalize_task_name,
    run_in_thread,
    task_context,
    task_ids,
    task_number,
)

any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("FLOW_", "TASK_LOG_")):
            monkeypatch.delenv(variable)


@given(any_text)
@example("..")
@example("a/../../b")
@example("é" * 100)
@example("\0")
@example("क्षत्रिय")
def test_a_normalized_name_is_a_safe_file_name(text: str) -> None:
    name = normalize_task_name(text)
    assert 1 <= len(name.encode()) <= 100
    assert all(char.isalpha() or char.isdecimal() or char in "_-" for char in name)
    assert name == unicodedata.normalize("NFC", name)
    assert normalize_task_name(name) == name


@given(st.text(st.characters(categories=["L", "Nd"], include_characters="_-"), min_size=1, max_size=25))
def test_letters_of_any_script_digits_and_both_dashes_stay(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    if all(char.isalpha() or char.isdecimal() or char in "_-" for char in composed):
        assert composed.encode().startswith(normalize_task_name(text).encode())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("user login bug fix", "user_login_bug_fix"),
        ("user_login-2", "user_login-2"),
        ("", "_"),
        ("!!!", "_"),
        (".", "_"),
        ("..", "_"),
        ("../../etc/passwd", "_etc_passwd"),
        ("a  / b", "a_b"),
        ("a__b", "a__b"),
        ("naïve 任务 задача", "naïve_任务_задача"),
        ("nai\u0308ve", "naïve"),
        ("½²", "_"),
        ("x" * 200, "x" * 100),
        ("é" * 60, "é" * 50),
        ("a" + "é" * 60, "a" + "é" * 49),
        ("\ud800", "_"),
    ],
)
def test_names_are_normalized_as_promised(text: str, name: str) -> None:
    assert normalize_task_name(text) == name


@pytest.mark.parametrize(
    ("task_id", "number"),
    [("T-7", 7), ("T-007", 7), ("T-0", 0), ("7", 0), ("T-", 0), ("T-7x", 0), ("t-7", 0), ("T-٣", 0),
     ("T-7\n", 0), ("T-" + "9" * 5000, 0)],
)  # fmt: skip
def test_only_an_id_of_t_and_digits_has_a_number(task_id: str, number: int) -> None:
    assert task_number(task_id) == number


def test_a_log_is_named_after_plan_number_and_name() -> None:
    path = log_path("/logs", TaskIds(plan_id="P 1", task_id="T-7", task_name="user login bug fix"))
    assert path == "/logs/P_1/7.user_login_bug_fix.jsonl"


def test_an_id_without_a_number_stands_in_the_name_itself() -> None:
    assert log_path("/logs", TaskIds(plan_id="p", task_id="abc/d", task_name="n")) == "/logs/p/abc_d.n.jsonl"


@given(plan=any_text, task=any_text, name=any_text)
def test_no_id_can_leave_the_root(plan: str, task: str, name: str) -> None:
    path = log_path("/logs", TaskIds(plan_id=plan, task_id=task, task_name=name))
    assert os.path.normpath(path) == path
    assert path.startswith("/logs/")
    assert path.count("/") == 3
    assert max(len(part.encode()) for part in path.split("/")) <= 255


def test_ids_come_from_arguments_then_the_environment_then_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert task_ids() == TaskIds(plan_id="local", task_id="unknown", task_name="adhoc")
    monkeypatch.setenv("FLOW_PLAN_ID", "P-9")
    monkeypatch.setenv("FLOW_TASK_ID", "T-9")
    monkeypatch.setenv("FLOW_TASK_NAME", "")
    assert task_ids(task_id="T-1") == TaskIds(plan_id="P-9", task_id="T-1", task_name="adhoc")


def test_an_id_that_is_no_text_is_named() -> None:
    with pytest.raises(ConfigurationError, match="task_id: must be a text, not a int"):
        task_ids(task_id=7)  # type: ignore[arg-type]  # what a caller without a type checker may do
    with pytest.raises(ConfigurationError, match="plan_id"), task_context(plan_id=7):  # type: ignore[arg-type]
        pass


def test_a_context_overrides_ids_and_adds_tags_and_inner_ones_add_to_outer_ones() -> None:
    session = TaskIds(plan_id="p", task_id="t", task_name="n")
    assert current_context() is None
    with task_context(task_id="T-1", step=1, who="a"):
        with task_context(plan_id="P-2", step=2):
            inner = current_context()
        outer = current_context()
    assert current_context() is None
    assert inner is not None
    assert outer is not None
    assert inner.task_ids(session) == TaskIds(plan_id="P-2", task_id="T-1", task_name="n")
    assert inner.tags == {"step": 2, "who": "a"}
    assert outer.task_ids(session) == TaskIds(plan_id="p", task_id="T-1", task_name="n")
    assert outer.tags == {"step": 1, "who": "a"}


def test_an_error_inside_a_context_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), task_context(step=1):
        raise ZeroDivisionError
    assert current_context() is None


def test_asyncio_tasks_keep_their_contexts_apart() -> None:
    async def one(number: int) -> object:
        with task_context(task_id=f"T-{number}"):
            await asyncio.sleep(0)
            context = current_context()
            return context and context.task_id

    async def both() -> list[object]:
        return list(await asyncio.gather(one(1), one(2)))

    assert asyncio.run(both()) == ["T-1", "T-2"]


def test_threads_see_the_context_through_run_in_thread_or_copy_context_and_not_otherwise() -> None:
    seen: list[object] = []
    with task_context(step=1):
        plain = threading.Thread(target=lambda: seen.append(current_context()))
        plain.start()
        plain.join()
        copied = contextvars.copy_context()
        future = run_in_thread(lambda suffix: (current_context(), suffix), "x")
    context, suffix = future.result(timeout=10)
    assert seen == [None]
    assert context is not None
    assert (context.tags, suffix) == ({"step": 1}, "x")
    assert copied.run(current_context) == context


def test_what_a_thread_raises_is_in_its_future() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0).result(timeout=10)


def test_the_root_is_given_or_set_or_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_root() == f"{platformdirs.user_state_dir()}/task_logger"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert log_root() == f"{platformdirs.user_state_dir()}/task_logger" == "/state/task_logger"
    monkeypatch.setenv("XDG_STATE_HOME", "  ")
    assert log_root() == f"{platformdirs.user_state_dir()}/task_logger"
    monkeypatch.setenv("TASK_LOG_DIR", "logs")
    assert log_root() == str(Path.cwd() / "logs")
    assert log_root("/given") == log_root(Path("/given")) == "/given"
    monkeypatch.setenv("TASK_LOG_DIR", "~/logs")
    assert log_root() == log_root("~/logs") == str(Path.home() / "logs")
    assert log_root("~logs") == str(Path.cwd() / "~logs")


@pytest.mark.parametrize("folder", ["a\0b", ""])
def test_a_root_that_is_no_path_is_named(folder: str) -> None:
    with pytest.raises(ConfigurationError, match="log_dir"):
        log_root(folder)


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = check_settings("/logs")
    assert (settings.root, settings.fsync, settings.strict) == ("/logs", False, False)
    monkeypatch.setenv("TASK_LOG_FSYNC", "always")
    monkeypatch.setenv("TASK_LOG_STRICT", "1")
    settings = check_settings("/logs")
    assert (settings.fsync, settings.strict) == (True, True)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TASK_LOG_FSYNC", "sometimes", "must be off or always, not 'sometimes'"),
        ("TASK_LOG_STRICT", "yes", "must be 0 or 1, not 'yes'"),
        ("TASK_LOG_KEY", "keyring:", "is empty, or names no file or key"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=says) as caught:
        check_settings()
    assert caught.value.setting == variable


def test_nothing_heavy_is_imported_for_ids_paths_and_records() -> None:
    code = (
        "import sys; from task_logger import codec, task, artifacts, reader; task.check_settings(); "
        "print([m for m in ('rich', 'click', 'platformdirs', 'asyncio', 'subprocess', 'socket', 'tempfile',"
        " 'shutil', 'logging', 'random', 'psutil', 'concurrent') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
