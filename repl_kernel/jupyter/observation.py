"""One execution on a Jupyter kernel, told by its messages; pure, whoever receives them.

stream --> OutputCollector ----------------------------+
display_data, update_display_data, execute_result -----+-> DisplayCollector
error, execute_reply --> ExecutionError, Status -------+--> ExecutionOutcome
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repl_kernel.capture import OpenSpool, OutputCollector
from repl_kernel.code_result import CodeResult
from repl_kernel.displays import DISPLAY_KINDS, DisplayCollector
from repl_kernel.outcome import Gathered, assemble
from task_logger.record import (
    NO_CHANGES,
    ExecutionError,
    ExecutionOutcome,
    Isolation,
    NamespaceChanges,
    OutputName,
    Route,
    Status,
)

if TYPE_CHECKING:
    from repl_kernel.executor import OnDisplay, OnOutput

OBSERVED = frozenset(("stream", "error", *DISPLAY_KINDS))
"""The types of the messages that say something of an execution."""

_END_BYTES = 4096
"""As much of stderr is looked at for an error that was printed there."""

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
_CELL_LINE = re.compile(r"^ *Cell In\s?\[(?P<count>\d+)\], line (?P<line>\d+)", re.MULTILINE)


class ObservedExecution:
    """What the messages of one execution said so far; the caller lets one thread in at a time."""

    def __init__(
        self, open_spool: OpenSpool, on_output: OnOutput | None = None, on_display: OnDisplay | None = None
    ) -> None:
        """Nothing was said yet; `on_output` and `on_display` get output and displays as they come."""
        self._on_output = on_output
        self._on_display = on_display
        self._stdout = OutputCollector("stdout", open_spool)
        self._stderr = OutputCollector("stderr", open_spool)
        self._displays = DisplayCollector(open_spool)
        self._error: Mapping[str, Any] | None = None
        self._reply: Mapping[str, Any] | None = None
        self._stderr_end = b""
        self.unreadable = 0
        """Messages whose content is none: they are counted, and become a notice."""

    def take(self, msg_type: str, content: Mapping[str, Any]) -> None:
        """Take in a message of the execution; types that say nothing of it are ignored.

        Raises what the callbacks raise.
        """
        if msg_type == "stream":
            self._take_stream(content)
        elif msg_type == "error":
            self._keep_shown()
            self._error = content
        elif msg_type in DISPLAY_KINDS:
            self._take_display(msg_type, content)

    @property
    def has_error(self) -> bool:
        """Whether an error was shown or replied."""
        if self._reply is None or "status" not in self._reply:
            return self._error is not None
        return self._reply["status"] == "error" or (self._error is not None and self._reply["status"] != "ok")

    def replied(self, content: Mapping[str, Any]) -> None:
        """Take in the content of the `execute_reply`."""
        self._reply = content

    def _keep_shown(self) -> None:
        """An error that was shown, and isn't how the execution ended (by `%tb`, say), is output."""
        if self._error is not None:
            self.take_output("stderr", _traceback_of(self._error).encode("utf-8", "surrogatepass"))
            self._error = None

    def _take_stream(self, content: Mapping[str, Any]) -> None:
        text = content.get("text")
        if not isinstance(text, str):
            self.unreadable += 1
            return
        self.take_output(
            "stderr" if content.get("name") == "stderr" else "stdout", text.encode("utf-8", "surrogatepass")
        )

    def take_output(self, name: OutputName, data: bytes) -> None:
        """Take in output as bytes, where more is known of it than a message can say."""
        if name == "stderr":
            self._stderr_end = (self._stderr_end + data)[-_END_BYTES:]
        (self._stderr if name == "stderr" else self._stdout).feed(data, self._on_output)

    def _take_display(self, kind: str, content: Mapping[str, Any]) -> None:
        message: dict[str, Any] = {"kind": kind}
        if kind == "clear_output":
            message["wait"] = bool(content.get("wait"))
        else:
            message["data"] = content.get("data")
            message["metadata"] = content.get("metadata") or {}
            message["transient"] = content.get("transient") or {}
        try:
            self._displays.take(message)
        except (KeyError, TypeError, ValueError):
            self.unreadable += 1
            return
        if self._on_display is not None:
            self._on_display(message)

    def outcome(
        self,
        *,
        route: Route,
        isolation: Isolation,
        elapsed_ns: int,
        changes: NamespaceChanges = NO_CHANGES,
        status: Status | None = None,
        notices: Sequence[str] = (),
    ) -> ExecutionOutcome:
        """Put the outcome together; call it once, when nothing more is to come.

        `status` of `None` means as the messages say: `error` where one was shown or replied, `interrupted`
        where that is a KeyboardInterrupt, else `ok`.
        """
        if not self.has_error:
            self._keep_shown()
        error = self._described_error()
        gathered = Gathered(route, isolation, (self._stdout, self._stderr))
        gathered.displays = self._displays
        gathered.notices += notices
        if self.unreadable:
            gathered.notices.append(
                f"{self.unreadable} messages of the kernel made no sense and are left out"
            )
        if status is None:
            status = _status_of(error)
        if (
            error is not None
            and self._error is None
            and self._stderr_end.endswith(error.traceback.encode("utf-8", "surrogatepass"))
        ):
            # Such as IPython's UsageError, which it prints by itself: once is enough.
            silent = CodeResult(status, elapsed_ns, None, replace(error, traceback=""), changes)
            return replace(assemble(silent, gathered), error=error)
        return assemble(CodeResult(status, elapsed_ns, None, error, changes), gathered)

    def _described_error(self) -> ExecutionError | None:
        reply = self._reply if self._reply is not None else {}
        content = self._error
        if content is None:
            if reply.get("status") != "error":
                return None
            content = reply
        name, message = str(content.get("ename", "")), str(content.get("evalue", ""))
        text = _traceback_of(content, has_own=content is not reply)
        return ExecutionError(
            type=name,
            message=message,
            traceback=text,
            line=_line_of_cell(text, reply.get("execution_count")),
        )


def _traceback_of(content: Mapping[str, Any], *, has_own: bool = True) -> str:
    """An error's text, to the end of a line.

    ipykernel can reply with the traceback of an error before; without `has_own` it must end with this one.
    """
    lines = content.get("traceback")
    text = plain_text("\n".join(map(str, lines)) if isinstance(lines, (list, tuple)) else "")
    name, message = str(content.get("ename", "")), str(content.get("evalue", ""))
    if not has_own and not text.rstrip().rpartition("\n")[2].startswith(name):
        text = ""
    text = text or f"{name}: {message}"
    return text if text.endswith("\n") else text + "\n"


def late_text(msg_type: str, content: Mapping[str, Any]) -> str:
    """What can be kept of a message of no open execution: its text."""
    if msg_type == "stream":
        return str(content.get("text", ""))
    if msg_type == "error":
        return _traceback_of(content)
    if msg_type in DISPLAY_KINDS and isinstance(data := content.get("data"), Mapping):
        return str(data.get("text/plain", "")) + "\n"
    return ""


def is_stderr(msg_type: str, content: Mapping[str, Any]) -> bool:
    """Whether it is of stderr what can be kept of a message."""
    return msg_type == "error" or content.get("name") == "stderr"


def plain_text(text: str) -> str:
    """The text without the codes that color it on a terminal."""
    return _TERMINAL_CODES.sub("", text) if "\x1b" in text else text


def _status_of(error: ExecutionError | None) -> Status:
    if error is None:
        return "ok"
    return "interrupted" if error.type == "KeyboardInterrupt" else "error"


def _line_of_cell(traceback: str, execution_count: object) -> int | None:
    """The line of the cell that a traceback of IPython's names last, `None` where it names none.

    Other cells' lines are in it too; without its own count nothing tells them apart.
    """
    line = None
    for match in _CELL_LINE.finditer(traceback):
        if match["count"] == str(execution_count):
            line = int(match["line"])
    return line
