"""Output on its way to the front end, gathered for a moment: `print` writes a line in two pieces.

put --> pieces of one stream --20 ms, another stream, 64 KiB or flush--> publish
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from task_logger.record import OutputName

_GATHER_S = 0.020
"""With the wait for the worker's output, less than the 50 ms in which it is promised to show."""

_MAX_CHARACTERS = 64 << 10


class GatheredOutput:
    """Output of the running execution; `put` and `flush` are for one thread, beside ours that keeps time."""

    def __init__(self, publish: Callable[[OutputName, str], None]) -> None:
        """`publish` sends a piece, from either thread."""
        self._publish = publish
        self._changed = threading.Condition(threading.RLock())
        self._name: OutputName = "stdout"
        self._pieces: list[str] = []
        self._size = 0
        threading.Thread(target=self._keep_time, name="json-repl output", daemon=True).start()

    def put(self, name: OutputName, text: str) -> None:
        """Take in output."""
        with self._changed:
            if name != self._name:
                self.flush()
                self._name = name
            self._pieces.append(text)
            self._size += len(text)
            if self._size > _MAX_CHARACTERS:
                self.flush()
            elif len(self._pieces) == 1:
                self._changed.notify()

    def flush(self) -> None:
        """Send what there is: something else is to come behind it."""
        with self._changed:
            if self._pieces:
                text = "".join(self._pieces)
                self._pieces.clear()
                self._size = 0
                self._publish(self._name, text)

    def _keep_time(self) -> None:
        pause = threading.Event()  # never set: only to wait
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces)
            pause.wait(_GATHER_S)
            self.flush()
