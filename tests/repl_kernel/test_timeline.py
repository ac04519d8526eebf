"""Going back to earlier states, going on from them side by side, and trying code on copies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_kernel.errors import (
    InterruptedByCaller,
    RequestRefused,
    SnapshotGone,
    SnapshotLost,
    SnapshotRefused,
)
from repl_kernel.process_tree import descendants
from repl_kernel.timeline import TimelineExecutor
from tests.repl_kernel.timeline_world import PATIENCE_S, SESSION_ID, World, is_gone, wait_until


def test_rewinding_makes_an_earlier_state_live_and_later_ones_stay_reachable(world: World) -> None:
    world.keep("x = [1]")
    world.keep("x.append(2)")
    world.executor.rewind(1)
    assert world.value("x") == [1]
    world.executor.rewind(2)
    assert world.value("x") == [1, 2]


def test_numbering_goes_on_and_the_next_execution_names_its_parent(world: World) -> None:
    world.keep("x = 1")
    world.keep("x = 2")
    world.executor.rewind(1)
    outcome = world.run("x")
    assert outcome.parent is not None
    assert outcome.parent.endswith(":1")
    assert world.run("x").parent is None


def test_rewinding_to_the_live_state_changes_nothing(world: World) -> None:
    pid = world.value("import os; os.getpid()")
    assert world.executor.rewind(1) == ()
    assert world.value("os.getpid()") == pid


def test_rewinding_to_0_empties_the_namespace(world: World) -> None:
    world.keep("x = 1")
    world.executor.rewind(0)
    assert world.run("x").status == "error"
    world.executor.rewind(1)
    assert world.value("x") == 1


def test_a_worker_that_has_just_been_forked_is_not_taken_for_a_program(no_leaks: None) -> None:
    """Without isolation nothing is asked of it first: it may not have given itself its name yet."""
    world = World(executor=TimelineExecutor(isolation="none"))
    for _ in range(20):
        world.do("x = 1")
        assert world.executor.rewind(0) == ()
    world.close()


def test_a_state_that_is_not_kept_is_refused_and_the_nearest_is_named(world: World) -> None:
    world.keep("x = 1")
    world.do("x = 2")
    world.keep("x = 3")
    with pytest.raises(SnapshotGone, match="the nearest that is kept is 3") as caught:
        world.executor.rewind(5)
    assert caught.value.nearest == 3
    assert world.value("x") == 3


def test_a_state_whose_copy_has_died_is_refused_and_the_live_one_goes_on(world: World) -> None:
    world.keep("x = 1")
    world.keep("x = 2")
    world.kill_copies(1)
    with pytest.raises(SnapshotLost):
        world.executor.rewind(1)
    with pytest.raises(SnapshotLost):
        world.branch(1)
    assert world.value("x") == 2


def test_a_crash_after_rewinding_goes_back_to_the_state_rewound_to(world: World) -> None:
    world.keep("x = 1")
    world.keep("x = 2")
    world.keep("x = 3")
    world.executor.rewind(1)
    outcome = world.run("import os; os._exit(1)")
    assert "the state after execution 1 is live" in outcome.notices[0]
    assert world.value("x") == 1


def test_where_the_copy_of_the_state_rewound_to_dies_a_crash_goes_back_along_the_same_line(
    world: World,
) -> None:
    world.keep("x = 1")
    world.keep("x = 2")
    world.keep("x = 3")
    world.executor.rewind(2)
    world.kill_copies(2)
    assert "the state after execution 1 is live" in world.run("import os; os._exit(1)").notices[0]


def test_the_worker_that_was_left_is_gone_and_its_programs_are_named(world: World) -> None:
    world.keep("x = 1")
    world.keep("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
    program, old = world.value("p.pid"), world.worker_pid
    (notice,) = world.executor.rewind(1)
    assert f"{program} (sleep)" in notice
    wait_until(lambda: is_gone(old))
    assert not is_gone(program)


def test_a_branch_goes_on_independently(world: World) -> None:
    world.keep("x = [1]")
    world.keep("x.append(2)")
    branch = world.branch(1)
    assert branch.value("x.append(3); x") == [1, 3]
    assert world.value("x") == [1, 2]
    assert branch.run("import os; os._exit(1)").status == "crashed"
    assert world.value("x") == [1, 2]
    branch.close()
    assert world.value("x") == [1, 2]


def test_a_branch_goes_on_when_the_session_it_came_from_is_closed(no_leaks: None) -> None:
    world = World()
    world.keep("x = 1")
    branch = world.branch(1)
    world.close()
    assert branch.value("x") == 1
    branch.close()


def test_a_branch_from_the_live_state_needs_no_earlier_snapshot(world: World) -> None:
    world.do("x = 1")
    branch = world.branch(1)
    assert branch.value("x") == 1
    branch.close()


def test_a_branch_can_crash_at_once_and_is_back_where_it_began(world: World) -> None:
    world.keep("x = 1")
    branch = world.branch(1)
    wait_until(lambda: 0 in branch.kept())
    assert "the state after execution 0 is live" in branch.run("import os; os._exit(1)").notices[0]
    assert branch.value("x") == 1
    branch.close()


def test_executions_of_a_branch_name_its_origin_until_its_namespace_is_emptied(world: World) -> None:
    world.keep("x = 1")
    branch = world.branch(1)
    wait_until(lambda: 0 in branch.kept())
    (candidate,) = branch.speculate("x")
    assert candidate.parent == f"{SESSION_ID}:1"
    branch.executor.rewind(0)
    assert branch.run("x").parent == f"{SESSION_ID}:1"
    branch.executor.restart()
    outcome = branch.run("x")
    assert (outcome.status, outcome.parent) == ("error", f"{SESSION_ID}:0")
    branch.executor.rewind(0)
    assert branch.run("x").status == "error"
    branch.close()


def test_a_branch_whose_state_is_lost_names_the_empty_namespace(world: World) -> None:
    world.keep("x = 1")
    branch = world.branch(1)
    wait_until(lambda: 0 in branch.kept())
    branch.do("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    branch.executor._lives.ring.close()
    assert branch.run("import os; os._exit(1)").status == "crashed"
    outcome = branch.run("x")
    assert (outcome.status, outcome.parent) == ("error", f"{SESSION_ID}:0")
    branch.close()


def test_a_branch_has_the_random_state_of_its_origin_unless_it_is_reseeded(world: World) -> None:
    world.keep("import random; random.seed(5)")
    expected = random.Random(5).random()
    same, other = world.branch(1), world.branch(1, reseed=True)
    assert same.value("random.random()") == expected
    assert other.value("random.random()") != expected
    assert world.value("random.random()") == expected
    same.close()
    other.close()


def test_tasks_go_on_in_the_original_and_in_its_branch(world: World) -> None:
    world.keep(
        "import asyncio\n"
        "async def work():\n    await asyncio.sleep(0.05)\n    return 'done'\n"
        "task = asyncio.ensure_future(work())\nawait asyncio.sleep(0)\nis_begun = True"
    )
    branch = world.branch(1)
    results: list[str] = []
    other = threading.Thread(target=lambda: results.append(branch.value("await task")))
    other.start()
    results.append(world.value("await task"))
    other.join()
    assert results == ["done", "done"]
    for each in (world, branch):
        assert each.value("await asyncio.to_thread(lambda: 5)") == 5
    branch.close()


def test_files_that_are_open_in_two_copies_are_named(world: World) -> None:
    world.keep("import tempfile; f = tempfile.TemporaryFile()")
    branch = world.branch(1)
    (notice,) = branch.run("1").notices
    assert notice.startswith("open files are shared with other copies, offsets too:")
    assert branch.run("1").notices == ()
    branch.close()


def test_shared_memory_that_is_not_as_it_was_is_named(world: World) -> None:
    world.keep("import mmap, multiprocessing\nm = mmap.mmap(-1, 1)\nv = multiprocessing.Value('i')")
    world.do("m[0] = v.value = 7")
    (notice,) = world.executor.rewind(1)
    assert notice.startswith("shared memory is not copied, it is as it is now: ")
    assert "/dev/shm/" in notice
    assert "memory without a name" in notice
    assert world.value("m[0], v.value") == (7, 7)
    assert notice in world.speculate("1")[0].notices


def test_candidates_run_at_once_and_see_nothing_of_each_other(world: World, tmp_path: Path) -> None:
    world.keep(f"import os, time; folder = {str(tmp_path)!r}; x = []")
    codes = [
        f"x.append({n}); os.mkdir(folder + '/{n}')\n"
        "while len(os.listdir(folder)) < 4: time.sleep(0.001)  # each waits until all have begun\nx"
        for n in range(4)
    ]
    outcomes = world.speculate(*codes, time_limit_s=PATIENCE_S)
    assert [outcome.result for outcome in outcomes] == [{"text/plain": f"[{n}]"} for n in range(4)]
    assert world.value("x") == []


def test_an_adopted_candidate_becomes_the_live_state_and_the_others_end(world: World) -> None:
    world.keep("x = []")
    outcomes = world.speculate("x.append(1)", "x.append(2)")
    assert [outcome.parent for outcome in outcomes] == [outcomes[0].parent] * 2
    world.executor.adopt(0)
    outcome = world.run("x")
    assert outcome.result == {"text/plain": "[1]"}
    assert outcome.parent is not None
    assert outcome.parent.endswith(":2")
    with pytest.raises(RequestRefused, match="there is no candidate 0"):
        world.executor.adopt(0)


def test_a_crash_after_adopting_goes_back_to_a_state_of_that_line(world: World) -> None:
    world.keep("x = [0]")
    world.speculate("x.append(1)", "x.append(2)")
    world.keep("x.append(9)")
    world.executor.adopt(0)
    world.do("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    assert world.run("import os; os._exit(1)").status == "crashed"
    assert world.value("x") in ([0], [0, 1])


def test_discarded_candidates_end_with_their_programs(world: World) -> None:
    world.keep("import subprocess")
    outcomes = world.speculate("p = subprocess.Popen(['sleep', '1000']); p.pid", "1")
    assert outcomes[0].result
    program = int(str(outcomes[0].result["text/plain"]))
    assert not is_gone(program)
    world.executor.discard()
    wait_until(lambda: is_gone(program))
    with pytest.raises(RequestRefused):
        world.executor.adopt(1)


def test_a_candidate_that_dies_takes_nobody_along_and_cannot_be_adopted(world: World) -> None:
    world.keep("x = 1")
    crashed, fine = world.speculate("import os; os._exit(3)", "x + 1")
    assert crashed.status == "crashed"
    assert crashed.error is not None
    assert crashed.error.exit_code == 3
    assert fine.result == {"text/plain": "2"}
    with pytest.raises(RequestRefused, match="has died"):
        world.executor.adopt(0)
    assert world.value("x") == 1


def test_a_time_limit_holds_for_each_candidate(world: World) -> None:
    world.keep("x = 1")
    short = world.request("while True: pass", time_limit_s=0.2)
    slow, fast = world.executor.speculate([short, world.request("2", time_limit_s=PATIENCE_S)])
    assert slow.status == "timeout"
    assert fast.status == "ok"


def _interrupt_once(is_so: Callable[[], bool]) -> threading.Thread:
    """Interrupt the main thread once something is so."""

    def interrupt() -> None:
        wait_until(is_so)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_an_interrupt_of_the_caller_interrupts_all_candidates(world: World, tmp_path: Path) -> None:
    world.keep("import time")
    marks = [tmp_path / "1", tmp_path / "2"]
    thread = _interrupt_once(lambda: all(mark.exists() for mark in marks))
    with pytest.raises(InterruptedByCaller) as caught:
        world.speculate(*(f"open({str(mark)!r}, 'w').close(); time.sleep(1000)" for mark in marks))
    thread.join()
    assert [outcome.status for outcome in caught.value.outcomes] == ["interrupted", "interrupted"]
    assert world.value("1") == 1


def test_an_interrupt_while_candidates_begin_leaves_none_running(world: World) -> None:
    world.keep("import time")
    for _ in range(3):
        thread = _interrupt_once(lambda: len(world.executor._candidates) == 2)
        with pytest.raises(KeyboardInterrupt) as caught:
            world.speculate("time.sleep(1000)", "time.sleep(1000)")
        thread.join()
        outcomes = caught.value.outcomes if isinstance(caught.value, InterruptedByCaller) else ()
        assert all(outcome.status == "interrupted" for outcome in outcomes)
        wait_until(lambda: "json-repl candidate" not in [thread.name for thread in threading.enumerate()])
        assert world.value("1") == 1
        world.executor.discard()


def test_an_atomic_execution_that_fails_leaves_the_namespace_as_it_was(world: World) -> None:
    world.do("x = [1]")
    for code in ("x.append(2); 1 / 0", "x.append(2); import os; os._exit(1)"):
        outcome = world.run(code, atomic=True)
        assert outcome.status in ("error", "crashed")
        assert outcome.rolled_back
        assert world.value("x") == [1]
    outcome = world.run("x.append(2)\nwhile True: pass", atomic=True, time_limit_s=0.1)
    assert outcome.status == "timeout"
    assert outcome.rolled_back
    assert world.value("x") == [1]
    assert not world.run("x.append(3)", atomic=True).rolled_back
    assert world.value("x") == [1, 3]


def test_what_a_rollback_can_not_bring_back_is_named(world: World) -> None:
    world.do("import os; read_fd, write_fd = os.pipe()")
    assert "pipes and sockets don't survive" in world.run("1 / 0", atomic=True).notices[0]


def test_an_atomic_execution_whose_copy_is_lost_keeps_its_outcome_and_says_so(world: World) -> None:
    world.keep("x = 1")
    kill_copies = (
        "import os, signal\n"
        "for copy in open(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read().split():\n"
        "    if int(copy) != os.getpid(): os.kill(int(copy), signal.SIGKILL)\n"
    )
    outcome = world.run(f"{kill_copies}\nprint('partial')\nx = 2\n1 / 0", atomic=True)
    assert outcome.stdout == "partial\n"
    assert outcome.error is not None
    assert outcome.error.type == "ZeroDivisionError"
    assert not outcome.rolled_back
    assert "this could not be rolled back" in outcome.notices[-1]
    assert world.value("x") == 2


def test_an_atomic_execution_in_an_empty_namespace_can_be_rolled_back(world: World) -> None:
    assert world.run("x = 1; 1 / 0", atomic=True).rolled_back
    assert world.run("x").status == "error"


def test_an_atomic_execution_does_not_run_where_no_snapshot_is_possible(world: World) -> None:
    world.do(
        "import threading; e = threading.Event(); x = 1\n"
        "threading.Thread(target=e.wait, name='waiter').start()"
    )
    with pytest.raises(SnapshotRefused, match="waiter"):
        world.run("x = 2", atomic=True)
    assert world.value("x") == 1
    world.do("e.set()")


def test_restarting_ends_candidates_and_snapshots(world: World) -> None:
    world.keep("x = 1")
    world.speculate("1", "2")
    old = [stat.pid for stat in descendants(world.keeper_pid)]
    world.executor.restart()
    wait_until(lambda: all(is_gone(pid) for pid in old))
    assert world.kept() == []
    with pytest.raises(RequestRefused):
        world.executor.adopt(0)
    assert world.run("x").status == "error"


def assert_output_arrives(world: World) -> None:
    """What the code, a program of it and its report of a crash write is all there."""
    code = "print('printed'); import os; os.system('echo by a program; echo error >&2')"
    outcome = world.run(code)
    assert (outcome.stdout, outcome.stderr) == ("printed\nby a program\n", "error\n")
    assert outcome.late_output == ()


def crash(world: World) -> None:
    outcome = world.run(
        "print('before', flush=True); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert outcome.status == "crashed"
    assert outcome.stdout == "before\n"
    assert outcome.stderr.startswith("Fatal Python error: Segmentation fault")


def test_output_arrives_after_going_back_from_an_adopted_candidate(world: World) -> None:
    world.keep("x = 1")
    world.speculate("x = 2", "x = 3")
    world.executor.adopt(1)
    assert_output_arrives(world)
    world.executor.rewind(1)
    assert_output_arrives(world)
    crash(world)
    assert_output_arrives(world)


def test_output_arrives_after_going_back_from_the_empty_namespace(world: World) -> None:
    world.keep("x = 1")
    world.executor.rewind(0)
    assert_output_arrives(world)
    world.executor.rewind(1)
    assert_output_arrives(world)


def test_a_program_of_a_worker_that_an_adopted_one_replaced_is_still_heard(world: World) -> None:
    world.keep(
        "import subprocess\n"
        "p = subprocess.Popen(['sh', '-c', 'read line; echo $line'], stdin=subprocess.PIPE)"
    )
    program = world.value("p.pid")
    program_input = os.open(f"/proc/{program}/fd/0", os.O_WRONLY)
    world.speculate("x = 2")
    world.executor.adopt(0)
    os.write(program_input, b"from afar\n")
    os.close(program_input)
    wait_until(lambda: is_gone(program))
    assert [late.text for late in world.run("1").late_output] == ["from afar\n"]


_KINDS = ("keep", "adopt", "discard", "rewind", "rewind to 0", "branch", "go to branch", "crash")
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["keep", "adopt", "discard", "rewind", "rewind to 0", "branch", "go to branch", "crash"]
        ),
        st.integers(0, 3),
    ),
    max_size=8,
)


def _take_step(step: str, number: int, worlds: list[World]) -> None:
    world = worlds[-1]
    kept = world.kept()
    if step == "keep":
        world.keep(f"x = {number}")
    elif step in ("adopt", "discard"):
        outcomes = world.speculate("print('one')", "import os; os.system('echo two')")
        assert [outcome.stdout for outcome in outcomes] == ["one\n", "two\n"]
        if step == "adopt":
            world.executor.adopt(number % 2)
        else:
            world.executor.discard()
    elif step == "rewind to 0":
        with contextlib.suppress(SnapshotGone):  # the state that a branch began with
            world.executor.rewind(0)
    elif step == "crash":
        crash(world)
    elif step == "rewind" and kept:
        world.executor.rewind(kept[number % len(kept)])
    elif "branch" in step and kept:
        worlds.insert(0 if step == "branch" else len(worlds), world.branch(kept[number % len(kept)]))


@settings(max_examples=25, deadline=None)
@given(_STEPS)
def test_output_arrives_whatever_became_of_the_worker_before(steps: list[tuple[str, int]]) -> None:
    worlds = [World()]
    try:
        for step, number in steps:
            _take_step(step, number, worlds)
            for world in worlds:
                assert_output_arrives(world)
    finally:
        for world in worlds:
            world.close()


@pytest.mark.parametrize("rewinds", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_random_rewinds_and_executions_agree_with_a_model(world: World, rewinds: int) -> None:
    dice = random.Random(11)
    states: dict[int, list[int]] = {0: []}
    live: list[int] = []
    for number in range(1, 21):
        live = [*live, number]
        seq = world.keep(f"x = [*x, {number}] if 'x' in globals() else [{number}]")
        states[seq] = live
    refused = 0
    for _ in range(rewinds):
        seq = dice.choice(sorted(states))
        try:
            world.executor.rewind(seq)
        except SnapshotGone as exc:
            refused += 1
            nearest = exc.nearest
            # Before `kept()`, which may take in one more, and thin them.
            assert nearest in world.executor._lives.ring.seqs()
            assert seq not in world.kept()
        else:
            live = states[seq]
        if dice.random() < 0.3 and live:
            live = [*live, -1]
            states[world.keep("x.append(-1)")] = live
        elif live:
            assert world.value("x") == live
            states[world.seq] = live
    assert os.path.exists(f"/proc/{world.worker_pid}")
    assert refused < rewinds


THE_WORKER = """
import sys
frame = sys._getframe()
while type(frame.f_locals.get("self")).__name__ != "Worker":
    frame = frame.f_back
worker = frame.f_locals["self"]
del frame
"""


def test_what_executed_code_writes_among_the_announcements_costs_nobody_a_snapshot(world: World) -> None:
    world.keep("x = 1")
    forged = [b"junk", b"[]", b"{}", b'{"made":true,"seq":1,"minflt":0}', b'{"refused":5,"minflt":null}']
    for packet in forged:
        world.do(f"{THE_WORKER}\nworker._copier._channel.send({packet!r})")
        world.executor.snapshots()
        assert world.value("x") == 1
        world.executor.snapshot()


def test_a_candidate_that_forges_half_a_reply_has_crashed_and_cannot_be_adopted(world: World) -> None:
    world.keep("x = 1")
    reply = '{"id": worker._message_id, "status": "ok", "late": []}'
    forger = f"{THE_WORKER}\nfrom repl_kernel.framing import pack\nworker._send(pack({reply}))"
    outcomes = world.executor.speculate([world.request(forger), world.request("x")])
    assert [outcome.status for outcome in outcomes] == ["crashed", "ok"]
    with pytest.raises(RequestRefused, match="its worker has died"):
        world.executor.adopt(0)
