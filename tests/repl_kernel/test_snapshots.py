"""Sleeping copies of the worker: when they are made, what the worker notices of it, when they are let go."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl_kernel.errors import SnapshotGone, SnapshotRefused
from repl_kernel.process_tree import read_stat
from repl_kernel.snapshots import MAX_SNAPSHOTS, SnapshotRing
from tests.repl_kernel.timeline_world import World, private_bytes, wait_until


def test_every_state_is_kept_once_the_worker_idles(world: World) -> None:
    for number in range(1, 6):
        world.keep(f"x = {number}")
    assert world.kept() == [1, 2, 3, 4, 5]


def test_a_copy_is_a_child_of_the_keeper_in_a_session_of_its_own(world: World) -> None:
    world.keep("x = 1")
    wait_until(world.copies)
    (copy,) = world.copies()
    assert copy.parent_pid == world.keeper_pid
    wait_until(lambda: os.getsid(copy.pid) == copy.pid)


def test_the_live_worker_goes_on_as_the_process_it_was(world: World) -> None:
    pid = world.value("import os; os.getpid()")
    world.idle()
    for _ in range(3):
        world.keep("x = 1")
    assert world.value("os.getpid()") == pid


def test_waiting_for_any_child_never_sees_a_copy(world: World) -> None:
    code = """
import os
def ended():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return "no children"
"""
    world.keep(code)
    for _ in range(10):
        assert world.value("ended()") == "no children"
        world.idle()
    assert len(world.kept()) == 11


def test_a_handler_for_ended_children_is_called_for_the_users_own_only(world: World) -> None:
    world.keep("import os, signal; ended = []; _ = signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))")
    for _ in range(5):
        world.keep("x = 1")
    assert world.value("ended") == []
    world.keep("pid = os.fork()\nif pid == 0: os._exit(0)\n_ = os.waitpid(pid, 0)")
    assert world.value("ended") == [1]


def test_copies_are_made_where_ended_children_are_ignored(world: World) -> None:
    world.keep("import signal; _ = signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    world.keep("x = 1")
    assert world.kept() == [1, 2]


def test_random_numbers_go_on_as_if_no_copy_had_been_made(world: World) -> None:
    world.keep("import random; random.seed(7)")
    expected = random.Random(7)
    for _ in range(3):
        assert world.value("random.random()") == expected.random()
        world.idle()


def test_a_program_started_49_snapshots_ago_is_polled_and_waited_for_rightly(world: World) -> None:
    world.keep("import subprocess; p = subprocess.Popen(['cat'], stdin=subprocess.PIPE)")
    for _ in range(49):
        world.keep("x = 1")
    assert world.run("p.poll()").result is None
    assert world.value("p.stdin.close(); p.wait()") == 0


def test_peers_of_the_users_pipes_and_sockets_see_the_end_although_copies_had_them(world: World) -> None:
    world.keep("import socket; a, b = socket.socketpair(); s = socket.create_server(('127.0.0.1', 0))")
    port = world.value("s.getsockname()[1]")
    world.idle()
    assert world.value("a.close(); b.recv(1)") == b""
    world.do("s.close()")
    wait_until(lambda: _refuses(port))  # the last copy may be about to let go of it


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_open_descriptors_are_listed_with_the_offsets_of_files(world: World) -> None:
    world.keep("import tempfile; f = tempfile.TemporaryFile(buffering=0); f.write(b'12345')")
    listed = world.executor.snapshots()[-1]["descriptors"]
    assert isinstance(listed, list)
    assert [line.endswith("at byte 5") for line in listed] == [True]


def test_progress_bars_forbid_no_snapshot(world: World) -> None:
    bar = "from tqdm import tqdm; import threading\nsum(tqdm(range(3)))"
    for _ in range(2):  # the second one starts its thread again
        world.keep(f"kept = 1\nopened = tqdm(range(9)) if 'tqdm' in globals() else 0\n{bar}")
        assert world.value("threading.active_count()") == 1
    assert world.run("import os; os._exit(1)").status == "crashed"
    assert world.value("kept, sum(opened), sum(tqdm(range(3)))") == (1, 36, 3)


def test_the_live_workers_collector_stays_as_it_was(world: World) -> None:
    ask = "(gc.isenabled(), gc.get_threshold(), gc.get_freeze_count())"
    before = world.value(f"import gc; {ask}")
    for _ in range(3):
        world.keep("x = 1")
    assert world.value(ask) == before


def test_a_worker_that_never_idles_is_copied_before_a_request(world: World) -> None:
    for _ in range(12):
        world.do("import time\nend = time.perf_counter() + 0.15\nwhile time.perf_counter() < end: pass")
    assert any(seq < 12 for seq in world.kept())


def test_manual_snapshots_are_made_when_asked_for_only(no_leaks: None) -> None:
    world = World("manual")
    world.do("x = 1")
    assert world.executor.snapshot() == 1
    world.do("x = 2")
    assert world.run("import os; os._exit(1)").status == "crashed"
    assert world.value("x") == 1
    assert world.kept() == [1]
    world.close()


def test_without_snapshots_whatever_needs_one_is_refused(no_leaks: None) -> None:
    world = World("off")
    world.do("x = 1")
    with pytest.raises(SnapshotRefused, match="snapshots='auto'"):
        world.executor.snapshot()
    with pytest.raises(SnapshotRefused):
        world.speculate("1")
    with pytest.raises(SnapshotRefused):
        world.run("1", atomic=True)
    with pytest.raises(SnapshotGone):
        world.executor.rewind(world.seq + 5)
    assert world.value("x") == 1
    world.close()


def test_extra_memory_stays_bounded_while_code_rewrites_all_of_its_memory(world: World) -> None:
    bound = 48 << 20
    world.executor._lives.ring.max_bytes = bound
    world.keep("data = bytearray(32 << 20)")
    for _ in range(3):
        world.keep("x = 1")
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most.append(sum(private_bytes(copy.pid) for copy in world.copies()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(4):
        world.do("for i in range(20): data[:] = bytes([i]) * len(data)")
        world.idle()
    done.set()
    watcher.join()
    # What is written between two looks comes on top, and a few pages of each copy's own.
    assert max(most) < 2.5 * bound + (40 << 20)
    assert world.run("import os; os._exit(1)").status == "crashed"
    assert world.value("data[0]") == 19


def test_the_last_copy_is_kept_where_only_new_memory_was_written(world: World) -> None:
    world.executor._lives.ring.max_bytes = 8 << 20
    world.keep("x = 1")
    outcome = world.run("import os\nmore = [[i] for i in range(1_000_000)]\nos._exit(1)")
    assert outcome.status == "crashed"
    assert world.value("x") == 1


def test_a_copy_that_came_to_hold_too_much_is_let_go_and_a_crash_says_why(
    world: World, tmp_path: Path
) -> None:
    ring, flag = world.executor._lives.ring, tmp_path / "let go"
    ring.max_bytes = 4 << 20
    world.keep("data = bytearray(64 << 20)")

    def tell() -> None:
        wait_until(lambda: not ring.seqs())
        flag.touch()

    watcher = threading.Thread(target=tell)
    watcher.start()
    outcome = world.run(
        "import os, time\n"
        f"while not os.path.exists({str(flag)!r}):\n    data[:] = b'x' * len(data)\n    time.sleep(0.05)\n"
        "os._exit(1)"
    )
    watcher.join()
    assert outcome.status == "crashed"
    assert "let go" in outcome.notices[-1]
    assert "the namespace is empty now" in outcome.notices[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user for whom the limit holds")
@pytest.mark.parametrize("processes", [1, 2])
def test_where_the_system_refuses_a_fork_the_worker_goes_on_and_the_reason_is_told(
    world: World, processes: int
) -> None:
    uid = 40_000 + os.getpid() % 20_000
    world.do(
        f"import os, resource\nos.setuid({uid})\n"
        f"resource.setrlimit(resource.RLIMIT_NPROC, ({processes},) * 2)"
    )
    with pytest.raises(SnapshotRefused, match="refused a fork: Resource temporarily unavailable"):
        world.executor.snapshot()
    assert world.value("1 + 1") == 2


def test_where_no_descriptor_is_left_the_worker_goes_on(world: World) -> None:
    world.do(
        "import os, resource\n"
        "used = len(os.listdir('/proc/self/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used, 4096))\n"
        "while True:\n"
        "    try: os.dup(0)\n"
        "    except OSError: break"
    )
    with pytest.raises(SnapshotRefused, match="Too many open files"):
        world.executor.snapshot()
    assert world.value("1 + 1") == 2


def test_a_copy_that_would_lack_a_descriptor_is_refused(world: World) -> None:
    world.do(
        "import os, resource\ncount = 0\n"
        "used = len(os.listdir('/proc/self/fd')) - 1\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, 4096))"
    )
    with pytest.raises(SnapshotRefused, match="Too many open files"):
        world.executor.snapshot()  # it would have its socket, and nothing to look around with
    assert [world.value("(count := count + 1)") for _ in range(50)] == list(range(1, 51))


def test_a_copy_that_fails_ends_without_a_trace(world: World, tmp_path: Path) -> None:
    world.do(
        "import atexit, os, pathlib\n"
        f"atexit.register(pathlib.Path({str(tmp_path / 'ran')!r}).touch)\n"
        "os.setsid = None"
    )
    with contextlib.suppress(SnapshotRefused):  # where it has ended so soon that it was seen
        world.executor.snapshot()
    wait_until(lambda: not world.copies())
    assert not list(tmp_path.iterdir())
    assert world.value("2") == 2


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; os.fork = None", "'NoneType' object is not callable"),
        ("import sys, types; sys.modules['torch'] = types.SimpleNamespace(cuda=1)", "no attribute 'is_init"),
    ],
)
def test_where_executed_code_replaced_what_a_copy_takes_the_worker_goes_on_with_its_state(
    world: World, code: str, says: str
) -> None:
    world.do(f"{code}\nkept = 1")
    with pytest.raises(SnapshotRefused, match=says):
        world.executor.snapshot()
    assert world.value("kept") == 1


def test_code_that_has_closed_its_standard_descriptors_has_snapshots_that_wake(world: World) -> None:
    world.do("import os\nfor fd in 0, 1, 2: os.close(fd)")
    world.executor.snapshot()
    assert world.run("os.abort()").status == "crashed"
    assert [outcome.status for outcome in world.speculate("os", "os")] == ["ok", "ok"]
    assert world.run("print('nowhere to go')").error.type == "OSError"  # type: ignore[union-attr]


def test_code_that_sets_its_own_time_has_snapshots(world: World) -> None:
    world.do("import time\ntime.time = lambda: 5\ntime.perf_counter = None")
    assert world.executor.snapshot() == 1


@pytest.fixture
def ring() -> Iterator[SnapshotRing]:
    """A ring without processes: what it keeps are sockets."""
    made = SnapshotRing()
    yield made
    made.close()


def _announce(ring: SnapshotRing, seq: int, minflt: int = 0) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copy, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, kept:
        message = {"seq": seq, "made": True, "at": 0.0, "minflt": minflt, "descriptors": []}
        socket.send_fds(theirs, [json.dumps(message).encode()], [kept.fileno()])
        ring.take_announcements(ours)
    return copy


def test_the_newest_states_are_all_kept_and_older_ones_at_growing_distances(ring: SnapshotRing) -> None:
    copies = []
    for seq in range(1, 1001):
        copies.append(_announce(ring, seq))
        seqs = ring.seqs()
        assert seqs[-16:] == list(range(max(1, seq - 15), seq + 1))
        assert len(seqs) <= MAX_SNAPSHOTS
        assert seqs[0] <= max(1, seq // 2 + 1)
    distances = [later - earlier for earlier, later in zip(ring.seqs(), ring.seqs()[1:], strict=False)]
    assert max(distances[:5]) > 8 * max(distances[-15:])
    for copy in copies:
        copy.close()


def test_the_state_that_a_crash_would_go_back_to_is_never_thinned(ring: SnapshotRing) -> None:
    copies = [_announce(ring, seq) for seq in range(1, 60)]
    ring.begin_life(50)
    newest = ring.newest()
    assert newest is not None
    assert newest.seq == 50
    ring.max_bytes = 0
    ring.bound_memory(10)
    assert ring.seqs() == [50]
    for copy in copies:
        copy.close()


def test_the_process_of_a_snapshot_that_was_let_go_ends(world: World) -> None:
    world.keep("x = 1")
    wait_until(world.copies)
    (copy,) = world.copies()
    world.executor._lives.ring.drop(1)
    wait_until(lambda: read_stat(copy.pid) is None)


def test_copies_that_nobody_asks_for_are_let_go_as_well(world: World) -> None:
    world.executor._lives.ring.max_bytes = 0  # so that none but the last stays once they are counted
    known: set[int] = set()
    for number in range(30):
        world.do(f"x = {number}")
        wait_until(lambda: not known.issuperset(copy.pid for copy in world.copies()))
        known.update(copy.pid for copy in world.copies())
        wait_until(lambda: len(world.copies()) <= 10)
    world.idle()  # the last copy was seen, not announced yet
    world.executor._lives.ring.max_bytes = 1 << 30  # a crash that takes its time finds it too large, too
    assert "the state after execution 30 is live" in world.run("import os; os._exit(1)").notices[0]
    assert world.value("x") == 29


def test_a_state_kept_while_candidates_wait_is_still_there_once_one_is_adopted(world: World) -> None:
    world.keep("x = 1")
    world.speculate("x = 2")
    seq = world.do("y = 3")
    wait_until(lambda: select.select([world.executor._lives.link.channel], [], [], 0)[0])
    world.executor.adopt(0)
    assert seq in world.kept()
    world.executor.rewind(seq)
    assert world.value("x, y") == (1, 3)


def test_the_call_after_a_snapshot_pays_for_few_of_its_pages(world: World) -> None:
    world.keep("numbers = [1, 2]; text = 'abc' * 10")
    world.keep("x = 1")
    paid = []
    worker = Path(f"/proc/{world.executor._lives.link.pid}/stat")
    for _ in range(5):
        wait_until(lambda: ") S " in worker.read_text())  # what it does after a copy is over then
        before = world.executor._lives.link.minor_faults()
        world.do("x = 1")
        after = world.executor._lives.link.minor_faults()
        assert before is not None
        assert after is not None
        paid.append(after - before)
        world.idle()
    assert min(paid) <= 35  # of over 50 that such a call writes to
