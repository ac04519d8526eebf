"""That a process which took another one's memory over is a whole process, and what happens where none can."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repl_kernel.timeline_world import World

ROOT = Path(__file__).parents[2]


def _restored(world: World) -> World:
    """The world with a worker that is the copy of a copy: it took memory over twice."""
    world.keep("import ctypes, os, signal, threading; libc = ctypes.CDLL(None); x = [1]")
    assert world.run("os.abort()").status == "crashed"
    assert world.value("x") == [1]
    return world


def test_the_new_process_and_its_thread_know_their_number(world: World) -> None:
    own = "os.getpid(), threading.get_native_id()"
    assert set(_restored(world).value(own)) == {world.worker_pid}
    world.do(
        "address = ctypes.c_ulong()\n"
        "_ = libc.prctl(40, ctypes.byref(address), 0, 0, 0)  # PR_GET_TID_ADDRESS: where glibc has it too"
    )
    assert world.value("ctypes.c_int.from_address(address.value).value") == world.worker_pid


def test_the_new_process_knows_on_which_processor_it_runs(world: World) -> None:
    world = _restored(world)
    world.do(
        "allowed = os.sched_getaffinity(0)\n"
        "seen = []\n"
        "for cpu in sorted(allowed):\n"
        "    os.sched_setaffinity(0, {cpu})\n"
        "    seen.append(libc.sched_getcpu())\n"
        "os.sched_setaffinity(0, allowed)"
    )
    assert world.value("seen == sorted(allowed)") is True


def test_the_new_process_runs_threads_and_forks_and_hooks_of_forks(world: World) -> None:
    world.do(
        "import os; children = []; os.register_at_fork(after_in_child=lambda: children.append(os.getpid()))"
    )
    world = _restored(world)
    assert world.value("children[-1]") == world.worker_pid
    world.do("t = threading.Thread(target=x.append, args=(2,)); t.start(); t.join()")
    assert world.value("x") == [1, 2]
    world.do("pid = os.fork()\nif pid == 0: os._exit(int(children[-1] == os.getpid()))")
    assert world.value("os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])") == 1


def test_a_mutex_that_outlives_its_owner_is_still_found_by_the_kernel(world: World) -> None:
    # A robust one, in memory that all copies share, which the restored worker holds as it dies.
    world = _restored(world)
    world.keep(
        "import mmap\n"
        "memory = mmap.mmap(-1, 4096)\n"
        "mutex = ctypes.byref(ctypes.c_char.from_buffer(memory))\n"
        "kind = ctypes.create_string_buffer(64)\n"
        "libc.pthread_mutexattr_init(kind)\n"
        "libc.pthread_mutexattr_setrobust(kind, 1)\n"
        "libc.pthread_mutexattr_setpshared(kind, 1)\n"
        "libc.pthread_mutex_init(mutex, kind)"
    )
    assert world.run("libc.pthread_mutex_lock(mutex); os._exit(1)").status == "crashed"
    assert world.value("libc.pthread_mutex_trylock(mutex)") == errno.EOWNERDEAD


def test_user_code_waits_for_none_of_the_processes_that_a_copy_needs(world: World) -> None:
    world = _restored(world)
    world.idle()
    with pytest.raises(AssertionError, match="ChildProcessError"):
        world.value("os.wait()")


def test_where_memory_cannot_be_handed_over_a_second_fork_makes_the_copy() -> None:
    # Under this personality the machine calls itself another one, whose calls have other numbers.
    code = (
        "import os\n"
        "from tests.repl_kernel.timeline_world import World\n"
        "assert os.uname().machine != 'x86_64'\n"
        "world = World()\n"
        "world.keep('x = [1]')\n"
        "world.run('import os; os.abort()')\n"
        "print(world.value('x'), world.value('__import__(\"os\").uname().machine'))\n"
        "world.close()"
    )
    done = subprocess.run(
        ["setarch", "i686", sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "[1] i686\n", done.stderr
