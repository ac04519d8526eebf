"""Forks that leave no trace in the process that makes them: no child, no signal, no renewed dice.

process --fork--> intermediate --hands its memory over--> orphan, whose parent is the keeper
   ^-- reaps ----------+ ends at once: the user's `os.wait()` sees neither of the two

Where memory can't be handed over (see `handover`), a second fork does it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repl_kernel.handover import hand_over_memory
from repl_kernel.linux import set_parent_death_signal, set_process_name

_YIELDS = 20
_NAP_S = 0.0002
"""Between looks whether the intermediate has ended, once it isn't quick about it."""


def fork_orphan(reaper_pid: int, name: str) -> bool:
    """Fork; returns whether this is the new process: a child of `reaper_pid`, that dies with it.

    Raises OSError where the system refuses. What fails in the intermediate can stay untold, where it was
    killed or the user's code ignores SIGCHLD: then the orphan is missing.
    """
    dice = _random_state()
    with _sigchld_swallowed():
        pid = os.fork()
        if pid:
            _reap(pid)
            return False
        try:  # neither of the two may ever go on as if it were the process that forks
            intermediate_pid = os.getpid()
            set_process_name(name)
            if not hand_over_memory():
                _fork_and_end()
            _settle_below(reaper_pid, intermediate_pid)
            _restore_random_state(dice)
        except OSError as exc:
            os._exit(exc.errno or 1)
        except BaseException:  # noqa: BLE001 - executed code can have replaced all that is called here
            os._exit(1)
        return True


def _fork_and_end() -> None:
    """Fork; returns in the new process alone. Raises OSError."""
    if os.fork():
        os._exit(0)


def _reap(pid: int) -> None:
    """Wait for the intermediate's end; the one that has its memory kills it."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return  # the user's code has SIGCHLD ignored: the kernel reaped it
    code = os.waitstatus_to_exitcode(status)
    if code > 0:
        raise OSError(code, os.strerror(code))
    if code not in (0, -signal.SIGKILL):
        raise OSError(0, f"killed by signal {-code}")


def _settle_below(reaper_pid: int, intermediate_pid: int) -> None:
    looks = 0
    while os.getppid() == intermediate_pid:
        looks += 1
        if looks < _YIELDS:
            os.sched_yield()
        else:
            time.sleep(_NAP_S)
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != reaper_pid:
        os._exit(70)


def _random_state() -> Any:
    """Of the `random` module, which renews itself in every forked child: a copy must not notice the fork."""
    module = sys.modules.get("random")
    try:
        return None if module is None else module.getstate()
    except Exception:  # noqa: BLE001 - the user's code may have put anything there
        return None


def _restore_random_state(state: Any) -> None:
    if state is not None:
        sys.modules["random"].setstate(state)


@contextmanager
def _sigchld_swallowed() -> Iterator[None]:
    """Keep the end of our intermediate from a handler that the user's code has set."""
    if not callable(signal.getsignal(signal.SIGCHLD)):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    was_pending = signal.SIGCHLD in signal.sigpending()
    try:
        yield
    finally:
        if not was_pending and signal.SIGCHLD in signal.sigpending():
            signal.sigtimedwait({signal.SIGCHLD}, 0)
            if _has_ended_child():
                signal.raise_signal(
                    signal.SIGCHLD
                )  # one of the user's ended meanwhile: the two had become one
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_ended_child() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
