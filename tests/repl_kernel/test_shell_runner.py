"""IPython's shell in the worker: what differs from plain Python, and what must not."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from repl_kernel import interruption
from repl_kernel.executor import OnDisplay, OnInput, OnOutput
from repl_kernel.timeline import TimelineExecutor
from task_logger.record import NO_CHANGES, ExecutionOutcome, ExecutionRequest, TaskIds
from tests.conftest import PATIENCE_S, WaitUntil

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="shell")


class Caller:
    """One worker with the shell, and the requests to it."""

    def __init__(self) -> None:
        self.executor = TimelineExecutor(shell="ipython")
        self.seq = 0

    def run(
        self,
        code: str,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
        atomic: bool = False,
    ) -> ExecutionOutcome:
        self.seq += 1
        request = ExecutionRequest(
            code=code,
            session_id="s",
            seq=self.seq,
            task=TASK,
            timestamp="2026-11-20T10:00:00.000Z",
            atomic=atomic,
        )
        return self.executor.execute(request, on_output, on_input, on_display)

    def await_snapshot(self, wait_until: WaitUntil) -> None:
        """Wait until the live state is kept."""
        wait_until(lambda: self.seq in {state["seq"] for state in self.executor.snapshots()})

    def completion(self, code: str, wait_until: WaitUntil) -> Mapping[str, object]:
        """What can be typed behind `code`, which is something: asked again where no answer came in time."""
        reply: Mapping[str, object] = {}

        def is_answered() -> object:
            nonlocal reply
            reply = self.executor.complete(code, len(code))
            return reply["matches"]

        wait_until(is_answered)
        return reply

    def value(self, code: str) -> object:
        outcome = self.run(code)
        assert outcome.result is not None, outcome
        return outcome.result["text/plain"]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        made = Caller()
        yield made
        made.executor.close()


def test_what_ipython_puts_into_the_namespace_is_no_variable(caller: Caller) -> None:
    assert caller.run("shown = 1\nshown").changes.added_vars == ["shown"]
    names = [variable["name"] for variable in caller.executor.variables()]
    assert "shown" in names
    assert not {"In", "Out", "exit", "quit", "get_ipython", "open"} & set(names)


def test_in_and_out_go_by_the_numbers_of_executions(caller: Caller) -> None:
    caller.run("40 + 2")
    seq = caller.seq
    assert caller.value(f"Out[{seq}], _{seq}, _, In[{seq}]") == "(42, 42, 42, '40 + 2')"


def test_mutation_in_place_is_seen_as_on_every_route(caller: Caller, wait_until: WaitUntil) -> None:
    caller.run("things = [1]\nother = [1]")
    changes = NO_CHANGES

    def is_searched() -> bool:  # so short an execution leaves little time to look: it may say that it ran out
        nonlocal changes
        changes = caller.run("things.append(2)").changes
        return changes.diff_complete

    wait_until(is_searched)
    assert changes.changed_vars == ["things"]


def test_a_traceback_has_the_frames_of_the_user_alone(caller: Caller) -> None:
    error = caller.run("def divide():\n    return 1 / 0\ndivide()").error
    assert error is not None
    assert (error.type, error.line) == ("ZeroDivisionError", 2)
    files = [line.strip() for line in error.traceback.splitlines() if line.strip().startswith("File")]
    assert files == [
        f'File "<execution {caller.seq}>", line 3, in <module>',
        f'File "<execution {caller.seq}>", line 2, in divide',
    ]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("x = = 1", "SyntaxError"),
        ("if True:\n    x\n  y", "IndentationError"),
        ("%no_such_magic", "UsageError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("'\ud800' +", "UnicodeEncodeError"),
    ],
)
def test_whatever_code_raises_is_the_outcome_and_shown_once(caller: Caller, code: str, name: str) -> None:
    outcome = caller.run(code)
    assert outcome.error is not None
    assert (outcome.status, outcome.error.type) == ("error", name)
    assert outcome.stderr == outcome.error.traceback
    assert "site-packages" not in outcome.stderr
    assert outcome.stdout == ""


def test_an_exception_that_a_magic_shows_is_not_the_outcome(caller: Caller) -> None:
    outcome = caller.run(
        "class Broken:\n    def __repr__(self):\n        raise ValueError('no text')\nBroken()"
    )
    assert outcome.status == "ok"
    assert "ValueError: no text" in outcome.stderr


@pytest.mark.parametrize("code", ["while True: display(1)", "import asyncio\nawait asyncio.sleep(60)"])
def test_an_interrupt_cuts_no_message_in_two(caller: Caller, code: str) -> None:
    began = threading.Event()
    interrupter = threading.Thread(target=lambda: (began.wait(), caller.executor.interrupt()))
    interrupter.start()
    outcome = caller.run("print('runs')\n" + code, on_output=lambda *_: began.set())
    interrupter.join()
    assert outcome.status == "interrupted"
    assert outcome.error is not None
    assert outcome.error.traceback.endswith("KeyboardInterrupt\n")
    assert caller.value("'goes on'") == "'goes on'"


def test_an_interrupt_in_the_middle_of_what_is_displayed_is_not_lost(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "_STEP_S", PATIENCE_S)  # no second one is sent
    asked = threading.Event()

    def interrupt(_: Mapping[str, Any]) -> None:
        if not asked.is_set():
            asked.set()
            caller.executor.interrupt()

    outcome = caller.run("for _ in range(50): display('x' * 5_000_000)", on_display=interrupt)
    assert outcome.status == "interrupted"


def test_a_script_cell_leaves_no_thread_that_forbids_snapshots(caller: Caller, wait_until: WaitUntil) -> None:
    assert caller.run("%%bash\necho scripted").stdout == "scripted\n"
    outcome = caller.run("import threading\nthreading.active_count()")
    assert outcome.result == {"text/plain": "1"}
    caller.await_snapshot(wait_until)


def test_the_history_is_not_on_disk(caller: Caller) -> None:
    caller.run("'a text that no file may hold'")
    folder = caller.run("get_ipython().ipython_dir").result
    assert folder is not None
    root = Path(str(folder["text/plain"]).strip("'"))
    assert not [
        file for file in root.rglob("*") if file.is_file() and b"no file may hold" in file.read_bytes()
    ]


def test_what_a_fork_of_the_users_displays_is_not_sent_in_the_workers_name(caller: Caller) -> None:
    outcome = caller.run("import os\nif os.fork() == 0:\n    display('child')\n    os._exit(0)\nos.wait()[1]")
    assert (outcome.result, list(outcome.displays)) == ({"text/plain": "0"}, [])


def test_what_a_thread_displays_later_comes_with_a_later_execution(caller: Caller) -> None:
    caller.run(
        "import threading\ngo = threading.Event()\n"
        "thread = threading.Thread(target=lambda: (go.wait(), display('late')))\nthread.start()"
    )
    outcome = caller.run("go.set()\nthread.join()")
    assert [bundle["text/plain"] for bundle in outcome.displays] == ["'late'"]
    assert caller.run("del thread").status == "ok"


def test_displays_that_are_too_many_for_a_line_become_an_artifact(caller: Caller) -> None:
    outcome = caller.run("for _ in range(5): display({'text/plain': 'x' * 3_000_000}, raw=True)")
    (artifact,) = outcome.artifacts
    assert len(outcome.displays) == 2
    assert artifact.field == "displays"
    assert artifact.content is not None
    assert not isinstance(artifact.content, bytes)
    artifact.content.seek(0)
    assert len(artifact.content.read().splitlines()) == 3
    artifact.content.close()


def test_what_was_displayed_before_a_crash_is_kept(caller: Caller) -> None:
    outcome = caller.run("display({'text/plain': 'last words'}, raw=True)\nimport os\nos._exit(7)")
    assert outcome.status == "crashed"
    assert list(outcome.displays) == [{"text/plain": "last words"}]


def test_a_state_that_was_gone_back_to_has_its_shell(caller: Caller, wait_until: WaitUntil) -> None:
    caller.run("state = 'old'\n%load_ext autoreload")
    seq = caller.seq
    caller.await_snapshot(wait_until)
    caller.run("state = 'new'")
    caller.executor.rewind(seq)
    assert caller.value("state") == "'old'"
    assert caller.run("%autoreload 0").status == "ok"
    assert caller.run("import asyncio\nawait asyncio.sleep(0)").status == "ok"


def test_an_atomic_execution_that_fails_leaves_the_namespace_as_it_was(caller: Caller) -> None:
    assert caller.run("half = 1\n1 / 0", atomic=True).rolled_back
    assert caller.run("half").error is not None


def test_completion_knows_magics_and_attributes(caller: Caller, wait_until: WaitUntil) -> None:
    caller.run("number = 5")
    assert "%timeit" in str(caller.completion("%timei", wait_until)["matches"])
    reply = caller.completion("ä = number.bit_l", wait_until)
    assert (reply["matches"], reply["cursor_start"], reply["cursor_end"]) == ([".bit_length"], 10, 16)


def test_a_hanging_dir_holds_completion_up_for_a_second_at_most(caller: Caller) -> None:
    caller.run("class Hangs:\n    def __dir__(self):\n        while True: pass\nhangs = Hangs()")
    assert caller.executor.complete("hangs.", 6)["matches"] == []
    assert caller.value("1 + 1") == "2"


def test_inspection_says_what_a_question_mark_does(caller: Caller, wait_until: WaitUntil) -> None:
    caller.run("def documented():\n    'Says so.'")
    reply: Mapping[str, object] = {}

    def is_found() -> object:  # asked again where no answer came in time
        nonlocal reply
        reply = caller.executor.inspect("documented()", 4)
        return reply["found"]

    wait_until(is_found)
    assert "Says so." in str(reply["data"])
    assert caller.executor.inspect("nothing_there", 4)["found"] is False


def test_a_debugger_finds_the_last_exception(caller: Caller) -> None:
    caller.run("culprit = 0\n1 / culprit")
    answers = iter(["p culprit + 41", "q"])
    outcome = caller.run("%debug", on_input=lambda *_: next(answers))
    assert "41" in outcome.stdout


def test_what_is_printed_is_not_kept_in_the_worker(caller: Caller) -> None:
    caller.run("print('x' * 1000)")
    assert caller.value("dict(get_ipython().history_manager.outputs)") == "{}"


def test_a_cell_without_a_stdout_costs_no_other_its_own(caller: Caller) -> None:
    caller.run("import sys; sys.stdout, kept = None, sys.stdout")
    assert caller.run("sys.stdout = kept; print('again')").stdout == "again\n"
