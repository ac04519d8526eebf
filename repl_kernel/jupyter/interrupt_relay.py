"""Interrupts of a kernel process: passed on to the worker, by a thread of their own.

SIGINT  --handler--> queue --thread--> interrupt()     while code runs in the worker
        --handler--> KeyboardInterrupt                 while the main thread waits for the user's input
SIGTERM --handler--> queue --thread--> interrupt(), end()

A handler runs in the middle of whatever the main thread does, locks held: so it only queues.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_RETRY_S = 0.005
"""An interrupt may come just before the code runs; it is tried again until it does."""


class InterruptRelay:
    """Takes this process's SIGINT and SIGTERM; made and used by the main thread."""

    def __init__(self, interrupt: Callable[[], bool], end: Callable[[], object]) -> None:
        """`interrupt` interrupts what runs in the worker, false where nothing does; `end` ends the kernel."""
        self._interrupt = interrupt
        self._end = end
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._is_busy = False
        self._is_waiting = False

    def start(self) -> None:
        """Take the signals from now on."""
        threading.Thread(target=self._relay, name="json-repl interrupts", daemon=True).start()
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While code runs, or is about to."""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the main thread waits for input: SIGINT raises KeyboardInterrupt in it."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def _on_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        if self._is_waiting:
            self._is_waiting = False
            if signal_number != signal.SIGINT:
                self._signals.put(signal_number)
            raise KeyboardInterrupt
        self._signals.put(signal_number)

    def _relay(self) -> None:
        idle = threading.Event()  # never set: only to wait
        while True:
            signal_number = self._signals.get()
            while self._is_busy and not self._interrupt():
                idle.wait(_RETRY_S)
            if signal_number != signal.SIGINT:
                self._end()
