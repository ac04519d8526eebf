"""The isolated kernel: answers the front end, and runs no code; a worker does.

execute_request --> do_execute --> session.execute --> worker (IPython's shell) --> one line in the log
     stream, display_data, …  <-- on_output, on_display --+
     input_request, its reply <-- on_input ---------------+
interrupt_request, SIGINT --> InterruptRelay --> session.interrupt

Requests are dealt with on the main thread, one after the other; the control channel has a thread of its own.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from typing import Any

import zmq
from ipykernel.kernelbase import Kernel
from traitlets import Instance

from repl_kernel.errors import InterruptedByCaller, KernelError
from repl_kernel.jupyter import session_history as history
from repl_kernel.jupyter.answered import answer_failures, reply_failure
from repl_kernel.jupyter.execute_request import malformation, request_tags
from repl_kernel.jupyter.fault_report import FaultReport
from repl_kernel.jupyter.gathered_output import GatheredOutput
from repl_kernel.jupyter.interrupt_relay import InterruptRelay
from repl_kernel.jupyter.kernel_magics import parse_command
from repl_kernel.jupyter.kernel_sessions import KernelSessions, refused_outcome
from repl_kernel.jupyter.recorded_session import RecordedSession
from task_logger.record import ExecutionOutcome, OutputName

_NO_EXPRESSIONS = "this kernel evaluates no user_expressions: the code runs in a worker"


class IsolatedKernel(Kernel):
    """Runs cells in the worker of a session; once `serve` was called."""

    implementation = "json_repl_isolated"
    implementation_version = "1"
    banner = "Python, recorded and isolated: %rewind, %snapshots, %branch, %tasklog"
    language_info = {  # noqa: RUF012  # a class attribute of the parent
        "name": "python",
        "version": platform.python_version(),
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "pygments_lexer": "ipython3",
        "nbconvert_exporter": "python",
        "file_extension": ".py",
    }
    help_links = [  # noqa: RUF012
        {"text": "Python Reference", "url": f"https://docs.python.org/{platform.python_version()[:4]}"},
        {"text": "IPython Reference", "url": "https://ipython.org/documentation.html"},
    ]
    sessions = Instance(KernelSessions, allow_none=True)

    def serve(self, sessions: KernelSessions) -> None:
        """Run cells in these sessions from now on; for the main thread."""
        self.sessions = sessions
        self._payloads: list[Mapping[str, Any]] = []
        self._fault = FaultReport()
        self._output = GatheredOutput(self._send_output)
        self._relay = InterruptRelay(self._interrupt, self._end)
        self._relay.start()
        answer_failures(self)

    @property
    def _open(self) -> KernelSessions:
        assert self.sessions is not None
        return self.sessions

    def _interrupt(self) -> bool:
        return self._open.current.interrupt()

    def _end(self) -> None:
        self.io_loop.add_callback(self.io_loop.stop)

    def pre_handler_hook(self) -> None:
        """Leave the signals as they are: the relay has them."""

    def post_handler_hook(self) -> None:
        """See `pre_handler_hook`."""

    @property
    def kernel_info(self) -> dict[str, Any]:
        """See `Kernel`; the code isn't here to be debugged."""
        return {**super().kernel_info, "supported_features": []}

    def start(self) -> None:
        """See `Kernel`; counts the requests, so that an error aborts those that came before its reply."""
        super().start()
        self._received = self._aborted = 0
        context = copy_context()  # one for all requests, as in ipykernel: it knows the newest

        def receive(frames: Any) -> asyncio.Task[None]:
            self._received += 1
            return asyncio.create_task(self._handle(self._received, frames), context=context)

        stream: Any = self.shell_stream
        stream.on_recv(receive, copy=False)

    async def _handle(self, number: int, frames: Any) -> None:
        async with self._main_asyncio_lock:
            self._aborting = number <= self._aborted
            try:
                await self.dispatch_shell(frames)
            except AssertionError:  # it is for a subshell
                self._refuse_subshell()

    def _refuse_subshell(self) -> None:
        parent = self.get_parent("shell")
        ident = self._get_shell_context_var(self._shell_parent_ident)
        reply_failure(self, self.shell_stream, ident, parent, "this kernel has no subshells")
        self._publish_status_and_flush("idle", "shell", self.shell_stream)

    def _abort_waiting(self) -> None:
        """Abort the execute requests that have come so far."""
        stream: Any = self.shell_stream
        stream.flush(zmq.POLLIN)
        self._aborted = self._received

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Do nothing: that was done before the reply; what comes after it is meant to run."""

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Handle an `execute_request`; one that can't be run is answered too."""
        if (why := malformation(parent)) is not None:
            error = _error_content("InvalidRequest", why, [f"InvalidRequest: {why}"])
            self._publish("error", error)
            content = {"status": "error", **error, **self._end_of_reply()}
            assert self.session is not None
            self.session.send(stream, "execute_reply", content, parent, ident=ident)
            return
        if not parent["content"].get("silent", False):
            self.execution_count = self._open.current.last_seq  # and one more: the number of this one
        await super().execute_request(stream, ident, parent)

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
    ) -> dict[str, Any]:
        """Run a cell, or a command of the kernel's; returns the content of the reply."""
        self._payloads = []
        with self._relay.busy():
            outcome, notices = self._run(code, silent, allow_stdin)
        reply = self._reply(outcome, notices, silent, user_expressions or {})
        self._output.flush()
        stops = not silent and self.get_parent("shell")["content"].get("stop_on_error", True)
        if reply["status"] == "error" and stops:
            self._abort_waiting()
        return reply

    def _run(self, code: str, silent: bool, may_ask: bool) -> tuple[ExecutionOutcome, Sequence[str]]:
        session = self._open.current
        assert isinstance(self.session, RecordedSession)
        tags = request_tags(self.get_parent("shell"), self.session.take_refused())
        command = parse_command(code)
        try:
            if command is not None:
                record = self._open.run(command, code, tags)
                if record.outcome.stdout and not silent:
                    self._on_output("stdout", record.outcome.stdout)
                return record.outcome, record.notices
            session.ensure_snapshot()  # cells may follow one another too fast for a worker to idle
            self._allow_stdin = may_ask
            record = session.execute(
                code,
                tags=tags,
                on_output=None if silent else self._on_live_output,
                on_input=self._on_input if may_ask else None,
                on_display=self._on_silent_display if silent else self._on_display,
            )
        except InterruptedByCaller as exc:  # while waiting for input
            return exc.outcome, exc.outcome.notices
        except Exception as exc:  # noqa: BLE001 - the session's: closed, or a log that must be written and can't
            return refused_outcome(type(exc).__name__, str(exc), session.isolation), ()
        return record.outcome, record.notices

    def _reply(
        self,
        outcome: ExecutionOutcome,
        notices: Sequence[str],
        silent: bool,
        user_expressions: Mapping[str, object],
    ) -> dict[str, Any]:
        """Show how it ended; returns the content of the reply."""
        if not silent:
            if report := self._fault.take(outcome):
                self._on_output("stderr", report)
            for late in outcome.late_output:
                self._on_output(late.name, late.text)
        error = outcome.error
        if error is None:
            if notices and not silent:
                self._on_output("stderr", "".join(f"json_repl: {notice}\n" for notice in notices))
            expressions = {
                name: {"status": "error", **_error_content("NotImplementedError", _NO_EXPRESSIONS, [])}
                for name in user_expressions
            }
            return {"status": "ok", **self._end_of_reply(), "user_expressions": expressions}
        lines = error.traceback.rstrip("\n").split("\n")
        content = _error_content(error.type, error.message, [*lines, *(f"json_repl: {n}" for n in notices)])
        if not silent:
            self._publish("error", content)
        return {"status": "error", **content, **self._end_of_reply()}

    def _end_of_reply(self) -> dict[str, Any]:
        return {
            "execution_count": self.execution_count,
            "user_expressions": {},
            "payload": self._payloads,
        }

    def _publish(self, kind: str, content: Mapping[str, Any]) -> None:
        self._output.flush()
        self._send(kind, content)

    def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        self.send_response(self.iopub_socket, kind, content, ident=self._topic(kind), channel="shell")

    def _on_output(self, name: OutputName, text: str) -> None:
        self._output.put(name, text)

    def _send_output(self, name: OutputName, text: str) -> None:
        self._send("stream", {"name": name, "text": text})

    def _on_live_output(self, name: OutputName, text: str) -> None:
        if name == "stderr":
            text = self._fault.hold_back(text)
        if text:
            self._on_output(name, text)

    def _on_display(self, message: Mapping[str, Any]) -> None:
        kind = message["kind"]
        content = {key: value for key, value in message.items() if key != "kind"}
        payload = message.get("transient", {}).get("payload")
        if payload is not None:
            self._payloads.append(payload)
            return
        if kind == "execute_result":
            del content["transient"]
            content["execution_count"] = self.execution_count
        self._publish(kind, content)

    def _on_silent_display(self, message: Mapping[str, Any]) -> None:
        if message.get("transient", {}).get("payload") is not None:
            self._on_display(message)

    def _on_input(self, prompt: str, is_password: bool) -> str:
        self._output.flush()
        with self._relay.waiting():
            return self.getpass(prompt) if is_password else self.raw_input(prompt)

    async def do_complete(self, code: str, cursor_pos: int | None) -> dict[str, Any]:
        """See `Kernel`."""
        cursor = len(code) if cursor_pos is None else cursor_pos
        try:
            with self._relay.busy():
                return self._open.current.complete(code, cursor)
        except (KernelError, ValueError) as exc:
            return {"status": "error", **_error_content(type(exc).__name__, str(exc), [str(exc)])}

    async def do_inspect(
        self, code: str, cursor_pos: int | None, detail_level: int = 0, omit_sections: Any = ()
    ) -> dict[str, Any]:
        """See `Kernel`."""
        cursor = len(code) if cursor_pos is None else cursor_pos
        try:
            with self._relay.busy():
                return self._open.current.inspect(code, cursor, 1 if detail_level else 0)
        except (KernelError, ValueError) as exc:
            return {"status": "error", **_error_content(type(exc).__name__, str(exc), [str(exc)])}

    async def do_history(  # noqa: PLR0917  # the parent's signature
        self,
        hist_access_type: str,
        output: bool,
        raw: bool,
        session: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        n: int | None = None,
        pattern: str | None = None,
        unique: bool = False,
    ) -> dict[str, Any]:
        """See `Kernel`; tells of this session what its log says."""
        lines = self._open.current.history()
        if hist_access_type == "range":
            found = history.lines_between(lines, session or 0, start or 0, stop)
        elif hist_access_type == "search":
            found = history.lines_like(lines, pattern or "*", n, unique=unique)
        else:
            found = history.newest_lines(lines, n)
        return {"status": "ok", "history": [history.entry(line, with_output=output) for line in found]}

    async def do_is_complete(self, code: str) -> dict[str, Any]:
        """See `Kernel`."""
        from IPython.core.inputtransformer2 import TransformerManager

        status, indent = TransformerManager().check_complete(code)
        return {"status": status, **({"indent": " " * (indent or 0)} if status == "incomplete" else {})}

    async def do_debug_request(self, msg: Mapping[str, Any]) -> dict[str, Any]:
        """Refuse: the code isn't here."""
        return {
            "type": "response",
            "request_seq": msg.get("seq"),
            "command": msg.get("command"),
            "success": False,
            "message": "this kernel can't debug: the code runs in a worker",
        }

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        """See `Kernel`; on the control channel's thread. What runs is interrupted, and gets its line."""
        self._open.current.interrupt()
        return {"status": "ok", "restart": restart}

    async def _progressively_terminate_all_children(self) -> None:
        """Leave them: the sessions end them, once what runs has its line."""


def _error_content(name: str, message: str, lines: Sequence[str]) -> dict[str, Any]:
    return {"ename": name, "evalue": message, "traceback": list(lines)}
