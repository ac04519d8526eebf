"""Interrupts and time limits of executions in this process.

host's process:  an exception is set for the executing thread; it rises at that thread's next bytecode
our process:     a signal to the main thread, whose handler raises: blocking calls end as well
                 (at the time limit sent by the kernel: code that keeps the GIL lets no thread of ours run)
"""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType
from typing import Literal

from repl_kernel.linux import SignalTimer
from repl_kernel.run_code import InterruptGate

Reason = Literal["interrupted", "timeout"]

INTERRUPT_SIGNAL = signal.SIGRTMIN + 8
"""Not SIGINT: what the user's code does with that is its own affair."""

TIME_LIMIT_SIGNAL = signal.SIGRTMIN + 7

_AGAIN_S = 1.0
"""Code may swallow an interrupt; past its time limit it is interrupted again and again."""


class ThreadGate(InterruptGate):
    """Interrupts the executing thread of a process that belongs to somebody else."""

    __slots__ = ("_lock", "_thread")

    def __init__(self) -> None:
        super().__init__()
        self._lock = _thread.allocate_lock()
        self._thread: int | None = None

    def raise_in(self, thread: int) -> bool:
        """Have a KeyboardInterrupt rise in that thread; false where the user's code does not run."""
        with self._lock:
            if not self.is_open:
                return False
            self._thread = thread
            _set_async_exception(thread, KeyboardInterrupt)
            return True

    def start_timer(self, time_limit_s: float) -> bool:
        """Refuse: a signal would be the host's business."""
        del time_limit_s
        return False

    def stop_timer(self) -> bool:
        """See `start_timer`."""
        return False

    def close(self) -> None:
        """Take back an exception that has not risen yet: it would hit our own code."""
        with self._lock:
            self.is_open = False
            if self._thread is not None:
                thread, self._thread = self._thread, None
                _set_async_exception(thread, None)


class SignalGate(InterruptGate):
    """Interrupts the main thread of a process of ours; must be made there."""

    __slots__ = ("_timed_out", "_timer")

    def __init__(self) -> None:
        super().__init__()
        self._timed_out = False
        self._timer: SignalTimer | None = None
        signal.signal(INTERRUPT_SIGNAL, self._on_signal)
        signal.signal(TIME_LIMIT_SIGNAL, self._on_time_limit)

    def raise_in(self, thread: int) -> bool:
        """Have a KeyboardInterrupt rise in the main thread; false where the user's code does not run."""
        if not self.is_open:
            return False
        signal.pthread_kill(thread, INTERRUPT_SIGNAL)
        return True

    def start_timer(self, time_limit_s: float) -> bool:
        """Have a KeyboardInterrupt rise at the limit, then each second; false where there is no timer."""
        self._timed_out = False
        if self._timer is None:
            try:
                self._timer = SignalTimer(TIME_LIMIT_SIGNAL)
            except OSError:
                return False
        self._timer.set(time_limit_s, _AGAIN_S)
        return True

    def stop_timer(self) -> bool:
        """Stop it; returns whether the time limit was reached."""
        if self._timer is not None:
            self._timer.set(0, 0)
        return self._timed_out

    def _on_signal(self, _signal_number: int, _frame: FrameType | None) -> None:
        if self.is_open:
            raise KeyboardInterrupt

    def _on_time_limit(self, _signal_number: int, _frame: FrameType | None) -> None:
        if self.is_open:
            self._timed_out = True
            raise KeyboardInterrupt


class LocalInterruption:
    """The interrupting of executions in this process, one after the other."""

    def __init__(self, gate: ThreadGate | SignalGate) -> None:
        self.reason: Reason | None = None
        self._gate = gate
        self._thread: int | None = None
        self._over: threading.Event | None = None
        self._has_timer = False

    def arm(self, time_limit_s: float | None) -> None:
        """An execution starts in this thread; from now on it can be interrupted."""
        self.reason = None
        self._thread = _thread.get_ident()
        if time_limit_s is None:
            return
        self._has_timer = self._gate.start_timer(time_limit_s)
        if not self._has_timer:
            self._over = threading.Event()
            args = (self._over, time_limit_s)
            threading.Thread(target=self._watch, args=args, name="json-repl time limit", daemon=True).start()

    def disarm(self) -> None:
        """It has ended."""
        self._thread = None
        if self._has_timer:
            self._has_timer = False
            if self._gate.stop_timer() and self.reason is None:
                self.reason = "timeout"
        if self._over is not None:
            self._over.set()
            self._over = None

    def begin(self, reason: Reason) -> bool:
        """Interrupt the running execution, from any thread; false where none runs."""
        thread = self._thread
        if thread is None or not self._gate.raise_in(thread):
            return False
        self.reason = self.reason or reason
        return True

    def _watch(self, over: threading.Event, time_limit_s: float) -> None:
        wait_s = time_limit_s
        while not over.wait(wait_s):
            self.begin("timeout")
            wait_s = _AGAIN_S


def _set_async_exception(thread: int, exception: type[BaseException] | None) -> None:
    import ctypes

    value = ctypes.py_object(exception) if exception is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), value)
