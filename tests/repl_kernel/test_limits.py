"""What code may use, and what comes of wanting more: a verdict, a worker that goes on, its state."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repl_kernel.cgroups import Group, controllers
from repl_kernel.enclosure import Enclosure
from repl_kernel.errors import CannotFork, LimitRefused, SnapshotRefused
from repl_kernel.limit_watch import LimitWatch
from repl_kernel.limits import _KINDS, NO_LIMITS, SANDBOX_LIMITS, Limits
from repl_kernel.process_tree import ProcessStat, descendants
from repl_kernel.timeline import TimelineExecutor
from repl_kernel.work_folder_size import WorkFolderSize
from task_logger.record import ExecutionOutcome
from tests.conftest import PATIENCE_S, WaitUntil
from tests.ordinary_user import ordinary_user
from tests.repl_kernel.timeline_world import World, is_gone

MIB = 1 << 20

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
needs_cgroups = pytest.mark.skipif(
    {each.name for each in controllers()} != {"memory", "pids"}, reason="no cgroup can be made here"
)

SLEEPERS = (
    "import subprocess\nprograms = []\n"
    "try:\n    while True: programs.append(subprocess.Popen(['sleep', '1000']))\n"
    "except BlockingIOError:\n    pass\n"
)
"""Starts programs until the system refuses one."""


@pytest.fixture
def limited(no_leaks: None) -> Iterator[Callable[..., World]]:
    """Makes a worker with limits."""
    made: list[World] = []

    def make(**limits: float) -> World:
        made.append(World(executor=TimelineExecutor(limits=Limits(**limits))))
        return made[-1]

    yield make
    for world in made:
        world.close()


def verdict(outcome: ExecutionOutcome) -> str | None:
    return None if outcome.error is None else outcome.error.type


# What can be asked for.


def test_every_limit_is_in_the_table() -> None:
    assert [field.name for field in fields(Limits)] == list(_KINDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_bytes", 1), ("memory_bytes", 1e9), ("cpu_s", 0), ("processes", -1), ("processes", True),
     ("output_bytes", "1M"), ("open_files", 2), ("cpu_s", math.nan), ("file_size_bytes", 1 << 70)],
)  # fmt: skip
def test_a_limit_that_cannot_be_meant_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(LimitRefused) as caught:
        Limits(**{name: value})
    assert (caught.value.name, str(caught.value.value)) == (name, str(value))
    assert "it must be" in str(caught.value)


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(LimitRefused, match="memory_bytes, cpu_s"):
        Limits.of({"memory": 5})


def test_texts_of_a_command_line_are_understood() -> None:
    parsed = Limits.parse(["memory_bytes=512M", "cpu_s=0.5", "processes=none", "output_bytes=1000"])
    assert parsed == Limits(memory_bytes=512 * MIB, cpu_s=0.5, processes=math.inf, output_bytes=1000)
    for text in ("memory_bytes=5X", "cpu_s=5M", "processes=", "open_files=x"):
        with pytest.raises(LimitRefused):
            Limits.parse([text])


def test_what_is_not_named_is_what_the_isolation_sets_and_infinity_lifts_that() -> None:
    in_force = Limits(cpu_s=5, processes=math.inf).over(SANDBOX_LIMITS)
    assert (in_force.cpu_s, in_force.processes) == (5, None)
    assert in_force.memory_bytes == SANDBOX_LIMITS.memory_bytes
    assert not Limits(cpu_s=math.inf).over(NO_LIMITS)


def test_limits_of_a_session_that_nobody_closes_end_with_its_program_without_a_word(tmp_path: Path) -> None:
    code = (
        "from json_repl import Session\n"
        f"session = Session('worker', log_dir={str(tmp_path)!r}, limits={{'processes': 1 << 40}})\n"
        "print(session.execute_code('1')['success'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE_S, check=True)
    assert (done.stdout, done.stderr) == (b"True\n", b"")


# Memory.


def test_code_that_wants_too_much_memory_gets_the_verdict_and_the_worker_goes_on(
    limited: Callable[..., World],
) -> None:
    world = limited(memory_bytes=512 * MIB)
    world.do("x = 41")
    outcome = world.run("kept = []\nwhile True: kept.append(bytearray(10**6))")
    assert (outcome.status, verdict(outcome)) == ("error", "MemoryLimitExceeded")
    assert outcome.error is not None
    assert "memory_bytes of 512 MiB" in outcome.error.message
    assert "used: 5" in outcome.error.message
    assert 'File "<execution 2>", line 2' in outcome.stderr
    assert outcome.stderr.endswith(outcome.error.traceback)
    assert world.value("(x + 1, 450 < len(kept) < 537)") == (42, True)


def test_memory_that_is_full_of_small_objects_is_told_too(limited: Callable[..., World]) -> None:
    world = limited(memory_bytes=64 * MIB)
    outcome = world.run("kept = []\nwhile True: kept.append([])")
    assert (outcome.status, verdict(outcome)) == ("error", "MemoryLimitExceeded")
    assert world.value("len(kept) > 100_000") is True


def test_a_memory_error_is_no_verdict_where_memory_is_not_limited(limited: Callable[..., World]) -> None:
    outcome = limited(cpu_s=100).run("bytearray(1 << 60)")
    assert verdict(outcome) == "MemoryError"


def test_programs_count_together_with_the_worker(limited: Callable[..., World]) -> None:
    world = limited(memory_bytes=128 * MIB)
    world.do("import subprocess, sys")
    outcome = world.run(
        "code = 'kept = b\"x\" * 80_000_000; input()'\n"
        "programs = [subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE) for _ in 'abcd']\n"
        "for program in programs: program.wait()"
    )
    assert verdict(outcome) == "MemoryLimitExceeded", outcome.stderr
    assert world.value("1 + 1") == 2


@needs_cgroups
def test_a_death_for_want_of_memory_has_the_verdict_and_costs_no_state(limited: Callable[..., World]) -> None:
    world = limited(memory_bytes=64 * MIB)
    world.keep("x = 42")
    outcome = world.run(  # shared memory, quicker than anybody looks
        "import mmap\nkept, piece = mmap.mmap(-1, 1 << 30), bytes(1 << 20)\n"
        "for at in range(0, 1 << 30, 1 << 20): kept[at:at + len(piece)] = piece"
    )
    assert verdict(outcome) == "MemoryLimitExceeded"
    assert outcome.status in ("crashed", "error")
    assert world.value("x") == 42


def test_memory_that_stayed_beyond_its_limit_is_not_the_next_executions_fault(
    limited: Callable[..., World],
) -> None:
    world = limited(memory_bytes=64 * MIB)
    world.do(
        "import mmap, time\n"
        "kept, piece = mmap.mmap(-1, 1 << 30), bytes(1 << 20)\n"
        "def write(first, last):\n"
        "    for at in range(first << 20, last << 20, len(piece)): kept[at:at + len(piece)] = piece"
    )
    outcome = world.run(
        "try:\n"
        "    write(0, 80)\n"
        "    while True: time.sleep(0.001)\n"
        "finally:\n"
        "    write(80, 90)  # after the limit was seen, before the code has ended"
    )
    assert verdict(outcome) == "MemoryLimitExceeded"
    assert outcome.status == "error"
    for _ in range(3):
        world.do("more = bytes(1 << 18); time.sleep(0.1)  # long enough to be looked at")


def test_copies_do_not_eat_up_what_the_worker_may_have(limited: Callable[..., World]) -> None:
    world = limited(memory_bytes=128 * MIB)
    world.do("kept = bytearray(100 << 20)")
    for _ in range(5):
        world.keep("kept[::4096] = bytes(len(kept) // 4096)")  # every page is written anew
    outcome = world.run("import os; os.abort()")
    assert outcome.status == "crashed"
    assert world.value("len(kept) >> 20") == 100


def test_the_worker_is_the_first_to_be_killed_for_memory(world: World, wait_until: WaitUntil) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert score(world.worker_pid) == 1000
    assert score(world.keeper_pid) == score(os.getpid())
    assert world.value("__import__('subprocess').getoutput('cat /proc/self/oom_score_adj')") == "1000"
    world.idle()
    wait_until(lambda: 1000 > score(world.copies()[0].pid) > score(os.getpid()))
    assert world.run("__import__('os')._exit(1)").status == "crashed"
    assert score(world.worker_pid) == 1000


# CPU time.


def test_code_that_computes_too_long_gets_the_verdict_and_keeps_its_state(
    limited: Callable[..., World],
) -> None:
    world = limited(cpu_s=0.3)
    world.do("x = 1")
    outcome = world.run("x = 2\nwhile True: pass")
    assert (outcome.status, verdict(outcome)) == ("error", "CpuLimitExceeded")
    assert outcome.error is not None
    assert "cpu_s of 0.3 s" in outcome.error.message
    assert outcome.error.line == 2
    assert "KeyboardInterrupt" not in outcome.stderr
    assert world.value("x") == 2


def test_waiting_costs_no_cpu_time(limited: Callable[..., World]) -> None:
    limited(cpu_s=0.3).do("import time; time.sleep(0.8)")


def test_the_cpu_time_of_programs_counts(limited: Callable[..., World]) -> None:
    world = limited(cpu_s=0.3)
    outcome = world.run("import subprocess; subprocess.run('while :; do :; done', shell=True)")
    assert verdict(outcome) == "CpuLimitExceeded"
    assert world.value("1") == 1


def test_waiting_for_a_program_of_an_earlier_execution_costs_no_cpu_time(
    limited: Callable[..., World], wait_until: WaitUntil, tmp_path: Path
) -> None:
    world = limited(cpu_s=0.3)
    for number in range(2):
        go = tmp_path / str(number)
        code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        code += "while time.process_time() < 0.5: pass"
        world.do(f"import subprocess, sys\nprogram = subprocess.Popen([sys.executable, '-c', {code!r}])")
        pid = world.value("program.pid")
        go.touch()
        wait_until(partial(is_gone, pid))
        world.do("import time; time.sleep(0.05); program.wait(); time.sleep(0.15)")


@pytest.mark.parametrize("at_look", [1, 2])
@pytest.mark.parametrize("comes_first", [False, True], ids=["seen", "not seen"])
def test_a_program_that_is_waited_for_while_it_is_looked_at_costs_no_cpu_time(
    comes_first: bool, at_look: int, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"])
    wait_until(partial(is_gone, program.pid))
    looks = 0

    def wait_meanwhile(*arguments: Any, **options: Any) -> list[ProcessStat]:
        if comes_first and looks == at_look:
            program.wait()
        found = descendants(*arguments, **options)
        if looks == at_look:
            program.wait()
        return found

    monkeypatch.setattr("repl_kernel.limit_watch.descendants", wait_meanwhile)
    link: Any = SimpleNamespace(pid=os.getpid())  # the program's parent, as a worker would be
    watch = LimitWatch(Enclosure(Limits(cpu_s=0.3), copies=False, sandboxed=False), alone=False)
    watch.begin(link)
    while looks < 4:
        looks += 1
        assert not watch.look(link)
    assert program.returncode == 0


@pytest.mark.slow
def test_code_that_no_interrupt_reaches_is_killed_with_the_verdict(limited: Callable[..., World]) -> None:
    world = limited(cpu_s=0.3)
    world.keep("x = 1")
    outcome = world.run("x = 2\nsum(range(10**12))")
    assert (outcome.status, verdict(outcome)) == ("crashed", "CpuLimitExceeded")
    assert world.value("x") == 1


# Processes and threads.


def test_threads_beyond_the_limit_get_the_verdict(limited: Callable[..., World]) -> None:
    world = limited(processes=10)
    outcome = world.run(
        "import threading, time\ngo = threading.Event()\n"
        "for _ in range(10_000): threading.Thread(target=go.wait).start()\ntime.sleep(30)"
    )
    assert verdict(outcome) == "ProcessLimitExceeded", outcome.stderr
    assert world.value("go.set() or 1 + 1") == 2


def test_a_fork_bomb_is_capped_and_its_processes_end(limited: Callable[..., World]) -> None:
    world = limited(processes=10)
    outcome = world.run("import os\nwhile True: os.fork()")
    assert verdict(outcome) == "ProcessLimitExceeded", outcome.stderr
    assert world.value("1 + 1") == 2


def test_programs_that_were_killed_and_not_waited_for_take_no_room(limited: Callable[..., World]) -> None:
    world = limited(processes=5)
    seq = world.keep("x = 1")
    loop = "import os, time\nwhile os.fork() or time.sleep(1000): pass"
    assert verdict(world.run(loop)) == "ProcessLimitExceeded"
    assert world.executor.snapshot() == seq + 1
    world.executor.rewind(seq)
    assert verdict(world.run(loop)) == "ProcessLimitExceeded"
    assert world.value("x") == 1


@needs_cgroups
def test_at_the_limit_a_snapshot_is_refused_in_words_and_the_worker_is_unharmed(
    limited: Callable[..., World], wait_until: WaitUntil
) -> None:
    world = limited(processes=3)
    seq = world.keep("x = 1")
    world.do(SLEEPERS)
    wait_until(lambda: not _has_room(world))
    with pytest.raises(SnapshotRefused, match="the system refused a fork"):
        world.executor.snapshot()
    with pytest.raises(CannotFork):
        world.executor.rewind(seq)
    assert world.value("x, len(programs) >= 3") == (1, True)


def _has_room(world: World) -> bool:
    """Whether one program more can be started."""
    code = "try:\n    programs.append(subprocess.Popen(['sleep', '1000']))\nexcept BlockingIOError:\n    pass"
    world.do(code + "\nelse:\n    programs[0].poll()")
    return bool(world.value("len(programs)") != world.value(f"exec({code!r}) or len(programs)"))


# Files.


def test_open_files_beyond_the_limit_get_the_verdict_and_closing_frees(limited: Callable[..., World]) -> None:
    world = limited(open_files=20)
    outcome = world.run("kept = []\nwhile True: kept.append(open('/dev/null'))")
    assert (outcome.status, verdict(outcome)) == ("error", "OpenFilesLimitExceeded")
    assert world.value("len(kept)") == 20
    world.do("for file in kept: file.close()")
    world.do("kept = [open('/dev/null') for _ in range(20)]")


def test_a_worker_with_all_its_files_open_and_a_child_goes_on(limited: Callable[..., World]) -> None:
    world = limited(open_files=20)
    world.do("import subprocess; program = subprocess.Popen(['sleep', '1000'])")
    outcome = world.run("kept = []\nwhile True: kept.append(open('/dev/null'))")
    assert (outcome.status, verdict(outcome)) == ("error", "OpenFilesLimitExceeded")


@pytest.mark.parametrize("of_the_host", [0, 60])
def test_a_worker_with_all_its_files_open_is_copied_and_restored(
    limited: Callable[..., World], of_the_host: int
) -> None:
    with ExitStack() as opened:
        for _ in range(of_the_host):
            opened.enter_context(open("/dev/null", "rb"))
        world = limited(open_files=20)
    world.run("kept = []\nwhile True: kept.append(open('/dev/null'))")
    world.idle()
    assert world.run("__import__('os')._exit(1)").status == "crashed"
    assert world.value("len(kept)") == 20
    assert verdict(world.run("open('/dev/null')\nopen('/dev/null'), [open('/dev/null') for _ in kept]")) == (
        "OpenFilesLimitExceeded"
    )


def test_a_file_beyond_the_limit_gets_the_verdict(limited: Callable[..., World], tmp_path: Path) -> None:
    world = limited(file_size_bytes=100_000)
    outcome = world.run(
        f"with open({str(tmp_path / 'f')!r}, 'wb', 0) as file:\n    while True: file.write(bytes(999))"
    )
    assert (outcome.status, verdict(outcome)) == ("error", "FileSizeLimitExceeded")
    assert (tmp_path / "f").stat().st_size == 100_000
    world.do("print('x' * 500_000)")  # a pipe is no file


def test_a_module_with_more_bytecode_than_a_file_may_hold_can_be_imported_by_others(
    limited: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    (tmp_path / "large.py").write_text(f"text = {'x' * 10_000!r}", encoding="utf-8")
    imported = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import large"
    for limits in ({"file_size_bytes": 1000}, {}):
        world = limited(**limits)
        world.do(imported)
        assert world.value("len(large.text)") == 10_000


def test_a_session_without_descriptors_says_so_and_goes_on_once_it_has_some(world: World) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    world.do("x = 1")
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        assert world.value("x") == 1
        with pytest.raises(CannotFork, match="no descriptors"):
            world.executor.rewind(0)
        assert world.value("x") == 1
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    world.executor.rewind(0)
    assert world.value("'x' in dir()") is False


# Output.


def test_output_up_to_the_limit_is_kept_and_the_rest_is_counted(limited: Callable[..., World]) -> None:
    world = limited(output_bytes=2_000_000)
    outcome = world.run("import sys\nfor _ in range(3000): print('x' * 999)")
    assert (outcome.status, verdict(outcome)) == ("error", "OutputLimitExceeded")
    (artifact,) = outcome.artifacts
    assert artifact.content is not None
    assert not isinstance(artifact.content, bytes)
    artifact.content.close()
    assert (artifact.field, artifact.bytes) == ("stdout", 2_000_000)
    assert outcome.error is not None
    assert (
        "output_bytes of 2000000" in outcome.error.message
        or "output_bytes of 1.9 MiB" in outcome.error.message
    )
    assert "bytes beyond it are not kept" in outcome.error.message
    assert "OutputLimitExceeded" in outcome.stderr
    assert world.value("1 + 1") == 2


def test_what_is_passed_on_is_what_is_kept(limited: Callable[..., World]) -> None:
    world = limited(output_bytes=100)
    passed: list[str] = []
    outcome = world.executor.execute(
        world.request("print('a' * 60)\nprint('b' * 60)\nwhile True: print('c')"),
        on_output=lambda name, text: passed.append(text),
    )
    assert verdict(outcome) == "OutputLimitExceeded"
    assert "".join(passed) == outcome.stdout == "a" * 60 + "\n" + "b" * 39


def test_the_output_of_a_session_is_limited_across_executions(limited: Callable[..., World]) -> None:
    world = limited(session_output_bytes=100)
    world.do("print('x' * 59)")
    outcome = world.run("y = 1\nprint('x' * 59)")
    assert (verdict(outcome), outcome.stdout) == ("OutputLimitExceeded", "x" * 40)
    assert outcome.error is not None
    assert "session_output_bytes of 100 bytes" in outcome.error.message
    assert "used: 120 bytes; 20 bytes beyond it" in outcome.error.message
    world.do("z = 1")
    assert verdict(world.run("print()")) == "OutputLimitExceeded"


def test_a_result_counts_as_output(limited: Callable[..., World]) -> None:
    outcome = limited(output_bytes=MIB).run("'x' * (5 << 20)")
    assert verdict(outcome) == "OutputLimitExceeded"


# Wherever a state comes from.


def test_limits_hold_in_restored_rewound_branched_and_tried_out_states(limited: Callable[..., World]) -> None:
    world = limited(memory_bytes=128 * MIB, processes=5, output_bytes=MIB)
    too_much = {
        "bytearray(1 << 28)": "MemoryLimitExceeded",
        "import os\nwhile True: os.fork()": "ProcessLimitExceeded",
        "while True: print('x' * 1000)": "OutputLimitExceeded",
    }
    seq = world.keep("x = 1")
    world.run("__import__('os')._exit(1)")
    assert [verdict(world.run(code)) for code in too_much] == list(too_much.values())
    world.executor.rewind(seq)
    assert [verdict(world.run(code)) for code in too_much] == list(too_much.values())
    outcomes = world.executor.speculate([world.request(code) for code in list(too_much)[::2]])
    assert [verdict(each) for each in outcomes] == list(too_much.values())[::2]
    world.executor.discard()
    branch = World(executor=world.executor.branch(seq, "session"))
    try:
        assert [verdict(branch.run(code)) for code in too_much] == list(too_much.values())
        assert branch.value("x") == world.value("x") == 1
    finally:
        branch.close()


# What is left.


def _groups(pid: int | None = None) -> set[str]:
    """The groups of a process's sessions, this one's by default: others test at the same time."""
    found = {controller.folder for controller in controllers()}
    names = {name for folder in found for name in os.listdir(folder) if name.startswith("json-repl-")}
    return {name for name in names if name.split("-")[3:4] == [str(pid or os.getpid())]}


@needs_cgroups
def test_a_closed_executor_leaves_no_cgroup(limited: Callable[..., World]) -> None:
    before = _groups()
    world = limited(processes=10)
    assert _groups() > before
    world.close()
    assert _groups() == before


@needs_cgroups
def test_the_cgroup_of_a_session_that_was_killed_is_removed_by_the_next(
    limited: Callable[..., World], wait_until: WaitUntil
) -> None:
    code = (
        "from repl_kernel.limits import Limits\nfrom repl_kernel.timeline import TimelineExecutor\n"
        "executor = TimelineExecutor(limits=Limits(processes=10))\nprint(flush=True)\ninput()"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        (left,) = _groups(killed.pid)
        killed.send_signal(signal.SIGKILL)
    path = next(f"{each.folder}/{left}" for each in controllers(("pids",)))
    wait_until(lambda: not Path(path, "cgroup.procs").read_text())
    limited(processes=10)
    assert not _groups(killed.pid)


@needs_cgroups
def test_the_cgroup_of_a_living_session_stays(limited: Callable[..., World]) -> None:
    world = limited(processes=10)
    mine = _groups()
    Group(controllers()).close()
    assert _groups() == mine
    assert world.value("1") == 1


# In a sandbox, where there are limits that nobody asked for.


@needs_bwrap
def test_a_sandbox_caps_forks_and_threads_while_other_sessions_answer(tmp_path: Path) -> None:
    from repl_kernel.sandbox import Sandbox

    bombed = World(executor=TimelineExecutor(isolation=Sandbox(work_folder=str(tmp_path))))
    other = World()
    verdicts: list[str | None] = []

    def bomb() -> None:
        verdicts.append(verdict(bombed.run("import os\nwhile True: os.fork()")))
        code = "import threading\ngo = threading.Event()\n"
        code += "for _ in range(10_000): threading.Thread(target=go.wait).start()"
        verdicts.append(verdict(bombed.run(code)))

    try:
        thread = threading.Thread(target=bomb)
        thread.start()
        answers = 0
        while thread.is_alive():
            assert other.value("1 + 1") == 2
            answers += 1
            time.sleep(0.01)
        thread.join()
        assert answers > 0
        assert verdicts[0] == "ProcessLimitExceeded"
        assert verdicts[1] in ("ProcessLimitExceeded", "MemoryLimitExceeded")  # a stack for each thread
        assert bombed.value("go.set() or 1 + 1") == 2
        assert verdict(bombed.run("b'x' * 10**10")) == "MemoryLimitExceeded"
        code = "with open('f', 'wb', 0) as file:\n    os.truncate('f', 10 * 10**9)"
        assert verdict(bombed.run(code)) == "FileSizeLimitExceeded"
        for folder in ("/tmp", "/dev/shm"):
            full = bombed.run(
                f"with open('{folder}/f', 'wb') as file:\n    os.posix_fallocate(file.fileno(), 0, 10**10)"
            )
            assert verdict(full) in ("FileSizeLimitExceeded", "OSError")
    finally:
        bombed.close()
        other.close()


@needs_bwrap
def test_the_work_folder_is_capped_in_files_and_bytes_and_can_be_emptied(tmp_path: Path) -> None:
    from repl_kernel.sandbox import Sandbox

    (tmp_path / "before").write_bytes(bytes(3 * MIB))  # what was there doesn't count
    limits = Limits(work_folder_files=100, work_folder_bytes=2 * MIB)
    world = World(executor=TimelineExecutor(limits=limits, isolation=Sandbox(work_folder=str(tmp_path))))
    try:
        many = "import os, time\nos.mkdir('d')\nfor i in range(10**6):\n"
        many += "    open(f'd/{i}', 'w').close(); time.sleep(0.002)"
        assert verdict(world.run(many)) == "WorkFolderLimitExceeded"
        world.do("import shutil; shutil.rmtree('d'); time.sleep(0.3)")
        much = (
            "for i in range(1000):\n    open(f'{i % 20}', 'wb').write(os.urandom(1 << 18)); time.sleep(0.02)"
        )
        assert verdict(world.run(much)) == "WorkFolderLimitExceeded"
        world.do("for i in range(20):\n    open(f'{i}', 'w').close()\ntime.sleep(0.3)")
    finally:
        world.close()


def test_candidates_run_where_the_work_folder_was_deleted_from_outside(tmp_path: Path) -> None:
    from repl_kernel.sandbox import Sandbox

    folder = tmp_path / "work"
    folder.mkdir()
    world = World(executor=TimelineExecutor(isolation=Sandbox(work_folder=str(folder))))
    try:
        world.keep("x = 1")
        folder.rmdir()
        assert [outcome.status for outcome in world.speculate("x", "x")] == ["ok", "ok"]
    finally:
        world.close()


def test_what_an_execution_adds_to_the_work_folder_after_one_that_was_stopped_is_no_old_news(
    tmp_path: Path,
) -> None:
    size = WorkFolderSize(str(tmp_path), Limits(work_folder_files=100))

    def add(count: int) -> None:
        for number in range(count):
            (tmp_path / str(number)).touch()

    add(300)
    assert size.look() is not None
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    size.begin()
    add(300)
    assert size.look() is not None


# As an ordinary user, who can make no cgroup.

_AS_A_USER = """
import json, sys
from json_repl import Session
verdicts = []
for isolation in ("process", "sandbox"):
    limits = dict(memory_bytes=512 << 20, processes=20, open_files=30, cpu_s=3, output_bytes=1 << 20)
    if isolation == "sandbox" and len(sys.argv) < 2:
        break
    with Session(route="worker", isolation=isolation, limits=limits) as session:
        for code in (
            "b'x' * 10**9",
            "import subprocess, sys\\ncode = 'kept = b\\"x\\" * 150_000_000; input()'\\n"
            "programs = [subprocess.Popen([sys.executable, '-c', code], stdin=-1) for _ in range(6)]\\n"
            "for program in programs: program.wait()",
            "import threading, time\\ngo = threading.Event()\\n"
            "for _ in range(40): threading.Thread(target=go.wait).start()\\ntime.sleep(30)",
            "go.set(); import time; time.sleep(0.2)",
            "import os\\nwhile True: os.fork(); time.sleep(0.05)",
            "kept = []\\nwhile True: kept.append(open('/dev/null'))",
            "while True: pass",
            "while True: print('x' * 1000)",
            "1 + 1",
        ):
            outcome = session.execute_code(code)
            verdicts.append(outcome["error"] and outcome["error"]["type"])
print(json.dumps(verdicts))
"""

_EXPECTED = [
    "MemoryLimitExceeded", "MemoryLimitExceeded", "ProcessLimitExceeded", None, "ProcessLimitExceeded",
    "OpenFilesLimitExceeded", "CpuLimitExceeded", "OutputLimitExceeded", None,
]  # fmt: skip


def test_without_cgroups_the_limits_hold_as_well() -> None:
    tiers = 1 if shutil.which("bwrap") is None else 2
    with ordinary_user() as user:
        found = user.run("-c", _AS_A_USER, *(["sandbox"] if tiers == 2 else []))
    assert found.returncode == 0, found.stderr
    verdicts = json.loads(found.stdout)
    assert [verdicts[at : at + len(_EXPECTED)] for at in range(0, len(verdicts), len(_EXPECTED))] == (
        [_EXPECTED] * tiers
    )
