"""What a person, or a pipe, sees of a session that runs a file: output as it comes, results, progress.

Session -> on_output -> Terminal -> the descriptors that were 1 and 2
        -> outcome   -> Terminal -> result as a REPL shows it; what is left of a traceback; notices
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator, Mapping
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from json_repl.descriptors import StandardDescriptors

if TYPE_CHECKING:
    from task_logger.record import OutputName

PROGRESS_AFTER_S = 1.0
PROGRESS_EVERY_S = 0.25
PROGRESS_COLUMNS = 20

ANSWER_CHECK_MS = 50

KEPT_CHARS = 1 << 20
"""Of what was streamed to stderr: enough to see whether a traceback was part of it."""


class Terminal:
    """Writes what a session says to where it belongs; `is_gone` once nobody reads stdout any more."""

    def __init__(self, descriptors: StandardDescriptors) -> None:
        self.is_gone = False
        self._fds = {"stdout": descriptors.output_fd, "stderr": descriptors.error_fd}
        self._input_fd = descriptors.input_fd
        self._input_rest = b""
        self._stops_asking = False
        self._streamed_stderr = ""
        self._progress = Progress(descriptors.error_fd)

    def begin(self, done: int, total: int, title: str) -> None:
        """The next of so many cells starts."""
        self._streamed_stderr = ""
        self._progress.show(done, total, title)

    def end(self) -> None:
        """No cell will follow: take the progress bar away."""
        self._progress.close()

    def on_output(self, name: OutputName, text: str) -> None:
        """Pass output on at once."""
        if name == "stderr":
            self._streamed_stderr = (self._streamed_stderr + text)[-KEPT_CHARS:]
        self._write(name, text)

    def on_display(self, message: Mapping[str, Any]) -> None:
        """Show what is displayed as text; the value of a last expression is shown with the outcome."""
        text = message["data"].get("text/plain") if message["kind"].endswith("display_data") else None
        if isinstance(text, str):
            self._write("stdout", text + "\n")

    def on_input(self, prompt: str, is_password: bool) -> str:
        """Ask whoever sits at standard input for a line; raises `EOFError` at its end."""
        if is_password and os.isatty(self._input_fd):
            import getpass

            return getpass.getpass(prompt)
        self._write("stdout", prompt)
        waiter = select.poll()
        waiter.register(self._input_fd, select.POLLIN)
        while b"\n" not in self._input_rest:
            if self._stops_asking:
                raise EOFError("interrupted")
            if not waiter.poll(ANSWER_CHECK_MS):
                continue
            piece = os.read(self._input_fd, 4096)
            if not piece:
                break
            self._input_rest += piece
        line, end, self._input_rest = self._input_rest.partition(b"\n")
        if not line and not end:
            raise EOFError("standard input has no more lines")
        return line.decode("utf-8", "surrogateescape")

    def stop_asking(self) -> None:
        """Give up waiting for a line, now and from now on."""
        self._stops_asking = True

    def show(self, outcome: Mapping[str, Any]) -> None:
        """Show what streaming didn't: the result, the end of a traceback, notices."""
        result, error = outcome["result"], outcome["error"]
        if result and "text/plain" in result:
            self._write("stdout", result["text/plain"] + "\n")
        if error and error["traceback"].rstrip() not in self._streamed_stderr:
            self._write("stderr", error["traceback"].rstrip("\n") + "\n")
        for notice in outcome["notices"]:
            self.say(notice)

    def say(self, sentence: str) -> None:
        """Tell the person at stderr something of our own, in one line."""
        self._write("stderr", "json-repl: " + " ".join(sentence.split()) + "\n")

    def write_line(self, line: bytes) -> None:
        """Write a line for programs to stdout."""
        self._write_bytes("stdout", line)

    def _write(self, name: OutputName, text: str) -> None:
        self._write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def _write_bytes(self, name: OutputName, data: bytes) -> None:
        with self._progress.away(ends_line=data.endswith(b"\n")):
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._fds[name], view) :]
            except BrokenPipeError:
                self.is_gone = self.is_gone or name == "stdout"


class Progress:
    """A bar in the last line of a terminal, from the second second on; nothing at all in a pipe."""

    def __init__(self, error_fd: int) -> None:
        self._fd = error_fd
        self._is_enabled = os.isatty(error_fd) and os.environ.get("TERM") != "dumb"
        self._lock = Lock()
        self._started = time.monotonic()
        self._text = ""
        self._is_shown = False
        self._at_line_start = True
        self._closed = Event()

    def show(self, done: int, total: int, title: str) -> None:
        """So many of all are done; the next has this title."""
        if not self._is_enabled or total < 2:
            return
        filled = PROGRESS_COLUMNS * done // total
        bar = "█" * filled + "░" * (PROGRESS_COLUMNS - filled)
        with self._lock:
            is_first = not self._text
            self._text = f"{bar} {done}/{total} {_printable(title)}"
            self._draw()
        if is_first:
            Thread(target=self._redraw, name="json-repl-progress", daemon=True).start()

    @contextlib.contextmanager
    def away(self, *, ends_line: bool) -> Iterator[None]:
        """While the context lasts the bar isn't there; `ends_line` says whether it may come back after it."""
        with self._lock:
            self._erase()
            yield
            self._at_line_start = ends_line

    def close(self) -> None:
        """Take it away for good."""
        self._closed.set()
        with self._lock:
            self._erase()
            self._text = ""

    def _redraw(self) -> None:
        while not self._closed.wait(PROGRESS_EVERY_S):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if self._text and self._at_line_start and time.monotonic() - self._started >= PROGRESS_AFTER_S:
            columns = os.get_terminal_size(self._fd).columns or 80  # 0: the terminal doesn't know
            os.write(self._fd, f"\r{self._text[: columns - 1]}\x1b[K".encode())
            self._is_shown = True

    def _erase(self) -> None:
        if self._is_shown:
            os.write(self._fd, b"\r\x1b[K")
            self._is_shown = False


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
