"""ipykernel's kernel, with every execution recorded: the kernel that people select.

execute_request --> RecordedKernel.execute_request --> Recording.begin (written down)
    -> ipykernel: do_execute -> RecordedShell.run_code (time, code objects) -> the user's code
    -> what it shows -> RecordedSession.send -> Recording.take
    -> execute_reply -> RecordedSession.send -> Recording.finish (one line), and only then to the front end

The kernel itself is ipykernel's: comms, debugger, subshells, completion and GUI loops are untouched.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType
from typing import Any, Protocol

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import DottedObjectName, Instance, Type

from repl_kernel.errors import RequestRefused
from repl_kernel.failure import is_interrupt
from repl_kernel.jupyter.answered import answer_failures
from repl_kernel.jupyter.child_pipe import move_child_pipe
from repl_kernel.jupyter.execute_request import malformation
from repl_kernel.jupyter.recorded_session import RecordedSession
from repl_kernel.jupyter.recorded_streams import ORIGINS, RecordedOutStream
from repl_kernel.jupyter.recording import (
    CodeWatch,
    OpenExecution,
    Recorder,
    Recording,
    start_clock,
    stop_clock,
)
from repl_kernel.jupyter.time_bound import TimeBound

_SHELL_NAMES = ("In", "Out", "exit", "quit", "get_ipython", "open")
"""What IPython puts into the namespace, again after `%reset`; it names the rest with underscores."""

_LOOKUP_LIMIT_S = 0.8
"""How long completion and inspection may take: the front end is promised an answer within a second."""

_CONTROL_PATIENCE_S = 1.0
"""How long the end of the kernel waits for the control thread."""

_current: ContextVar[OpenExecution | None] = ContextVar("current", default=None)
"""The execution that this flow of control belongs to: subshells run beside each other."""


class RecordedShell(ZMQInteractiveShell):
    """IPython's shell, which tells what runs and how long."""

    recording: Recording
    """Set once there is one; without it no execution is current."""

    async def run_code(self, code_obj: CodeType, result: Any = None, *, async_: bool = False) -> bool:
        """Run a code object; see IPython's `InteractiveShell.run_code`."""
        execution = _current.get()
        if execution is None:
            return bool(await super().run_code(code_obj, result, async_=async_))
        if not execution.codes:
            self.recording.leave_out_imports(execution)
        with CodeWatch(execution, code_obj):
            failed = bool(await super().run_code(code_obj, result, async_=async_))
        error = getattr(result, "error_in_exec", None)
        if failed and error is not None and is_interrupt(error):
            execution.was_interrupted = True
        return failed

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """Show the exception that was raised; making its text is not the user's time."""
        execution = _current.get()
        if execution is None:
            super().showtraceback(*args, **kwargs)
            return
        was_running = stop_clock(execution)
        before = set(sys.modules)
        super().showtraceback(*args, **kwargs)
        execution.shell_imports |= set(sys.modules) - before
        if was_running:
            start_clock(execution)


class RecordedKernel(IPythonKernel):
    """ipykernel's kernel; once it has a recording, every execution is recorded."""

    shell_class = Type(RecordedShell)
    recording = Instance(Recording, allow_none=True)

    def begin_recording(self, recorder: Recorder) -> None:
        """From now on every execution is recorded."""
        shell: Any = self.shell
        self.recording = shell.recording = Recording(
            recorder, frozenset((*_SHELL_NAMES, *shell.user_ns_hidden))
        )
        ORIGINS.note(None)
        self._session.origin_of_thread = self._origin_of_thread
        self._session.tap = self
        answer_failures(self)

    def _origin_of_thread(self) -> str | None:
        """The ended cell that this thread is of, unless it works in the context of another."""
        publisher: Any = self.shell.display_pub if self.shell is not None else None
        try:
            publisher._parent_header.get()
        except LookupError:
            return ORIGINS.of_current()
        return None

    @property
    def _session(self) -> RecordedSession:
        assert isinstance(self.session, RecordedSession)  # RecordedKernelApp makes no other
        return self.session

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Handle an `execute_request`; one that can't be run is answered too."""
        recording = self.recording
        if (why := malformation(parent)) is not None:
            self._refuse(stream, ident, parent, "InvalidRequest", why)
            return
        if recording is None:
            await super().execute_request(stream, ident, parent)
            return
        shell: Any = self.shell
        msg_id = parent["header"]["msg_id"]
        self._allow_interrupts(False)
        if recording.is_idle:
            ORIGINS.note(None)
        try:
            execution = recording.begin(msg_id, parent["content"]["code"], self._tags(parent), shell.user_ns)
        except RequestRefused as exc:
            self._refuse(stream, ident, parent, "NotRecorded", str(exc))
            return
        token = _current.set(execution)
        try:
            await super().execute_request(stream, ident, parent)
        except KeyboardInterrupt:
            execution.was_interrupted = True
            raise
        except Exception as exc:  # of ipykernel's own handler: it has told nobody
            error = {"ename": type(exc).__name__, "evalue": str(exc), "traceback": []}
            self.take("error", error, msg_id, None)
            raise
        finally:
            _current.reset(token)
            self._finish(msg_id, None)  # nothing is left to do where there was a reply
            ORIGINS.note(msg_id)

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: Any = None,
        allow_stdin: bool = False,
        *,
        cell_meta: Any = None,
        cell_id: Any = None,
    ) -> Any:
        """Run a cell; only while it runs an interrupt has something to interrupt."""
        self._allow_interrupts(True)
        try:
            return await super().do_execute(
                code,
                silent,
                store_history,
                user_expressions,
                allow_stdin,
                cell_meta=cell_meta,
                cell_id=cell_id,
            )
        finally:
            self._allow_interrupts(False)
            for stream in (self._stdout, self._stderr):
                if isinstance(stream, RecordedOutStream):
                    stream.drain()

    def _time_bound(self) -> TimeBound:
        shell: Any = self.shell
        return TimeBound(_LOOKUP_LIMIT_S, shell.user_global_ns)

    def do_complete(self, code: str, cursor_pos: int) -> Any:
        """Complete; objects whose `__dir__` or `__getattr__` take too long are left out."""
        with self._time_bound():
            return super().do_complete(code, cursor_pos)
        return {
            "matches": [],
            "cursor_start": cursor_pos,
            "cursor_end": cursor_pos,
            "metadata": {},
            "status": "ok",
        }

    def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()) -> Any:
        """Inspect; an object that takes too long to describe counts as not found."""
        with self._time_bound():
            return super().do_inspect(code, cursor_pos, detail_level, omit_sections)
        return {"found": False, "data": {}, "metadata": {}, "status": "ok"}

    def _allow_interrupts(self, allowed: bool) -> None:
        # ipykernel's handler for the time of a message; it puts back what it found after that
        if self.recording is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler if allowed else signal.SIG_IGN)

    @contextmanager
    def _cancel_on_sigint(self, future: Any) -> Iterator[None]:
        with super()._cancel_on_sigint(future):
            cancel: Any = signal.getsignal(signal.SIGINT)
            execution = _current.get()

            def note_and_cancel(*args: Any) -> None:
                if execution is not None:
                    execution.was_interrupted = True
                cancel(*args)
                # A callback that is added in the loop's own thread doesn't wake the loop.
                loop: Any = self.io_loop
                loop.asyncio_loop.call_soon_threadsafe(_wake)

            signal.signal(signal.SIGINT, note_and_cancel)
            yield

    def take(
        self, msg_type: str, content: Mapping[str, Any], parent_id: str | None, origin: str | None
    ) -> None:
        """See `MessageTap`."""
        assert self.recording is not None
        try:
            self.recording.take(msg_type, content, parent_id, origin)
        except Exception:
            self.log.exception("json_repl: a message could not be recorded")

    def replied(self, content: Mapping[str, Any], parent_id: str | None) -> None:
        """See `MessageTap`: the line is written before the reply is sent."""
        if parent_id is not None:
            self._finish(parent_id, content)

    def _finish(self, msg_id: str, reply: Mapping[str, Any] | None) -> None:
        if self.recording is None or not self._session.is_owner():
            return  # a fork of the user's that ran off the end of the code: the line is its parent's
        try:
            news = self.recording.finish(msg_id, reply)
        except Exception:
            self.log.exception("json_repl: an execution could not be recorded")
            return
        if news is not None:
            self.log.warning("json_repl: %s", news)
            self._session.send_unseen(
                self.iopub_socket,
                "stream",
                {"name": "stderr", "text": f"json_repl: {news}\n"},
                self.get_parent("shell"),
                ident=b"stream.stderr",
            )

    def _tags(self, parent: Mapping[str, Any]) -> dict[str, object]:
        header, content, metadata = parent["header"], parent["content"], parent["metadata"]
        tags: dict[str, object] = {"msg_id": header["msg_id"], "client_session_id": header.get("session")}
        silent = content.get("silent", False)
        if silent:
            tags["silent"] = True
        if not silent and not content.get("store_history", True):
            tags["store_history"] = False
        if content.get("user_expressions"):
            tags["user_expressions"] = content["user_expressions"]
        if metadata.get("cellId") is not None:
            tags["cell_id"] = metadata["cellId"]
        if header.get("subshell_id") is not None:
            tags["subshell_id"] = header["subshell_id"]
        if refused := self._session.take_refused():
            tags["refused_messages"] = refused
        return tags

    def _refuse(self, stream: Any, ident: Any, parent: Any, name: str, why: str) -> None:
        """Answer a request that is not run, and show why."""
        error = {"ename": name, "evalue": why, "traceback": [f"{name}: {why}"]}
        self._session.send_unseen(self.iopub_socket, "error", error, parent, ident=self._topic("error"))
        content = {
            "status": "error",
            **error,
            "execution_count": self.execution_count,
            "user_expressions": {},
            "payload": [],
        }
        metadata = self.finish_metadata(parent, self.init_metadata(parent), content)
        self._session.send_unseen(stream, "execute_reply", content, parent, metadata=metadata, ident=ident)
        request = parent["content"]
        if isinstance(request, dict) and not request.get("silent") and request.get("stop_on_error", True):
            self._abort_queues(parent["header"].get("subshell_id"))


def _wake() -> None:
    """Nothing but a turn of the event loop."""


class RecordedKernelApp(IPKernelApp):
    """ipykernel's application around a recorded kernel."""

    name = "json-repl-kernel"
    kernel_class = Type(  # type: ignore[assignment]  # that of the parent, with another default
        RecordedKernel, klass="ipykernel.kernelbase.Kernel"
    ).tag(config=True)
    outstream_class = DottedObjectName(
        "repl_kernel.jupyter.recorded_streams.RecordedOutStream", allow_none=True
    ).tag(config=True)
    classes = [*IPKernelApp.classes, RecordedSession]  # noqa: RUF012  # a trait of the parent
    open_recorder: Callable[[], ClosingRecorder] | None = None
    """Makes what writes the lines down, once the kernel is about to start; `None` records nothing."""

    def _session_default(self) -> RecordedSession:
        return RecordedSession(parent=self)

    def init_iopub(self, context: Any) -> None:
        """See `IPKernelApp`; what forked children print comes through a pipe of its own, past the session."""
        super().init_iopub(context)
        if self.transport == "ipc":
            move_child_pipe(self.iopub_thread, f"{self.ip}-children")
        pipe = getattr(self.iopub_thread, "_pipe_in", None)
        if pipe is not None:
            self.iopub_thread.io_loop.add_callback(pipe.on_recv, self._take_from_child)

    def _take_from_child(self, frames: list[bytes]) -> None:
        self.iopub_thread._handle_pipe_msg(frames)
        if frames[0] == self.iopub_thread._pipe_uuid:
            self.session.show_serialized(frames[1:])

    def init_kernel(self) -> None:
        """See `IPKernelApp`; IPython writes no history file of its own, whatever its configuration says."""
        self.config.HistoryManager.hist_file = ":memory:"
        super().init_kernel()

    def start(self) -> None:
        """Record, and serve until the kernel is told to end."""
        if self.subapp is not None or self.open_recorder is None:
            super().start()
            return
        recorder = self.open_recorder()
        self.kernel.begin_recording(recorder)
        try:
            super().start()
        finally:
            if self.session.is_owner():
                self._await_control()
                self.kernel.recording.close()
                recorder.close()

    def _await_control(self) -> None:
        """Let the control thread finish its message, `shutdown_request` mostly, before sockets are closed.

        It publishes that it is idle; caught in between it would wait 10 s for a thread that has ended.
        """
        deadline_s = time.monotonic() + _CONTROL_PATIENCE_S
        while self.kernel._control_lock.locked() and time.monotonic() < deadline_s:
            time.sleep(0.002)


class ClosingRecorder(Recorder, Protocol):
    """A recorder that is closed when the kernel ends."""

    def close(self) -> None:
        """Close the log; idempotent."""
        ...
