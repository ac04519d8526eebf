"""One request and its reply: passes output on, answers input, stops what runs too long.

request --> worker;  then, until the reply or the worker's death:
    a reply within 2 ms          one blocking read, nothing else
    else wait for what is first  a message | output | death | the time limit | the next step of an
    interruption
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from repl_kernel.capture import OpenSpool, OutputCollector
from repl_kernel.errors import ProtocolViolation
from repl_kernel.executor import OnDisplay, OnInput, OnOutput
from repl_kernel.interruption import Interruption
from repl_kernel.late import LateCollector
from repl_kernel.worker_link import WorkerLink

if TYPE_CHECKING:
    from repl_kernel.displays import DisplayCollector
    from repl_kernel.limit_watch import LimitWatch

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")

_LONGEST_WAIT_S = 0.1
"""An interruption begun in another thread goes on no later than this."""

_GATHERED_OUTPUT_BYTES = 1 << 20
"""From here on the worker gathers output into blocks, and must be asked to write out a rest."""

_WATCH_EVERY_S = 0.1
"""How often the memory of a running execution is looked at."""
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What a message raises that lacks a field, or has one of another type: executed code may have written it."""

_LAST_READS = 4
"""A full pipe is empty after one reading; what comes behind that is another program's."""

_FLUSH_WAIT_S = 0.025
"""Half of the 50 ms within which output is passed on."""


class WorkerDied(Exception):
    """The worker has ended, or no longer speaks the protocol."""


class _RaisedByCaller(Exception):
    """A callback raised `error`: never to be taken for the worker's end, whatever it is."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _guarded(callback: Callable[_Given, _Answer]) -> Callable[_Given, _Answer]:
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
        try:
            return callback(*args, **kwargs)
        except Exception as exc:
            raise _RaisedByCaller(exc) from exc

    return call


class Exchange:
    """The requests to an executor's workers, one after the other."""

    def __init__(
        self,
        interruption: Interruption,
        streams: tuple[OutputCollector, OutputCollector],
        late: LateCollector,
        open_spool: OpenSpool,
    ) -> None:
        self._interruption = interruption
        self._streams = streams
        self._late = late
        self._open_spool = open_spool
        self.displays: DisplayCollector | None = None
        """What was displayed, until an outcome takes it."""
        self.watch: Callable[[], None] | None = None
        """Called now and then while code runs."""
        self.meanwhile: Callable[[], None] | None = None
        """Called once, as soon as the next request is sent: while the worker wakes up and works."""
        self._watch_at_s = 0.0
        self.limits: LimitWatch | None = None
        """Looks at what the code uses, `None` where nothing limits it."""

    def run(
        self,
        link: WorkerLink,
        message: dict[str, Any],
        time_limit_s: float | None = None,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        *,
        on_display: OnDisplay | None = None,
    ) -> dict[str, Any]:
        """Send a request and return its reply; raises `WorkerDied`, and what the callbacks raise.

        A KeyboardInterrupt of the waiting caller interrupts the execution, and is left in
        `keyboard_interrupt` for the caller to raise; texts that came ahead of the reply are in `parts`,
        what was displayed in `displays`.
        """
        self._link = link
        self._on_output = on_output if on_output is None else _guarded(on_output)
        self._on_input = on_input if on_input is None else _guarded(on_input)
        self._on_display = on_display if on_display is None else _guarded(on_display)
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._received_bytes = 0
        self._flush_at_s: float | None = None
        self.parts: dict[str, OutputCollector] | None = None
        self.keyboard_interrupt: KeyboardInterrupt | None = None
        if self.limits is not None:
            self.limits.begin(link)
            self._watch_at_s = 0.0  # the first look tells what was used before
        is_sent = False
        reply: dict[str, Any] | None = None
        while True:
            try:
                if not is_sent:
                    is_sent = True
                    link.send(message)
                    if self.meanwhile is not None:
                        meanwhile, self.meanwhile = self.meanwhile, None
                        meanwhile()
                    reply = link.receive_soon()
                while reply is None or not self._is_reply(reply, message["id"]):
                    if reply is not None:  # executed code may send such messages for ever
                        self._keep_time(frozenset())
                    reply = link.next_message() or self._wait()
                if link.poll(0):
                    self._drain(link.wait(0))
            except KeyboardInterrupt as exc:
                self.keyboard_interrupt = exc
                self._interruption.begin("interrupted")
            except _RaisedByCaller as exc:
                raise exc.error from None
            except (EOFError, OSError, ProtocolViolation, *_MALFORMED) as exc:
                self._drain_the_dead()
                raise WorkerDied(str(exc)) from exc
            else:
                return reply

    def _is_reply(self, message: dict[str, Any], message_id: int) -> bool:
        """Whether this ends the exchange; deals with the messages that come before it."""
        if message.get("id") == message_id and "status" in message:
            for late in message["late"]:
                self._take_late(late)
            return True
        return self._take_ahead(message, message_id)

    def _take_ahead(self, message: dict[str, Any], message_id: int) -> bool:
        """Deal with a message that is no reply of an execution; true for the reply to another request."""
        if "late" in message and "id" not in message:
            self._take_late(message["late"])
            return False
        if "display" in message and "id" not in message:  # maybe a thread's, of an earlier execution
            self._show(message["display"], message["more"], message["number"])
            return False
        if message.get("id") != message_id:
            raise ProtocolViolation("the worker's connection carried a reply that nobody asked for")
        if "part" in message:
            self._part(message["part"]).take(base64.b64decode(message["base64"]))
            return False
        if "input" in message:
            self._answer(message_id, message["input"])
            return False
        return True

    def _take_late(self, late: dict[str, Any]) -> None:
        self._late.of(late["name"], late["seq"]).take(late["text"].encode())

    def _part(self, name: str) -> OutputCollector:
        if self.parts is None:
            self.parts = {}
        if name not in self.parts:
            meter = self.limits.meter if self.limits is not None and name == "result" else None
            self.parts[name] = OutputCollector(name.partition(".")[0], self._open_spool, meter)
        return self.parts[name]

    def take_displays(self) -> DisplayCollector | None:
        """Hand over what was displayed since the last time; `None` where nothing was."""
        displays, self.displays = self.displays, None
        return displays

    def _show(self, display: str | dict[str, Any], more: bool, number: int | None) -> None:
        """Take what is displayed: a message, or (where it is long) a piece of its JSON text.

        The worker waits for the answer to a `number`: what it writes next is not to be seen before.
        """
        if self.displays is None:
            from repl_kernel.displays import DisplayCollector

            self.displays = DisplayCollector(self._open_spool)
        message = self.displays.take(display, more=more)
        if message is None:
            return
        if self._on_display is not None:
            self._drain(self._link.wait(0))  # what was written before comes before
            self._on_display(message)
        if number is not None:
            self._link.send({"op": "shown", "id": number})

    def _answer(self, message_id: int, question: dict[str, Any]) -> None:
        self._drain(self._link.wait(0))
        answer: dict[str, Any] = {"op": "input_reply", "id": message_id}
        if self._on_input is not None:
            try:
                answer |= _line_fields(self._on_input(question["prompt"], question["password"]))
            except KeyboardInterrupt as exc:  # here, so that the question isn't asked again
                self.keyboard_interrupt = exc
                self._interruption.begin("interrupted")
                return
            except _RaisedByCaller as exc:
                if not isinstance(exc.error, EOFError):
                    raise
                pass  # no text: the worker raises EOFError in the code
        self._link.send(answer)

    def _wait(self) -> dict[str, Any] | None:
        """Wait for what comes first and deal with it; returns a message where that was one.

        A message comes first: where it is the reply, and this process was slow to see it, nothing is to be
        interrupted any more.
        """
        link = self._link
        ready = link.wait(self._timeout_s() * 1000)
        if ready and self._drain(ready):
            ready = link.wait(0)  # passing it on may have taken its time
        if link.has_message(ready):
            message = link.receive_soon()
            if message is not None:
                return message
        elif link.is_dead(ready):
            raise EOFError
        self._keep_time(ready)
        return None

    def _keep_time(self, ready: Set[int]) -> None:
        """Do what is due: an interruption, a look at what the code uses, the flushing of what is gathered."""
        link = self._link
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            self._interruption.begin("timeout")
        self._interruption.go_on()
        is_time = time.monotonic() >= self._watch_at_s
        if self.watch is not None and (is_time or link.has_announced(ready)):
            self._watch_at_s = time.monotonic() + _WATCH_EVERY_S
            self.watch()
        if is_time and self.limits is not None:
            self._watch_at_s = time.monotonic() + _WATCH_EVERY_S
            if self.limits.look(link):
                self._interruption.begin("limit")
        if self._flush_at_s is not None and time.monotonic() >= self._flush_at_s:
            self._flush_at_s = None
            link.ask_to_flush()

    def _timeout_s(self) -> float:
        if self.limits is not None and not self._watch_at_s:
            return 0.0
        timeout_s = _LONGEST_WAIT_S
        for end_s in (self._deadline, self._flush_at_s):
            if end_s is not None:
                timeout_s = min(timeout_s, max(0.0, end_s - time.monotonic()))
        return timeout_s

    def _drain(self, ready: Set[int]) -> int:
        size = self._link.drain(ready, self._streams, self._on_output)
        self._received_bytes += size
        if size and self.limits is not None and self.limits.is_over():
            self._interruption.begin("limit")
        gathers = self._received_bytes > _GATHERED_OUTPUT_BYTES
        if size and gathers and self._flush_at_s is None and self._on_output is not None:
            # A worker that finds nothing to write out then stops gathering: nothing can wait unseen.
            self._flush_at_s = time.monotonic() + _FLUSH_WAIT_S
        return size

    def _drain_the_dead(self) -> None:
        """Take what is left in the pipes; a program that still writes to them is not waited for."""
        self._link.wait_for_death(limit_s=0.2)
        for _ in range(_LAST_READS):
            if self._drain(self._link.wait(0)) < 1 << 16:
                break


def _line_fields(line: object) -> dict[str, str]:
    """A line for `input()` as a message holds it; JSON has no half characters."""
    if not isinstance(line, str):
        raise _RaisedByCaller(TypeError(f"on_input must return a text, not a {type(line).__name__}"))
    try:
        line.encode()
    except UnicodeEncodeError:
        return {"text_hex": line.encode("utf-8", "surrogatepass").hex()}
    return {"text": line}
