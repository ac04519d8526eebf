"""The worker route under everything that executed code, its caller and the system do to it."""

# ruff: noqa: E501 -- the code under test is easier to read in one piece

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from repl_kernel import interruption
from repl_kernel.errors import ExecutorClosed, WorkerStartFailed
from repl_kernel.executor import OnInput, OnOutput
from repl_kernel.manager import WorkerExecutor
from repl_kernel.process_tree import descendants, read_stat
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from tests.conftest import PATIENCE_S, WaitUntil

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="worker")


@dataclass
class Caller:
    """One worker, and the requests to it."""

    executor: WorkerExecutor
    seq: int = 0
    opened: list[IO[bytes]] = field(default_factory=list)

    def run(
        self,
        code: str,
        *,
        task: TaskIds = TASK,
        time_limit_s: float | None = None,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
    ) -> ExecutionOutcome:
        self.seq += 1
        request = ExecutionRequest(
            code=code,
            session_id="0",
            seq=self.seq,
            task=task,
            timestamp="2026-11-20T10:00:00.000Z",
            time_limit_s=time_limit_s,
        )
        outcome = self.executor.execute(request, on_output, on_input)
        contents = (artifact.content for artifact in outcome.artifacts)
        self.opened += (
            content for content in contents if content is not None and not isinstance(content, bytes)
        )
        return outcome

    def value(self, code: str) -> str | None:
        outcome = self.run(code)
        assert (outcome.status, outcome.error) == ("ok", None), outcome
        return None if outcome.result is None else str(outcome.result["text/plain"])

    def matches(self, code: str, wait_until: WaitUntil) -> object:
        """What can be typed behind `code`, where that is something: asked again where no answer came in time."""
        found: object = []

        def is_answered() -> object:
            nonlocal found
            found = self.executor.complete(code, len(code))["matches"]
            return found

        wait_until(is_answered)
        return found

    def pid(self) -> int:
        return int(self.value("import os\nos.getpid()") or 0)

    def run_until_output(self, code: str, then: Callable[[], object]) -> ExecutionOutcome:
        """Run code; once it has printed something, call `then` in another thread."""
        printed = threading.Event()
        acting = threading.Thread(target=lambda: printed.wait(PATIENCE_S) and then())
        acting.start()
        try:
            return self.run(code, on_output=lambda *_: printed.set())
        finally:
            printed.set()
            acting.join()


@pytest.fixture
def caller(no_leaks: None) -> Iterator[Caller]:
    """A worker whose states are not kept: else a crash costs the variables only where it came soon."""
    caller = Caller(WorkerExecutor(snapshots="off"))
    yield caller
    caller.executor.close()
    for content in caller.opened:
        content.close()


def is_alive(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


# How it dies, and what comes after


@pytest.mark.parametrize(
    ("code", "signal_name", "exit_code"),
    [
        ("os._exit(7)", None, 7),
        ("os.abort()", "SIGABRT", None),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV", None),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", None),
        ("import faulthandler; faulthandler._sigsegv()", "SIGSEGV", None),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", None),
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM", None),
        ("os.execv('/bin/sleep', ['sleep', '60'])", "SIGKILL", None),  # it has hung up: it is not waited for
    ],
)
def test_a_crash_is_named_keeps_its_output_and_the_next_execution_is_right(
    caller: Caller, code: str, signal_name: str | None, exit_code: int | None
) -> None:
    caller.value("x = 1")
    outcome = caller.run(f"import os, signal\nprint('partial')\n{code}")
    assert outcome.status == "crashed"
    assert outcome.stdout == "partial\n"
    assert outcome.error
    assert (outcome.error.signal, outcome.error.exit_code) == (signal_name, exit_code)
    assert outcome.error.type == "WorkerCrashed"
    assert any("variables are lost" in notice for notice in outcome.notices)
    after = caller.run("y = 2\n'x' in globals()")
    assert (after.status, after.result, after.notices) == ("ok", {"text/plain": "False"}, ())


def test_a_worker_killed_between_two_executions_is_replaced_with_a_notice(caller: Caller) -> None:
    pid = caller.pid()
    os.kill(pid, signal.SIGKILL)
    outcome = caller.run("1 + 1")
    assert outcome.status in ("ok", "crashed")
    if outcome.status == "ok":
        assert "SIGKILL" in outcome.notices[0]
    assert caller.pid() != pid


def test_a_killed_keeper_is_replaced_and_nothing_runs_on(caller: Caller, wait_until: WaitUntil) -> None:
    pid = caller.pid()
    keeper = int(caller.value("os.getppid()") or 0)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    outcome = caller.run("1 + 1")
    assert outcome.result == {"text/plain": "2"}
    assert outcome.notices


def test_a_crash_does_not_wait_for_programs_that_go_on_writing(caller: Caller) -> None:
    started = time.monotonic()
    outcome = caller.run("import subprocess, os\np = subprocess.Popen(['yes'])\nos._exit(7)")
    assert outcome.status == "crashed"
    assert time.monotonic() - started < PATIENCE_S
    caller.executor.restart()
    assert caller.value("1") == "1"


def test_no_core_file_and_no_new_privileges(caller: Caller) -> None:
    assert caller.value("import resource\nresource.getrlimit(resource.RLIMIT_CORE)") == "(0, 0)"
    status = caller.value(
        "[l for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0].split()[1]"
    )
    assert status == "'1'"


def test_a_worker_holds_nothing_but_its_own_descriptors_and_one_thread(caller: Caller) -> None:
    code = "import os\nsorted(os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}'))"
    # Its requests come by one socket; by the other it tells of its copies.
    assert caller.value(code) == "['/dev/null', 'pipe', 'pipe', 'socket', 'socket']"
    assert caller.value("len(os.listdir('/proc/self/task'))") == "1"


def test_a_worker_that_cannot_start_says_why(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(WorkerStartFailed, match="/nowhere/python"):
        WorkerExecutor()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(WorkerStartFailed):
        WorkerExecutor()


# Interrupts that must be insisted on

DEAF = """
import functools, itertools, os
sum(itertools.chain(map(functools.partial(os.write, 1), [b'partial\\n']), range(10 ** 11)))
"""
"""Once it has written, no more bytecode runs for many minutes."""


@pytest.mark.parametrize(
    "code",
    [
        DEAF,
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('no', end=''))\nprint('partial')\nwhile True: pass",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('partial')\nwhile True: pass",
        "import signal\nfor s in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(s, signal.SIG_IGN)\nprint('partial')\nwhile True: pass",
    ],
)
def test_code_that_does_not_stop_is_killed_step_by_step(caller: Caller, code: str) -> None:
    outcome = caller.run_until_output(code, caller.executor.interrupt)
    assert outcome.status == "interrupted"
    assert outcome.stdout.startswith("partial\n")
    assert outcome.error
    assert "SIGINT, SIGINT, SIGTERM" in outcome.error.message
    assert any("variables are lost" in notice for notice in outcome.notices)
    assert caller.value("1 + 1") == "2"


def test_asking_again_takes_the_next_step_at_once(caller: Caller) -> None:
    def interrupt_four_times() -> None:
        for _ in range(4):
            caller.executor.interrupt()

    outcome = caller.run_until_output(DEAF, interrupt_four_times)
    assert outcome.status == "interrupted"
    assert outcome.error
    assert outcome.error.signal in ("SIGTERM", "SIGKILL")


def test_after_the_session_has_stood_still_each_step_waits_its_time_again(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "_STEP_S", PATIENCE_S)
    interrupting = caller.executor._interruption
    interrupting.arm(caller.executor._lives.link)
    interrupting.begin("interrupted")
    interrupting._stepped -= 5 * PATIENCE_S
    for _ in range(4):
        interrupting.go_on()
    interrupting.disarm()
    assert interrupting.taken == ["SIGINT", "SIGINT"]


def test_a_time_limit_that_passes_when_the_reply_is_there_interrupts_nothing(
    caller: Caller, tmp_path: Path
) -> None:
    def be_busy_until_it_has_passed(*_: object) -> None:
        if not os.listdir(tmp_path):
            (tmp_path / "go on").touch()
            select.select([caller.executor._lives.link._socket.fileno()], [], [], PATIENCE_S)
            caller.executor._exchange._deadline = time.monotonic()

    code = f"""
import os, time
print('x')
while not os.listdir({str(tmp_path)!r}): time.sleep(0.001)
"""
    outcome = caller.run(code, time_limit_s=PATIENCE_S, on_output=be_busy_until_it_has_passed)
    assert outcome.status == "ok"
    assert caller.executor._interruption.taken == []


def test_how_a_worker_died_is_told_even_by_a_keeper_that_stood_still(caller: Caller) -> None:
    keeper = int(caller.value("import os\nos.getppid()") or 0)
    os.kill(keeper, signal.SIGSTOP)
    waking = threading.Timer(1.5, os.kill, (keeper, signal.SIGCONT))
    waking.start()
    outcome = caller.run("os._exit(7)")
    waking.join()
    assert outcome.error
    assert outcome.error.exit_code == 7


def test_an_interrupt_reaches_programs_of_this_execution_and_not_earlier_ones(caller: Caller) -> None:
    caller.value("import subprocess\nearlier = subprocess.Popen(['sleep', '60'])")
    caller.value("import time\ntime.sleep(0.03)")
    code = "later = subprocess.Popen(['sleep', '60'])\nprint('x')\nwhile True: pass"
    assert caller.run_until_output(code, caller.executor.interrupt).status == "interrupted"
    assert caller.value("later.wait(10)") == "-2"
    assert caller.value("earlier.poll()") is None


def test_output_of_every_moment_is_kept_at_a_time_limit(caller: Caller) -> None:
    caller.value("import time\ni = -1")
    outcome = caller.run("for i in range(10**6):\n    print(i)\n    time.sleep(0.01)", time_limit_s=0.5)
    assert outcome.status == "timeout"
    lines = outcome.stdout.splitlines()
    assert lines == [str(number) for number in range(len(lines))]
    assert len(lines) - int(caller.value("i") or 0) in (0, 1)  # the last may not have come to be printed


# Programs, threads and forks of the code


def test_output_of_programs_and_c_code_is_in_order_with_prints(caller: Caller) -> None:
    code = """
import os, subprocess, ctypes
print('1', end=' ')
subprocess.run(['echo', '2'])
os.write(1, b'3\\n')
print('4')
ctypes.CDLL(None).dprintf(1, b'5\\n')
os.system('echo 6 >&2; echo 7 > /dev/stdout')
print('8')
"""
    outcome = caller.run(code)
    assert outcome.stdout.split() == ["1", "2", "3", "4", "5", "7", "8"]
    assert outcome.stderr == "6\n"


def test_any_bytes_are_kept_exactly(caller: Caller) -> None:
    outcome = caller.run("import os\nn = os.write(1, bytes(range(256)))")
    assert outcome.lossy == ("stdout",)
    assert outcome.artifacts[0].content == bytes(range(256))


def test_two_streams_in_turns_are_complete(caller: Caller) -> None:
    code = "import sys\nfor i in range(20_000):\n    print(i)\n    print(i, file=sys.stderr)"
    outcome = caller.run(code)
    expected = "".join(f"{i}\n" for i in range(20_000))
    assert outcome.stdout == expected
    assert outcome.stderr == expected


def test_a_large_output_goes_through_in_bounded_memory(caller: Caller) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worker_before = int(
        caller.value("import resource\nresource.getrusage(resource.RUSAGE_SELF).ru_maxrss") or 0
    )
    outcome = caller.run("import sys\nblock = 'x' * 65535\nfor _ in range(1024):\n    print(block)")
    assert outcome.status == "ok"
    digest = hashlib.sha256()
    for _ in range(1024):
        digest.update(b"x" * 65535 + b"\n")
    [artifact] = outcome.artifacts
    assert (artifact.bytes, artifact.sha256) == (64 << 20, digest.hexdigest())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10
    worker_after = int(caller.value("resource.getrusage(resource.RUSAGE_SELF).ru_maxrss") or 0)
    assert worker_after - worker_before < 40 << 10


@pytest.mark.slow
def test_a_gigabyte_of_output_goes_through_in_bounded_memory(caller: Caller) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = caller.run("block = 'x' * 65535\nfor _ in range(16384):\n    print(block)")
    [artifact] = outcome.artifacts
    assert artifact.bytes == 1 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_fork_that_runs_off_the_end_ends_as_in_a_script(caller: Caller) -> None:
    code = (
        "import os, sys\npid = os.fork()\nif pid == 0:\n    {}\nos.waitpid(pid, 0)[1] >> 8 if pid else None"
    )
    assert caller.value(code.format("pass")) == "0"
    assert caller.value(code.format("sys.exit(3)")) == "3"
    raising = caller.run(code.format("1 / 0"))
    assert raising.result == {"text/plain": "1"}
    assert "ZeroDivisionError" in raising.stderr
    assert caller.value("1 + 1") == "2"


def test_multiprocessing_works_with_functions_of_the_user(caller: Caller) -> None:
    caller.value("def double(x):\n    return 2 * x")
    pool = "import multiprocessing as mp\nwith mp.get_context('fork').Pool(2) as pool:\n    r = pool.map(double, range(4))\nr"
    assert caller.value(pool) == "[0, 2, 4, 6]"
    executor = "from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(2, mp.get_context('fork')) as e:\n    r = list(e.map(double, range(4)))\nr"
    assert caller.value(executor) == "[0, 2, 4, 6]"


def test_late_output_names_the_execution_it_belongs_to(caller: Caller, wait_until: WaitUntil) -> None:
    caller.value("import threading\ngo = threading.Event()\ndone = threading.Event()")
    caller.value(
        "def late():\n    go.wait(20)\n    print('late')\n    done.set()\nthreading.Thread(target=late).start()"
    )
    started_in = caller.seq
    outcome = caller.run("go.set()\nx = done.wait(20)\nprint('own')")
    assert outcome.stdout == "own\n"
    late = list(outcome.late_output)
    if not late:  # it may come with the next
        late = list(caller.run("pass").late_output)
    assert [(piece.name, piece.text.strip(), piece.seq) for piece in late if piece.text.strip()] == [
        ("stdout", "late", started_in)
    ]


def test_late_output_of_a_task_names_its_execution(caller: Caller) -> None:
    caller.value("import asyncio\nasync def later():\n    await asyncio.sleep(0)\n    print('from the task')")
    caller.value("await asyncio.sleep(0)\ntask = asyncio.ensure_future(later())")
    started_in = caller.seq
    outcome = caller.run("await task\nprint('own')")
    assert outcome.stdout == "own\n"
    assert "".join(piece.text for piece in outcome.late_output) == "from the task\n"
    assert {piece.seq for piece in outcome.late_output} == {started_in}


def test_an_exception_of_a_thread_is_seen(caller: Caller) -> None:
    outcome = caller.run("import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()")
    assert outcome.status == "ok"
    assert "ZeroDivisionError" in outcome.stderr


def test_an_atexit_handler_that_sleeps_does_not_hold_up_the_end(caller: Caller) -> None:
    caller.value("import atexit, time\nf = atexit.register(time.sleep, 600)")
    started = time.monotonic()
    caller.executor.close()
    assert time.monotonic() - started < PATIENCE_S


def test_deep_recursion_in_c_is_a_crash_at_worst(caller: Caller) -> None:
    code = "import sys\nsys.setrecursionlimit(10**6)\nl = []\nfor _ in range(10**5): l = [l]\nlen(repr(l))"
    assert caller.run(code, time_limit_s=PATIENCE_S).status in ("ok", "error", "crashed")
    assert caller.value("1 + 1") == "2"


# What the code does to its connection


@pytest.mark.parametrize(
    "code",
    [
        "os.closerange(3, 1000)",
        "os.dup2(os.open('/dev/null', os.O_RDWR), sock)",
        "os.write(sock, b'\\xff\\xff\\xff\\xff')",
        "os.write(sock, b'\\x00\\x00\\x00\\x05hello')",
        "os.write(sock, b'\\x00\\x00\\x00\\x02[]')",
        'body = b\'{"id": 5, "status": "ok"}\'\nos.write(sock, len(body).to_bytes(4, \'big\') + body)',
        "body = b'{\"late\": 5}'\nos.write(sock, len(body).to_bytes(4, 'big') + body)",
        "os.write(sock, b'\\x00')",
    ],
)
def test_code_that_meddles_with_its_connection_is_a_crash_and_never_a_forged_result(
    caller: Caller, code: str
) -> None:
    find = "import os, stat\nsock = [n for n in range(3, 100) if os.path.exists(f'/proc/self/fd/{n}') and stat.S_ISSOCK(os.stat(n).st_mode)][0]\n"
    outcome = caller.run(f"{find}print('partial')\n{code}\n'genuine'")
    assert outcome.status == "crashed"
    assert outcome.stdout == "partial\n"
    assert caller.value("1 + 1") == "2"


def test_closed_standard_descriptors_cost_only_the_output(caller: Caller) -> None:
    assert caller.run("import os\nos.close(1)\nx = 5").status in ("ok", "error")
    assert caller.run("x").result == {"text/plain": "5"}


# Input


def test_a_thread_that_still_asks_for_input_when_its_execution_ends_takes_nothing_from_the_next(
    caller: Caller,
) -> None:
    code = (
        "import threading\n"
        "asks, got = threading.Event(), []\n"
        "class Prompt:\n"
        "    def __str__(self):\n        asks.set()\n        return '\\ud800'\n"
        "def ask():\n"
        "    try: got.append(input(Prompt()))\n"
        "    except EOFError: got.append('none')\n"
        "one = threading.Thread(target=ask); one.start(); one.join(); asks.clear()\n"
        "two = threading.Thread(target=ask); two.start(); asks.wait()"
    )
    assert caller.run(code, on_input=lambda *_: "answer").status == "ok"
    for _ in range(3):
        outcome = caller.run("two.join(); got[0]", time_limit_s=PATIENCE_S)
        assert outcome.status == "ok", outcome
    assert outcome.result == {"text/plain": "'answer'"}


def test_an_answer_to_input_that_is_not_unicode_arrives_and_one_that_is_no_text_is_the_callers_error(
    caller: Caller,
) -> None:
    assert caller.run("x = input()", on_input=lambda *_: "a\udcff").status == "ok"
    assert caller.run("x").result == {"text/plain": "'a\\udcff'"}
    with pytest.raises(TypeError, match="on_input must return a text, not a bytes"):
        caller.run("input()", on_input=lambda *_: b"a")  # type: ignore[arg-type]


def test_where_a_host_has_too_few_descriptors_no_worker_starts_and_none_is_left_open() -> None:
    # In a process of its own: a limit bounds numbers, and here the free ones have no order.
    code = (
        "import os, resource\n"
        "from repl_kernel.errors import CannotFork\n"
        "from repl_kernel.manager import WorkerExecutor\n"
        "WorkerExecutor().close()  # what it imports is there then\n"
        "before = os.listdir('/proc/self/fd')\n"
        "assert sorted(map(int, before)) == list(range(len(before))), before\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "for more in range(9):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + more, hard))\n"
        "    try: WorkerExecutor()\n"
        "    except CannotFork as exc: print(exc)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "assert os.listdir('/proc/self/fd') == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == 9 * "no descriptors are left for a new worker: Too many open files\n"


def test_input_in_a_fork_of_executed_code_ends_at_once(caller: Caller) -> None:
    code = (
        "import os\n"
        "if not os.fork():\n"
        "    try: input()\n"
        "    except EOFError: os._exit(5)\n"
        "os.waitstatus_to_exitcode(os.wait()[1])"
    )
    outcome = caller.run(code, on_input=lambda *_: "answer", time_limit_s=PATIENCE_S)
    assert outcome.result == {"text/plain": "5"}, outcome


# Environment


def test_ids_reach_code_and_programs_and_change_with_the_request(caller: Caller) -> None:
    code = "import os, subprocess\n(os.environ['FLOW_TASK_ID'], subprocess.getoutput('echo $FLOW_PLAN_ID $FLOW_TASK_NAME'))"
    assert caller.value(code) == "('T-7', 'P-1 worker')"
    other = TaskIds(plan_id="P-2", task_id="T-8", task_name="größer")
    outcome = caller.run(code, task=other)
    assert outcome.result == {"text/plain": "('T-8', 'P-2 größer')"}
    assert caller.value(code) == "('T-7', 'P-1 worker')"


def test_ids_that_no_environment_can_hold_do_no_harm(caller: Caller) -> None:
    odd = TaskIds(plan_id="a\0b", task_id="T-\ud800", task_name="x")
    outcome = caller.run("import os\nos.environ['FLOW_PLAN_ID']", task=odd)
    assert outcome.status == "ok"


def test_secrets_are_withheld_and_named_ones_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TASK_LOG_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DB_PASSWORD"):
        monkeypatch.setenv(name, "secret-value")
    monkeypatch.setenv("HARMLESS", "1")
    with contextlib.closing(WorkerExecutor(pass_env=["GITHUB_TOKEN", "TASK_LOG_KEY"])) as executor:
        caller = Caller(executor)
        found = caller.value("import os\nsorted(n for n, v in os.environ.items() if v == 'secret-value')")
        assert found == "['GITHUB_TOKEN']"
        assert caller.value("os.environ['HARMLESS']") == "'1'"
        keeper = caller.value("b'AWS_SECRET' in open(f'/proc/{os.getppid()}/environ', 'rb').read()")
        assert keeper == "False"
        os.kill(caller.pid(), signal.SIGKILL)
        caller.run("1")
        assert caller.value("import os\n'DB_PASSWORD' in os.environ") == "False"


# The end


def test_nothing_is_left_after_close_even_what_hid_itself(wait_until: WaitUntil, no_leaks: None) -> None:
    executor = WorkerExecutor()
    caller = Caller(executor)
    code = """
import os, subprocess
pids = [subprocess.Popen(['sleep', '60']).pid, subprocess.Popen(['setsid', 'sleep', '60']).pid]
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    pid = os.fork()
    if pid:
        os.write(w, str(pid).encode())
        os._exit(0)
    import time
    time.sleep(60)
pids.append(int(os.read(r, 20)))
pids + [os.getpid(), os.getppid()]
"""
    pids = [int(pid) for pid in (caller.value(code) or "").strip("[]").split(",")]
    assert all(is_alive(pid) for pid in pids)
    executor.close()
    assert [pid for pid in pids if is_alive(pid)] == []


def test_starting_and_ending_many_workers_leaves_nothing(no_leaks: None) -> None:
    before = {stat.pid for stat in descendants(os.getpid())}
    for _ in range(25):
        with contextlib.closing(WorkerExecutor()) as executor:
            assert Caller(executor).value("1 + 1") == "2"
    assert {stat.pid for stat in descendants(os.getpid())} <= before


@pytest.mark.slow
def test_a_thousand_workers_leave_nothing(no_leaks: None) -> None:
    before = {stat.pid for stat in descendants(os.getpid())}
    for _ in range(1000):
        with contextlib.closing(WorkerExecutor()) as executor:
            assert Caller(executor).value("1 + 1") == "2"
    assert {stat.pid for stat in descendants(os.getpid())} <= before


def test_a_worker_outlives_the_thread_that_made_it(no_leaks: None) -> None:
    made: list[WorkerExecutor] = []
    thread = threading.Thread(target=lambda: made.append(WorkerExecutor()))
    thread.start()
    thread.join()
    with contextlib.closing(made[0]) as executor:
        caller = Caller(executor)
        pid = caller.pid()
        other = threading.Thread(target=lambda: caller.run("x = 1"))
        other.start()
        other.join()
        assert caller.value("x") == "1"
        assert caller.pid() == pid


def test_a_fork_of_the_host_cannot_use_or_harm_the_worker(caller: Caller) -> None:
    pid = caller.pid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            caller.run("1")
        except ExecutorClosed:
            code = 0
        try:
            caller.executor.interrupt()
            caller.executor.close()
        except BaseException:  # noqa: BLE001 -- the parent only sees the exit code
            code = 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert caller.pid() == pid


def test_a_fork_while_an_execution_runs_does_not_interrupt_it(caller: Caller) -> None:
    def fork() -> None:
        child = os.fork()
        if child == 0:
            caller.executor.close()
            os._exit(0)
        os.waitpid(child, 0)

    outcome = caller.run_until_output("import time\nprint('x')\ntime.sleep(0.3)\n'done'", fork)
    assert outcome.status == "ok"
    assert outcome.result == {"text/plain": "'done'"}


# Questions between executions


def test_what_completion_runs_changes_neither_the_worker_nor_its_peers(
    caller: Caller, wait_until: WaitUntil
) -> None:
    caller.value(
        "import os, socket, random\nours, theirs = socket.socketpair()\nasked = []\nrandom.seed(1)\n"
        "class Nosy:\n    def __dir__(self):\n        asked.append(1)\n        import colorsys\n        os.chdir('/')\n"
        "        random.random()\n        try:\n            ours.send(b'x')\n        except OSError:\n"
        "            return ['refused']\n        return ['sent']\n"
        "nosy, before = Nosy(), (os.getcwd(), random.getstate())"
    )
    assert caller.matches("nosy.", wait_until) == ["refused"]
    assert caller.value("asked, (os.getcwd(), random.getstate()) == before") == "([], True)"
    assert "colorsys" in caller.run("import colorsys").changes.added_imports


def test_a_copy_that_hangs_is_ended_and_the_users_children_are_not_touched(
    caller: Caller, wait_until: WaitUntil, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    caller.value(
        "import os, signal, subprocess\nended = []\nsignal.signal(signal.SIGCHLD, lambda *_: ended.append(1))\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nchild = subprocess.Popen(['sleep', '600'])\n"
        "class Odd:\n    def __dir__(self):\n        open(path, 'w').write(str(os.getpid()))\n"
        "        signal.signal(signal.SIGALRM, signal.SIG_IGN)\n        while True: pass\n"
        f"path = {str(told)!r}\nodd = Odd()"
    )

    def hangs() -> bool:  # a copy that is slow to start is ended before it does
        assert caller.executor.complete("odd.", 4)["matches"] == []
        return told.exists() and bool(told.read_text())

    wait_until(hangs)
    hung = int(told.read_text())
    wait_until(lambda: not is_alive(hung))
    assert caller.value("ended, child.poll()") == "([], None)"
    assert caller.value("child.kill()\nchild.wait()") == "-9"


def test_a_worker_that_died_unasked_is_replaced_and_the_next_outcome_says_so(
    caller: Caller, wait_until: WaitUntil
) -> None:
    pid = caller.pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    assert "print" in str(caller.matches("prin", wait_until))
    assert any("SIGKILL" in notice for notice in caller.run("1").notices)


def test_completion_works_beside_threads_and_with_many_descriptors(
    caller: Caller, wait_until: WaitUntil
) -> None:
    caller.value(
        "import threading\nstop = threading.Event()\nt = threading.Thread(target=stop.wait)\nt.start()"
    )
    caller.value("import os\nfds = [os.dup(1) for _ in range(1100)]" if _many_descriptors() else "fds = []")
    assert caller.matches("sto", wait_until) == ["stop"]
    caller.value("stop.set()\nt.join()\nfor fd in fds: os.close(fd)")


def _many_descriptors() -> bool:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1500
