"""A bound for code of the user's that a question of the front end runs: `__dir__`, `__getattr__`, `__repr__`.

with TimeBound(...) --in time--> nothing happens
        +-- too late: SIGINT to the main thread --> KeyboardInterrupt in the code --> swallowed here
                   again and again: libraries swallow one too, and go on with the next attribute
"""

from __future__ import annotations

import signal
import sys
import threading
from time import monotonic
from types import FrameType, TracebackType

_AGAIN_S = 0.02
"""Between two interrupts."""

_PATIENCE_S = 10.0
"""For a library that works on its own: its first look at a large package takes seconds."""

_ANALYSIS = frozenset(("jedi", "parso"))


class TimeBound:
    """Ends what runs in it after a time; what follows the `with` block then is reached without its result.

    Only the main thread can be interrupted: elsewhere there is no bound.
    """

    def __init__(self, limit_s: float, namespace: dict[str, object]) -> None:
        """`namespace` is that of the user's code, by which its functions are known."""
        self._limit_s = limit_s
        self._namespace = namespace
        self._turn = threading.Lock()
        self._has_ended = threading.Event()
        self._is_bounded = threading.current_thread() is threading.main_thread()
        self._has_interrupted = False

    def __enter__(self) -> None:
        if self._is_bounded:
            self._before = signal.signal(signal.SIGINT, signal.default_int_handler)
            threading.Thread(target=self._watch, name="json-repl-time-bound", daemon=True).start()

    def _watch(self) -> None:
        wait_s, patient_until_s = self._limit_s, monotonic() + _PATIENCE_S
        while not self._has_ended.wait(wait_s):
            wait_s = _AGAIN_S
            if monotonic() < patient_until_s and self._is_analysis():
                continue
            with self._turn:
                if not self._has_ended.is_set():
                    self._has_interrupted = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _is_analysis(self) -> bool:
        """Whether it is a library's analysis of code that runs, and nothing of the user's within it."""
        frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None:
            if frame.f_globals is self._namespace:
                return False
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _ANALYSIS:
                return True
            frame = frame.f_back
        return False

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not self._is_bounded:
            return False
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on none may come
        with self._turn:
            self._has_ended.set()
        signal.signal(signal.SIGINT, self._before)
        return self._has_interrupted and kind is KeyboardInterrupt
