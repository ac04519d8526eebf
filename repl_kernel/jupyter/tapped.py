"""The executions of a kernel as its published messages tell them; no I/O of its own.

execute_input --begin--> Recorder: written down
outputs --> ObservedExecution, by their parent's msg_id; of no open execution: late output of the next line
idle --> outcome --finish--> Recorder: one line; what is missing is its tag `gap`
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from repl_kernel.jupyter.gaps import GapCounter
from repl_kernel.jupyter.observation import OBSERVED, ObservedExecution, is_stderr, late_text
from repl_kernel.jupyter.recording import Recorder
from repl_kernel.jupyter.wire import Message
from repl_kernel.late import LateCollector
from task_logger.record import ExecutionRequest, NamespaceChanges, OutputName, Status

_KNOWN_EXECUTIONS = 10_000
"""Ended executions whose late output is still told apart."""

_MAX_CLOCK_ERROR_S = 86_400.0
"""A kernel whose clock is further off is not believed."""

_UNKNOWN_CHANGES = NamespaceChanges(diff_complete=False)


@dataclass(slots=True, eq=False)
class _Open:
    """An execution whose end was not seen yet."""

    request: ExecutionRequest
    observed: ObservedExecution
    subshell: str | None
    began: datetime | None
    began_ns: int
    gaps: list[str] = field(default_factory=list)


class TappedExecutions:
    """What runs on one kernel, as far as it is published."""

    def __init__(self, recorder: Recorder, tell: Callable[[str], None]) -> None:
        """Nothing was seen yet; `tell` gets, in sentences, what a person must know."""
        self._recorder = recorder
        self._tell = tell
        self._gaps = GapCounter()
        self._open: dict[str, _Open] = {}
        self._busy: OrderedDict[str, Message] = OrderedDict()
        self._seqs: OrderedDict[str, int] = OrderedDict()
        self._late = LateCollector(recorder.open_spool)
        self._last_count: object = None
        self._refused = 0
        self.recorded = 0
        """Executions that have their line."""
        self.unpublished = 0
        """Executions whose code the kernel did not publish: silent ones, and what ran when we came."""
        self.has_shut_down = False
        """The kernel said that it ends."""

    def refuse(self) -> None:
        """A message was none, or its signature was wrong: the next line says how many there were."""
        self._refused += 1

    def take(self, message: Message) -> None:
        """Take in the next message; raises what the recorder does."""
        if self._gaps.take(message):
            self.break_off("the kernel was restarted while it ran: its end was not seen")
        if message.type == "status":
            self._take_status(message)
        elif message.type == "execute_input":
            self._begin(message)
        elif message.type == "shutdown_reply":
            self.has_shut_down = message.content.get("restart") is not True
        elif message.type in OBSERVED:
            execution = self._open.get(message.parent_id)
            if execution is not None:
                execution.observed.take(message.type, message.content)
            else:
                self._take_late(message)

    def mark(self, gap: str) -> None:
        """Something may be missing of what runs now."""
        for execution in self._open.values():
            execution.gaps.append(gap)

    def mark_where_untold(self, gap: str) -> None:
        """The same for a kernel whose messages are not numbered, so that nothing tells what is missing."""
        if not self._gaps.can_tell:
            self.mark(gap)

    def break_off(self, gap: str) -> None:
        """No end will be seen of what is open: it gets its line, `unknown`."""
        for parent_id in list(self._open):
            self._finish(parent_id, gap=gap)

    def _take_status(self, message: Message) -> None:
        state = message.content.get("execution_state")
        if state == "starting":
            self.break_off("the kernel was restarted while it ran: its end was not seen")
        if message.parent_type != "execute_request":
            return
        if state == "busy":
            self._busy[message.parent_id] = message
            if len(self._busy) > _KNOWN_EXECUTIONS:
                self._busy.popitem(last=False)
            self._break_off_before(message)
        elif state == "idle":
            if message.parent_id in self._open:
                self._finish(message.parent_id, message)
            elif message.parent_id not in self._seqs:
                self.unpublished += 1
                self._tell(
                    "an execution has ended whose code the kernel did not publish: it was silent, began "
                    "before this, or its messages were dropped"
                )
            self._busy.pop(message.parent_id, None)

    def _begin(self, message: Message) -> None:
        if message.parent_id in self._seqs:
            return
        code = message.content.get("code")
        tags: dict[str, object] = {
            "msg_id": message.parent_id,
            "client_session_id": message.parent_session,
            "execution_count": message.content.get("execution_count"),
        }
        if message.subshell is not None:
            tags["subshell_id"] = message.subshell
        request = self._recorder.begin(code if isinstance(code, str) else "", tags)
        busy = self._busy.get(message.parent_id, message)
        self._open[message.parent_id] = _Open(
            request=request,
            observed=ObservedExecution(self._recorder.open_spool),
            subshell=message.subshell,
            began=_believed(busy.date),
            began_ns=time.monotonic_ns(),
        )
        count = message.content.get("execution_count")
        self._open[message.parent_id].observed.replied({"execution_count": count})
        if (unseen := self._unseen_before(count)) is not None:
            self._open[message.parent_id].gaps.append(unseen)
        self._seqs[message.parent_id] = request.seq
        if len(self._seqs) > _KNOWN_EXECUTIONS:
            self._seqs.popitem(last=False)

    def _finish(self, parent_id: str, end: Message | None = None, *, gap: str | None = None) -> None:
        """Have an execution's line written; `end` is its `idle`, `None` where that was not seen."""
        execution = self._open.pop(parent_id)
        if end is not None:
            self._finish_older(execution)
            if lost := self._gaps.lost():
                gap = f"messages that did not come: {lost} (output that was dropped, or questions for input)"
        if gap is not None:
            execution.gaps.append(gap)
        if unreadable := execution.observed.unreadable:
            execution.gaps.append(f"messages that made no sense, and are left out: {unreadable}")
        status: Status | None = None if end is not None else "unknown"
        outcome = execution.observed.outcome(
            route="jupyter",
            isolation="external",
            elapsed_ns=_elapsed_ns(execution, end),
            changes=_UNKNOWN_CHANGES,
            status=status,
            notices=execution.gaps,
        )
        artifacts = list(outcome.artifacts)
        outcome = replace(outcome, late_output=self._late.take(artifacts), artifacts=tuple(artifacts))
        news = self._recorder.finish(self._request(execution), outcome)
        self.recorded += 1
        for text in execution.gaps:
            self._tell(f"execution {execution.request.seq}: {text}")
        if news is not None:
            self._tell(news)

    def _break_off_before(self, busy: Message) -> None:
        """A shell runs one after the other: where messages are missing, what it ran before has ended."""
        older = [parent_id for parent_id, one in self._open.items() if one.subshell == busy.subshell]
        if not older or not self._gaps.can_tell:
            return
        for parent_id in older:
            self._gaps.forget(parent_id)
        if lost := self._gaps.lost(busy.parent_id):
            for parent_id in older:
                self._finish(parent_id, gap=f"its end was not seen, and {lost} messages did not come")

    def _finish_older(self, newer: _Open) -> None:
        """The same where nothing is numbered, and kernels may run several at once: a later one has ended."""
        for parent_id, older in list(self._open.items()):
            if older.subshell == newer.subshell and older.request.seq < newer.request.seq:
                self._finish(parent_id, gap="its end was not seen: the kernel has dropped messages")

    def _unseen_before(self, count: object) -> str | None:
        """What the kernel's own count of executions says of those that there is no trace of."""
        last, self._last_count = self._last_count, count
        if not isinstance(count, int) or not isinstance(last, int) or count <= last + 1:
            return None
        which = f"{last + 1}" if count == last + 2 else f"{last + 1} to {count - 1}"
        return f"executions of the kernel that were not seen before it: In[{which}]"

    def _request(self, execution: _Open) -> ExecutionRequest:
        """The request as the line has it: begun when the kernel says, tagged with what is missing."""
        request = execution.request
        tags: Mapping[str, object] = request.tags
        if execution.gaps:
            tags = {**tags, "gap": "; ".join(execution.gaps)}
        if self._refused:
            tags = {**tags, "refused_messages": self._refused}
            self._refused = 0
        if execution.began is None:
            return replace(request, tags=tags)
        began = execution.began.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        return replace(request, tags=tags, timestamp=began)

    def _take_late(self, message: Message) -> None:
        name: OutputName = "stderr" if is_stderr(message.type, message.content) else "stdout"
        if text := late_text(message.type, message.content):
            seq = self._seqs.get(message.parent_id)
            self._late.of(name, seq).feed(text.encode("utf-8", "surrogatepass"))

    @property
    def has_late_output(self) -> bool:
        """Whether there is output that no line has."""
        return self._late.has_some


def _believed(date: str) -> datetime | None:
    """The moment that a kernel wrote, in UTC; `None` where it can't be."""
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    error_s = abs((datetime.now(UTC) - moment).total_seconds())
    return moment.astimezone(UTC) if error_s < _MAX_CLOCK_ERROR_S else None


def _elapsed_ns(execution: _Open, end: Message | None) -> int:
    """From `busy` to `idle` by the kernel's clock: ours would count what waited in the sockets."""
    if end is None:
        return 0
    ended = _believed(end.date)
    if ended is not None and execution.began is not None and ended >= execution.began:
        return round((ended - execution.began).total_seconds() * 1e6) * 1000
    return time.monotonic_ns() - execution.began_ns
