"""A worker that died is replaced by one in the newest state that is kept."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from benchmarks.kills import kill_a_session
from repl_kernel.errors import CannotFork, SnapshotGone
from repl_kernel.process_tree import descendants, read_stat
from repl_kernel.timeline import TimelineExecutor
from tests.repl_kernel.timeline_world import SESSION_ID, World, is_gone, private_bytes, wait_until

DEATHS = {
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "exit": ("import os; os._exit(7)", None),
    "abort": ("import os; os.abort()", "SIGABRT"),
    "kill": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
}

_FRAGILE = """
import sqlite3, threading
def count():
    number = 0
    while True:
        number += 1
        yield number
numbers = count()
lock = threading.Lock()
_ = lock.acquire()
database = sqlite3.connect(":memory:")
_ = database.execute("create table t (x)")
_ = database.execute("insert into t values (42)")
memory = bytearray(b"abc")
"""


@pytest.mark.parametrize("death", DEATHS)
def test_generators_locks_and_open_databases_survive(world: World, death: str) -> None:
    code, signal_name = DEATHS[death]
    world.keep(_FRAGILE)
    kept = world.keep("_ = next(numbers), next(numbers); memory += b'd'")
    outcome = world.run(code)
    assert outcome.status == "crashed"
    assert outcome.error is not None
    assert outcome.error.signal == signal_name
    assert f"the state after execution {kept} is live; lost with it: {world.seq}" in outcome.notices[0]
    rows = "database.execute('select x from t').fetchall()"
    state = f"next(numbers), lock.locked(), database.in_transaction, {rows}"
    assert world.value(state) == (3, True, True, [(42,)])
    assert world.value("bytes(memory)") == b"abcd"


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_fifty_times_the_state_is_exactly_that_of_the_execution_named(world: World, death: str) -> None:
    world.keep(_FRAGILE + "import numpy\nbig = numpy.ones(1 << 27 if numpy else 0)\n")
    for expected in range(1, 51):
        world.keep("_ = next(numbers); memory += b'!'; big[numbers.gi_frame.f_locals['number']] = 2")
        outcome = world.run(DEATHS[death][0])
        assert outcome.status == "crashed"
        assert f"the state after execution {world.seq - 1} is live" in outcome.notices[0]
        assert world.value("len(memory), lock.locked(), int((big == 2).sum())") == (
            3 + expected,
            True,
            expected,
        )
        assert world.value("numbers.gi_frame.f_locals['number']") == expected


def test_the_same_crash_again_and_again_loses_nothing_more(world: World) -> None:
    world.keep("x = [1]")
    for _ in range(10):
        assert world.run("x.append(2); import os; os._exit(1)").status == "crashed"
    assert world.value("x") == [1]


def test_code_that_cannot_be_interrupted_is_killed_and_the_state_before_it_is_live(world: World) -> None:
    # Deaf before the time limit is set: it may pass before the code has begun.
    world.keep("x = 1; import signal\nfor number in (2, 15): _ = signal.signal(number, signal.SIG_IGN)")
    outcome = world.run("sum(range(10**12))", time_limit_s=0.1)
    assert outcome.status == "timeout"
    assert "the state after execution 1 is live" in outcome.notices[0]
    assert world.value("x") == 1


def test_executions_that_no_copy_holds_are_named_as_lost(world: World) -> None:
    world.keep("x = 1")
    world.do("import threading; e = threading.Event(); t = threading.Thread(target=e.wait); t.start()")
    world.do("x = 2")
    outcome = world.run("import os; os._exit(1)")
    assert "the state after execution 1 is live; lost with it: 2–4" in outcome.notices[0]
    assert world.value("x") == 1


def test_without_any_snapshot_the_namespace_is_empty(no_leaks: None) -> None:
    world = World("manual")
    world.do("x = 1")
    outcome = world.run("import os; os._exit(1)")
    assert "its variables are lost, the namespace is empty now" in outcome.notices[0]
    assert world.run("x").status == "error"
    world.close()


def test_a_worker_that_died_between_two_executions_is_replaced_by_the_next(world: World) -> None:
    world.keep("x = 1")
    os.kill(world.worker_pid, signal.SIGKILL)
    wait_until(lambda: is_gone(world.worker_pid))
    outcome = world.run("x")
    assert outcome.result == {"text/plain": "1"}
    assert (
        "was killed by SIGKILL between two executions; the state after execution 1 is live"
        in outcome.notices[0]
    )


def _rewind_in_vain(executor: TimelineExecutor) -> None:
    with pytest.raises(SnapshotGone):
        executor.rewind(2)


ASKED: dict[str, Callable[[TimelineExecutor], object]] = {
    "ensure_snapshot": lambda executor: executor.ensure_snapshot(),
    "snapshot": lambda executor: executor.snapshot(),
    "snapshots": lambda executor: executor.snapshots(),
    "variables": lambda executor: executor.variables(),
    "complete": lambda executor: executor.complete("x", 1),
    "rewind": _rewind_in_vain,
    "branch": lambda executor: executor.branch(1, SESSION_ID).close(),
}


@pytest.mark.parametrize("asked", ASKED)
def test_whatever_finds_a_worker_dead_the_next_outcome_says_what_is_lost(asked: str, no_leaks: None) -> None:
    world = World("manual")
    world.do("x = 1")
    world.executor.snapshot()
    world.do("x = 2")
    pid = world.worker_pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    ASKED[asked](world.executor)
    outcome = world.run("x")
    assert outcome.result == {"text/plain": "1"}
    assert outcome.notices == (
        "the worker was killed by SIGKILL between two executions; the state after execution 1 is live; "
        "lost with it: 2",
    )
    assert world.run("x").notices == ()
    world.close()


def test_candidates_and_a_rewind_tell_what_was_lost_before_them(no_leaks: None) -> None:
    world = World("manual")
    world.do("x = 1")
    world.executor.snapshot()
    tells: tuple[Callable[[], Sequence[str]], ...] = (
        lambda: world.executor.speculate([world.request("x"), world.request("x")])[0].notices,
        lambda: world.executor.rewind(0),
    )
    for tell in tells:
        pid = world.worker_pid
        os.kill(pid, signal.SIGKILL)
        wait_until(functools.partial(is_gone, pid))
        assert any("was killed by SIGKILL between two executions" in notice for notice in tell())
    assert world.run("1").notices == ()
    world.close()


def test_a_worker_that_gives_no_answer_between_executions_can_be_interrupted(no_leaks: None) -> None:
    world = World("manual")
    world.do("x = 1")
    world.executor.snapshot()
    world.do("x = 2")
    os.kill(world.worker_pid, signal.SIGSTOP)
    asking = threading.Thread(target=world.executor.ensure_snapshot)
    asking.start()
    wait_until(lambda: world.executor.interrupt() or not asking.is_alive())
    wait_until(lambda: not world.executor.interrupt() and not asking.is_alive())
    outcome = world.run("x")
    assert outcome.result == {"text/plain": "1"}
    assert "killed by SIGKILL between two executions; the state after execution 1" in outcome.notices[0]
    world.close()


def test_programs_that_go_on_and_peers_that_are_lost_are_named(world: World) -> None:
    world.keep(
        "import socket, subprocess\n"
        "a, b = socket.socketpair()\n"
        "plain = subprocess.Popen(['sleep', '1000'])\n"
        "apart = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    )
    pids = world.value("plain.pid, apart.pid")
    world.idle()
    notice = world.run("import os; os._exit(1)").notices[0]
    for pid in pids:
        assert f"{pid} (sleep)" in notice
        assert not is_gone(pid)
    assert "repl-" not in notice
    assert notice.count("(socket:[") == 2


def test_a_fork_of_the_users_is_a_program_too(world: World) -> None:
    pid = world.value(
        "import os, time\nr, w = os.pipe()\npid = os.fork()\n"
        "if pid == 0:\n    _ = os.write(w, b'x')\n    while True: time.sleep(1)\n"
        "_ = os.read(r, 1)  # it runs, so it has the name of a program\nos.close(r); os.close(w)\npid"
    )
    world.idle()
    assert f"{pid} (python)" in world.run("os._exit(1)").notices[0]


def test_where_the_newest_copy_has_died_an_older_one_takes_over(world: World) -> None:
    world.keep("x = 1")
    world.keep("x = 2")
    world.kill_copies(2)
    outcome = world.run("import os; os._exit(1)")
    assert "the state after execution 1 is live; lost with it: 2–3" in outcome.notices[0]
    assert world.value("x") == 1


def test_where_all_copies_have_died_the_namespace_is_empty(world: World) -> None:
    world.keep("x = 1")
    world.keep("x = 2")
    world.kill_copies(1, 2)
    assert "the namespace is empty now" in world.run("import os; os._exit(1)").notices[0]
    assert world.value("1 + 1") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user for whom the limit holds")
def test_where_no_process_can_be_had_the_outcome_is_told_and_a_later_execution_finds_the_state(
    world: World,
) -> None:
    uid = 40_000 + os.getpid() % 20_000
    world.keep(
        "import os, resource, subprocess\n"
        f"os.setuid({uid})\nresource.setrlimit(resource.RLIMIT_NPROC, (4, 4))"
    )
    # With the copy they are three; a fork by way of an intermediate needs two more.
    programs = world.value("x = 1; [subprocess.Popen(['sleep', '1000']).pid for _ in range(2)]")
    outcome = world.run("os._exit(1)")
    assert outcome.status == "crashed"
    assert "no worker could take over: the system refuses a new worker process" in outcome.notices[0]
    with pytest.raises(CannotFork):
        world.run("1")
    for pid in programs:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: read_stat(pid) is None)  # until it is reaped, it counts
    outcome = world.run("os.getuid()")
    assert outcome.result == {"text/plain": str(uid)}
    assert "the state after execution 1 is live" in outcome.notices[0]


def test_a_dead_keeper_is_replaced_and_nothing_of_it_is_left(world: World) -> None:
    world.keep("x = 1")
    wait_until(world.copies)
    pids = [world.worker_pid, *(copy.pid for copy in world.copies())]
    os.kill(world.keeper_pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(pid) for pid in pids))
    outcome = world.run("1 + 1")
    assert outcome.result == {"text/plain": "2"}
    assert "the namespace is empty now" in outcome.notices[0]
    assert world.keep("x = 2") in world.kept()


def test_a_keeper_that_executed_code_has_stopped_is_had_to_go_on(world: World) -> None:
    stop = "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)"
    began = time.monotonic()
    outcome = world.run(f"{stop}; os._exit(5)")
    assert outcome.error is not None
    assert outcome.error.exit_code == 5
    world.do(stop)
    world.executor.restart()
    world.do(stop)
    world.executor.close()
    assert time.monotonic() - began < 4  # s; each of them has waited for 5


def test_a_collection_in_a_restored_worker_does_not_unshare_the_memory(world: World) -> None:
    world.keep("heap = [{i: [i]} for i in range(300_000)]")
    assert world.run("import os; os._exit(1)").status == "crashed"
    world.do("import gc")
    before = private_bytes(world.worker_pid)
    world.do("_ = gc.collect()")
    assert private_bytes(world.worker_pid) - before < 5 << 20


def test_tasks_that_were_pending_go_on_in_a_restored_worker(world: World) -> None:
    world.keep(
        "import asyncio\n"
        "async def work():\n    await asyncio.sleep(0.01)\n    return 'done'\n"
        "task = asyncio.ensure_future(work())\nawait asyncio.sleep(0)\nis_begun = True"
    )
    assert world.run("import os; os._exit(1)").status == "crashed"
    assert world.value("await task") == "done"


def test_subprocesses_of_asyncio_and_other_threads_calls_work_in_a_restored_worker(world: World) -> None:
    world.keep("import asyncio\nawait asyncio.sleep(0)")
    assert world.run("import os; os._exit(1)").status == "crashed"
    code = "await asyncio.get_running_loop().run_in_executor(None, lambda: 5)"
    assert world.value(code) == 5
    assert world.value("p = await asyncio.create_subprocess_exec('true')\nawait p.wait()") == 0


def test_a_restored_worker_can_be_interrupted_and_knows_its_random_state(world: World) -> None:
    world.keep("import random; random.seed(3)")
    assert world.run("import os; os._exit(1)").status == "crashed"
    outcome = world.run("while True: pass", time_limit_s=0.1)
    assert outcome.status == "timeout"
    assert outcome.notices == ()
    world.keep("x = random.random()")
    assert world.run("import os; os._exit(1)").status == "crashed"
    import random

    expected = random.Random(3)
    assert world.value("x") == expected.random()
    assert world.value("random.random()") == expected.random()


def test_output_of_a_restored_worker_arrives(world: World) -> None:
    world.keep("x = 1")
    assert world.run("print('a', flush=True); import os; os._exit(1)").stdout == "a\n"
    assert world.run("print('b'); import os; _ = os.system('echo c')").stdout == "b\nc\n"


def _cycle(world: World, cycles: int) -> None:
    for number in range(cycles):
        world.keep(f"x = {number}")
        assert world.run("import os; os._exit(1)").status == "crashed"
        assert world.value("x") == number


def _zombies_below(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))) is not None and stat.parent_pid == pid:
            found += [stat.pid] if stat.state == "Z" else []
    return found


@pytest.mark.parametrize("cycles", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_cycles_of_snapshot_and_restore_leave_nothing_behind(world: World, cycles: int) -> None:
    _cycle(world, 5 if cycles < 100 else 100)
    fds, rss = _fds_but_for_copies(world), _rss_bytes()
    keeper_fds = len(os.listdir(f"/proc/{world.keeper_pid}/fd"))
    _cycle(world, cycles)
    assert _fds_but_for_copies(world) == fds
    assert len(os.listdir(f"/proc/{world.keeper_pid}/fd")) == keeper_fds
    wait_until(lambda: not _zombies_below(world.keeper_pid))
    wait_until(lambda: len(descendants(world.keeper_pid)) == len(world.kept()) + 1)
    if cycles >= 1000:
        assert _rss_bytes() - rss < 10 << 20


def _fds_but_for_copies(world: World) -> int:
    world.idle()  # else a copy could be announced between the two counts
    return len(os.listdir("/proc/self/fd")) - len(world.kept())


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


_GIB_OF_OBJECTS = "heap = [[i] for i in range(10_000_000)]"


@pytest.mark.parametrize(
    "isolation",
    [
        "process",
        pytest.param(
            "sandbox",
            marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
        ),
    ],
)
@pytest.mark.parametrize(
    ("kills", "copies", "setup"),
    [
        (1, 10, "x = 1"),
        pytest.param(50, 50, "x = 1", marks=pytest.mark.slow),
        pytest.param(1, 50, _GIB_OF_OBJECTS, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_of_a_session_that_was_killed(
    isolation: str, kills: int, copies: int, setup: str
) -> None:
    """Nothing that lives: what has ended, but isn't reaped, is for whoever adopted it."""
    took_s = [kill_a_session(isolation, copies, setup) for _ in range(kills)]
    print(f"{isolation}: {kills} of {kills} gone, after {max(took_s):.2f} s at most")


def test_an_interrupt_while_a_restored_worker_runs_reaches_it(world: World) -> None:
    world.keep("x = 1")
    assert world.run("import os; os._exit(1)").status == "crashed"
    started: Callable[[], bool] = world.executor.interrupt
    interrupter = threading.Thread(target=lambda: wait_until(started))
    interrupter.start()
    assert world.run("import time; time.sleep(1000)").status == "interrupted"
    interrupter.join()
    assert world.value("x") == 1
