"""Ctrl-C and SIGTERM while the command replays: the first one ends it, the others find it ending.

Around a prompt Ctrl-C is for what runs there, and the others end the process.

signal --> KeyboardInterrupt in the main thread --> executors closed, folders removed --> report --> exit code
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class EndSignals:
    """Makes SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, once; use it in `with`, in a process of ours.

    `number` is the signal that came, `None` while none has.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> EndSignals:
        self._before = {
            each: signal.signal(each, self._on_signal)
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(self, *raised: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @property
    def exit_code(self) -> int:
        """What a shell tells of a program that such a signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            raise KeyboardInterrupt


@contextmanager
def closed_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end the process once all that is open is closed, in a process of ours."""
    before = {each: signal.signal(each, _leave) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
