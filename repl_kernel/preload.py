"""Imports libraries into a process that will be forked, and says why where that can't be done well."""

from __future__ import annotations

import _thread
import gc
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from repl_kernel.process_tree import kill_descendants
from repl_kernel.refusal import calm_native_threads, why_no_copy, why_not_trusted

_LOOK_EVERY_S = 0.2
"""How often an import is interrupted to see whether the session that waits for it is still there."""


def preload(names: Sequence[str], on_load: Callable[[str], None]) -> str | None:
    """Import modules by name; returns what is wrong, in words, `None` where all is well.

    `on_load` is told of each before it is imported.
    """
    sys.path.insert(0, "")  # as in a worker: what it could import from its folder can be preloaded from there
    try:
        for name in names:
            on_load(name)
            reason = _load(name)
            if reason is not None:
                return f"{name!r} can't be preloaded: {reason}"
    finally:
        sys.path.remove("")
    reason = _why_not_forked()
    if reason is not None:
        return f"{', '.join(names)} can't be preloaded: {reason}"
    gc.collect()
    gc.freeze()  # or the first collection of each fork would unshare all of this
    return None


def _load(name: str) -> str | None:
    open_before = _descriptors()
    try:
        importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001 -- whatever an import does, the session is told
        return f"{type(exc).__name__}: {exc}"
    if _thread._count() > 0:
        return f"{why_no_copy()}, which no fork would have"
    left_open = [what for fd, what in _descriptors().items() if open_before.get(fd) != what]
    if left_open:
        return f"it leaves {', '.join(left_open)} open, which all forks would share"
    return None


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the descriptor of the listing itself
    return found


def _why_not_forked() -> str | None:
    """The reason why forks of this process can't be trusted, found out by making one."""
    calm_native_threads()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    reason = why_not_trusted()
    os.waitpid(pid, 0)
    return reason


@contextmanager
def ending_with(session_fd: int, control_fd: int) -> Iterator[None]:
    """End this process as soon as its session does, or closes the control socket, even amid an import."""
    poll = select.poll()
    poll.register(session_fd, select.POLLIN)
    poll.register(control_fd, 0)  # only its end

    def look(_number: int, _frame: object) -> None:
        if poll.poll(0):
            kill_descendants(os.getpid())
            os._exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY_S, _LOOK_EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
