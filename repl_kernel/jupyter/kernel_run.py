"""One execution on a kernel: the request sent, its messages taken in until it is over, in time or not.

execute_request --> kernel      busy, outputs, input_request, execute_reply, idle <-- kernel
   time limit, interrupt: at once --> 1 s later once more --> 2 s later the kernel is given up
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from repl_kernel.executor import OnInput
from repl_kernel.jupyter.connection import Channel
from repl_kernel.jupyter.kernel_link import KernelLink
from repl_kernel.jupyter.observation import ObservedExecution
from repl_kernel.jupyter.wire import Message

Reason = Literal["interrupted", "timeout"]
End = Literal["replied", "died", "given up"]

_AFTER_INTERRUPTS_S = (1.0, 2.0)
"""How long each interrupt is given to take effect: from when it was sent, since a machine may stall."""

_NOT_BEGUN_S = 2.0
"""How long an execution that waits for its turn in the kernel, and was interrupted, is waited for."""

_LAST_MESSAGES_S = 5.0
"""How long the rest is waited for once the reply is there, or the last output: it may have been dropped."""

_SURELY_RUNNING_NS = 500_000_000
"""After this code runs, though nothing was heard of it."""

_END_OF_INPUT = "\x04"
"""What ipykernel takes for the end of input."""


class KernelInterruption:
    """The interrupting of a kernel's executions, one after the other: asked for by any thread, done by the
    one that waits."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.interrupts = 0
        self._wake: Callable[[], None] | None = None
        self._lock = _thread.allocate_lock()
        self._began = self._due_at = 0.0

    def arm(self, wake: Callable[[], None]) -> None:
        """An execution starts; from now on it can be interrupted."""
        self.reason, self.interrupts = None, 0
        self._wake = wake

    def disarm(self) -> None:
        """It has ended."""
        with self._lock:
            self._wake = None

    def begin(self, reason: Reason) -> bool:
        """Ask for it, or for the next step at once where it was asked for; false once it is too late."""
        with self._lock:
            if self._wake is None:
                return False
            now = time.monotonic()
            if self.reason is None:
                self.reason, self._began = reason, now
            self._due_at = now  # asked again: whoever asks has waited long enough
            self._wake()
            return True

    def is_due(self) -> bool:
        """Whether the kernel is to be interrupted now; true once for each step."""
        now = time.monotonic()
        if self.reason is None or self.interrupts >= len(_AFTER_INTERRUPTS_S) or now < self._due_at:
            return False
        self._due_at = now + _AFTER_INTERRUPTS_S[self.interrupts]
        self.interrupts += 1
        return True

    @property
    def has_failed(self) -> bool:
        """Whether no interrupt has had any effect in its time."""
        return self.interrupts == len(_AFTER_INTERRUPTS_S) and time.monotonic() >= self._due_at

    def has_lasted(self, limit_s: float) -> bool:
        """Whether it was asked for so long ago."""
        return self.reason is not None and time.monotonic() >= self._began + limit_s


class KernelRun:
    """One execution; what was observed of it is in `observed`."""

    def __init__(
        self,
        link: KernelLink,
        observed: ObservedExecution,
        interruption: KernelInterruption,
        interrupt: Callable[[], None],
        take_other: Callable[[Message], None],
        *,
        is_alone: bool,
    ) -> None:
        """`interrupt` interrupts the kernel once; `take_other` gets what belongs to other executions.

        `is_alone` says that no others' code can run on the kernel.
        """
        self._link = link
        self.observed = observed
        self._interruption = interruption
        self._interrupt = interrupt
        self._take_other = take_other
        self.message_id = ""
        self.keyboard_interrupt: KeyboardInterrupt | None = None
        """The waiting caller's own, which has interrupted the execution."""
        self.has_begun = False
        """Whether the kernel has taken it up."""
        self.questions = 0
        """How often the code asked for input."""
        self.is_whole = False
        """Whether the kernel said that this is all there is."""
        self.has_replied = False
        """Whether the kernel said how it ended."""
        self.reply_status: object = None
        self.asks_to_end = False
        """Whether the code told the kernel to end."""
        self.elapsed_ns = 0
        self._is_alone = is_alone
        self._is_running = False
        self._started_ns = 0
        self._quiet_since = 0.0

    def run(self, code: str, time_limit_s: float | None, on_input: OnInput | None) -> End:
        """Have the code run; returns how that ended. Raises what the callbacks raise.

        The time limit counts from when the kernel begins: others' executions may come first.
        """
        while True:
            try:
                if not self.message_id:
                    self._send(code, may_ask=on_input is not None)
                return self._converse(time_limit_s, on_input)
            except KeyboardInterrupt as exc:
                self.keyboard_interrupt = exc
                self._interruption.begin("interrupted")

    def finish(self) -> End:
        """Go on with an execution in which a callback raised: interrupt it; what it still says goes to
        `observed`."""
        self._interruption.begin("interrupted")
        return self.run("", None, None)

    def _converse(self, time_limit_s: float | None, on_input: OnInput | None) -> End:
        while (end := self._is_over()) is None:
            left_s = float("inf")
            if self.has_begun or self._is_alone:
                if time_limit_s is not None and self._interruption.reason is None:
                    left_s = self._started_ns / 1e9 + time_limit_s - time.perf_counter()
                    if left_s <= 0:
                        self._interruption.begin("timeout")
                if self._can_interrupt() and self._interruption.is_due():
                    self._interrupt()
                    # ipykernel's handler doesn't wake the event loop that the code awaits on; this does.
                    self._link.send("shell", "kernel_info_request", {})
            self._take_next(left_s, on_input)
        if not self.has_replied:
            self._stop_clock()
        return end

    def _can_interrupt(self) -> bool:
        """Whether an interrupt reaches this execution: just before its code runs, the kernel may drop it."""
        return self._is_running or time.perf_counter_ns() - self._started_ns > _SURELY_RUNNING_NS

    def _send(self, code: str, *, may_ask: bool) -> None:
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": may_ask,
            "stop_on_error": False,  # what others have sent meanwhile is theirs
        }
        self._started_ns = time.perf_counter_ns()
        self._quiet_since = time.monotonic()
        self.message_id = self._link.send("shell", "execute_request", content)

    def _is_over(self) -> End | None:
        if self.has_replied and self.is_whole:
            return "replied"
        if self.has_replied or self.is_whole:
            if self._link.is_dead or time.monotonic() >= self._quiet_since + _LAST_MESSAGES_S:
                return "replied"
            return None
        if self._link.is_dead:
            return "died"
        waits = not self.has_begun and self._interruption.has_lasted(_NOT_BEGUN_S)
        if waits or self._interruption.has_failed:
            return "given up"
        return None

    def _take_next(self, left_s: float, on_input: OnInput | None) -> None:
        is_ending = self._interruption.reason is not None or self.has_replied or self.is_whole
        received = self._link.receive(min(0.1 if is_ending else 1.0, left_s))
        if received is None:
            return
        channel, message, header = received
        if message.parent_id != self.message_id:
            if channel == "iopub":
                self._take_other(message)
            return
        self._quiet_since = time.monotonic()
        self._take(channel, message, header, on_input)

    def _take(self, channel: Channel, message: Message, header: bytes, on_input: OnInput | None) -> None:
        if not self.has_begun:
            self.has_begun = True
            self._started_ns = time.perf_counter_ns()
        if channel == "iopub":
            if message.type != "status":
                self._is_running = True
                self.observed.take(message.type, message.content)
            elif is_idle(message, self.message_id):
                self.is_whole = True
        elif message.type == "execute_reply":
            self._stop_clock()
            self.has_replied = True
            self._take_reply(message.content)
        elif message.type == "input_request" and on_input is not None:
            self._answer(message, header, on_input)

    def _take_reply(self, content: Mapping[str, Any]) -> None:
        self.reply_status = content.get("status")
        self.observed.replied(content)
        payload = content.get("payload")
        for part in payload if isinstance(payload, list) else ():
            if not isinstance(part, dict):
                continue
            if part.get("source") == "page":  # what `name?` shows comes in no other way
                self.observed.take("display_data", {"data": part.get("data"), "metadata": {}})
            elif part.get("source") == "ask_exit":
                self.asks_to_end = part.get("keepkernel") is not True

    def _answer(self, question: Message, header: bytes, on_input: OnInput) -> None:
        content = question.content
        self.questions += 1
        try:
            value = on_input(str(content.get("prompt", "")), content.get("password") is True)
        except EOFError:
            value = _END_OF_INPUT
        self._link.send("stdin", "input_reply", {"value": value, "status": "ok"}, parent=header)

    def _stop_clock(self) -> None:
        self.elapsed_ns = time.perf_counter_ns() - self._started_ns


def is_idle(message: Message, parent_id: str) -> bool:
    """Whether it says that a request is done with, and that all its output has been sent."""
    return (
        message.type == "status"
        and message.parent_id == parent_id
        and message.content.get("execution_state") == "idle"
    )
