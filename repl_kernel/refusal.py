"""Why a process must not be copied: what a fork would leave behind, or share with its original.

A fork takes along only the thread that calls it. Locks that other threads hold stay locked for ever in the
copy, and what they were computing never arrives.
"""

from __future__ import annotations

import _thread
import os
import sys

THREAD_END_S = 1.0
"""How long a thread that only waits for its end may take to end, on a busy machine."""


def why_no_copy() -> str | None:
    """The reason, in words, why this process can't be copied now; `None` where nothing stands against it."""
    if _thread._count() > 0:
        return f"a thread is running: {', '.join(_thread_names())}"
    if _uses_cuda():
        return "CUDA is initialised, and does not survive a fork"
    return None


def why_not_trusted() -> str | None:
    """The reason, right after a fork, why the copy can't be trusted: native threads that ran through it.

    Libraries that know about forks (OpenBLAS) stop their threads before one, and start them when they next
    need them.
    """
    names = [_task_name(task) for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    return f"native threads are running: {', '.join(sorted(names))}" if names else None


def calm_native_threads() -> None:
    """Have libgomp, which doesn't stop its threads before a fork, stop them."""
    if len(os.listdir("/proc/self/task")) == 1:
        return
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    if paths:
        import ctypes

        for path in paths:
            ctypes.CDLL(path).omp_pause_resource_all(2)  # 2: omp_pause_hard


def end_idle_threads() -> None:
    """End the thread in which tqdm looks after its bars: from the first one on it would forbid every copy.

    The next bar starts it anew. One that is still open misses its hint to show itself more often.
    """
    monitor = getattr(sys.modules.get("tqdm._monitor"), "TMonitor", None)
    if monitor is None:
        return
    for thread in sys.modules["threading"].enumerate():
        if type(thread) is monitor:
            thread.was_killed.set()
            thread.join(THREAD_END_S)


def _thread_names() -> list[str]:
    threading = sys.modules.get("threading")
    if threading is None:
        return ["unnamed"]
    main = threading.main_thread()
    return [thread.name for thread in threading.enumerate() if thread is not main] or ["unnamed"]


def _task_name(task: str) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return task


def _uses_cuda() -> bool:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return bool(cuda is not None and cuda.is_initialized())
