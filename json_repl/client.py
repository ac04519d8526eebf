"""A session in a process of its own, for programs that spawn `python -m json_repl`.

execute_code() -> Connection -> the process's stdin ... its stdout -> Connection -> outcome, in wire form
                                                                      \\-> on_output, on_input
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from json_repl.connection import Connection
from json_repl.errors import RequestFailed, SessionClosed, SessionProcessDied, SessionStartFailed
from json_repl.remote_session import CONTROL_BOUND_S, FOREVER, RemoteSession
from json_repl.spawning import ProcessRoute, checked_bound, spawn_server

if TYPE_CHECKING:
    from json_repl.connection import Call
    from repl_kernel.executor import OnInput, OnOutput
    from repl_kernel.limits import Limits

TERM_BOUND_S = 6.0
"""A process told to end by SIGTERM takes up to 5 s to write its last line."""


class SessionProcess(RemoteSession):
    """A recorded session in a process of its own; a context manager, usable from several threads.

    `route` of `None` means from the environment, `env` of `None` this process's own; `python` is the
    interpreter to start; `preload` are modules that the worker is to have at once, `limits` what code may
    use, by the names of `Limits`. Raises `ConfigurationError` or `InvalidRequest` for an argument that makes
    no sense, and `SessionStartFailed` where it isn't ready within `start_bound_s`.
    The process gets a process group of its own, so that Ctrl-C in a terminal only reaches the caller.
    """

    def __init__(
        self,
        *,
        route: ProcessRoute | None = None,
        preload: Collection[str] = (),
        limits: Limits | Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        python: str | os.PathLike[str] = sys.executable,
        cwd: str | os.PathLike[str] | None = None,
        start_bound_s: float = 30.0,
        close_bound_s: float = 10.0,
    ) -> None:
        start_bound_s = checked_bound("start_bound_s", start_bound_s)
        self._close_bound_s = checked_bound("close_bound_s", close_bound_s)
        self._is_closed = False
        self._process = spawn_server(
            route=route, preload=preload, limits=limits, env=env, python=python, cwd=cwd
        )
        self._connection = Connection(self._process)
        try:
            self._await_ready(start_bound_s)
        except BaseException:
            self._kill()
            raise

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def ready(self) -> Mapping[str, Any]:
        """What the process says of itself: `session_id`, `version`, `python`, `route`, `log` and its ids."""
        return self._connection.ready or {}

    @property
    def stderr_tail(self) -> str:
        """The last 4 kB that the process itself wrote to its stderr, as far as they were read."""
        return self._connection.stderr_tail

    def ping(self, bound_s: float = CONTROL_BOUND_S) -> None:
        """Return when the process answers, even while it executes; raises `ReplyTimeout` otherwise."""
        self._request("ping", {}, bound_s)

    def close(self) -> None:
        """End the session; idempotent.

        What runs may finish within `close_bound_s`; then it is interrupted and recorded, within 6 s; then
        the process is killed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._connection.end_input()
        if not self._connection.read_until_exit(time.monotonic() + self._close_bound_s):
            self._process.terminate()
            self._connection.read_until_exit(time.monotonic() + TERM_BOUND_S)
        self._kill()

    def _kill(self) -> None:
        self._is_closed = True
        self._process.kill()  # does nothing to a process that has ended
        self._process.wait()
        self._connection.close()

    def _await_ready(self, bound_s: float) -> None:
        connection, deadline = self._connection, time.monotonic() + bound_s
        while connection.ready is None:
            if connection.has_ended:
                died = connection.death()
                raise SessionStartFailed(f"no session: {died}")
            if time.monotonic() >= deadline:
                raise SessionStartFailed(
                    f"no session: not ready within {bound_s:g} s", connection.stderr_tail
                )
            connection.read_for(None, deadline)

    def _request(
        self,
        method: str,
        params: Mapping[str, object],
        bound_s: float = FOREVER,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
    ) -> Any:
        if self._is_closed:
            raise SessionClosed
        deadline = time.monotonic() + (bound_s if bound_s == FOREVER else checked_bound("bound_s", bound_s))
        with self._connection.call(method, params, deadline) as call:
            try:
                reply = self._wait(call, deadline, on_output, on_input)
            except SessionProcessDied:
                raise
            except BaseException:
                if method in ("execute", "speculate"):
                    self._interrupt_and_wait(call, params.get("session_id", self.ready["session_id"]))
                raise
        if reply is None:
            from json_repl.errors import ReplyTimeout

            raise ReplyTimeout(method, bound_s)
        if "error" in reply:
            error = reply["error"]
            raise RequestFailed(error["code"], error["message"], error.get("data"))
        return reply["result"]

    def _wait(
        self, call: Call, deadline: float, on_output: OnOutput | None, on_input: OnInput | None
    ) -> Mapping[str, Any] | None:
        """Wait for the reply, serving callbacks; `None` after the deadline."""
        while True:
            while call.events:
                event = call.events.popleft()
                if event["method"] == "stream" and on_output is not None:
                    on_output(event["params"]["name"], event["params"]["text"])
                elif event["method"] == "input_request" and on_input is not None:
                    self._answer(on_input, event["params"])
            if call.reply is not None:
                return call.reply
            if self._connection.has_ended:
                raise self._connection.death()
            if time.monotonic() >= deadline:
                return None
            self._connection.read_for(call, deadline)

    def _answer(self, on_input: OnInput, asked: Mapping[str, Any]) -> None:
        try:
            text: str | None = on_input(asked["prompt"], asked["password"])
        except EOFError:
            text = None
        if text is not None and not isinstance(text, str):
            raise TypeError(f"on_input must return a text, not a {type(text).__name__}")
        self._connection.notify("input_reply", {"text": text})

    def _interrupt_and_wait(self, call: Call, session_id: object) -> None:
        self._connection.notify("interrupt", {"session_id": session_id})
        self._wait(call, time.monotonic() + CONTROL_BOUND_S, None, None)
