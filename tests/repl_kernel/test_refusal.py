"""When a worker is not copied, and that what looks dangerous but isn't doesn't stand in the way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from repl_kernel.errors import SnapshotRefused
from tests.repl_kernel.timeline_world import World


def test_a_running_thread_is_named(world: World) -> None:
    world.do("import threading; e = threading.Event(); t = threading.Thread(target=e.wait, name='my thread')")
    world.do("t.start()")
    with pytest.raises(SnapshotRefused, match="a thread is running: my thread"):
        world.executor.snapshot()
    outcome = world.run("1")
    assert outcome.snapshot is None
    world.do("e.set(); t.join()")
    assert world.executor.snapshot() == world.seq


def test_a_native_thread_that_runs_through_a_fork_stands_in_the_way(world: World) -> None:
    world.do(
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "thread = ctypes.c_ulong()\n"
        "_ = libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)"
    )
    with pytest.raises(SnapshotRefused, match="native threads are running"):
        world.executor.snapshot()
    assert world.value("1 + 1") == 2


def test_cuda_that_is_initialised_stands_in_the_way(world: World) -> None:
    world.do(
        "import sys, types\n"
        "cuda = types.SimpleNamespace(is_initialized=lambda: True)\n"
        "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)"
    )
    with pytest.raises(SnapshotRefused, match="CUDA"):
        world.executor.snapshot()


def test_products_of_matrices_are_right_before_and_after(world: World) -> None:
    world.keep("import numpy; a = numpy.arange(250_000.0).reshape(500, 500); product = a @ a")
    for _ in range(3):
        assert world.run("import os; os._exit(1)").status == "crashed"
        assert world.value("bool((a @ a == product).all())") is True
        world.idle()


def test_numpys_random_numbers_go_on_in_a_restored_worker(world: World) -> None:
    world.keep("import numpy; numpy.random.seed(1); g = numpy.random.default_rng(1)")
    first = world.value("float(numpy.random.rand()), float(g.random())")
    world.executor.rewind(1)
    assert world.value("float(numpy.random.rand()), float(g.random())") == first


_OPENMP = """
#include <omp.h>
int threads(void) {
    int most = 0;
    #pragma omp parallel num_threads(4)
    {
        #pragma omp critical
        { int n = omp_get_num_threads(); if (n > most) most = n; }
    }
    return most;
}
"""


def test_openmp_works_before_and_after(world: World, tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, to make a library that uses OpenMP")
    (tmp_path / "threads.c").write_text(_OPENMP, encoding="utf-8")
    command = [compiler, "-fopenmp", "-shared", "-fPIC", "-o", "threads.so", "threads.c"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    world.keep(f"import ctypes; threads = ctypes.CDLL('{tmp_path}/threads.so').threads; _ = threads()")
    for _ in range(3):
        assert world.value("threads()") == 4
        world.idle()
        assert world.run("import os; os._exit(1)").status == "crashed"
        outcome = world.run("threads()", time_limit_s=10)
        assert outcome.result == {"text/plain": "4"}
        world.idle()
