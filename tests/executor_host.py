"""A local executor that owns its process, in a process that it can own, and the proxy for it here.

ExecutorInChild.execute --("execute", request)--> main thread: LocalExecutor(owns_process=True)
                        <--("output" | "input" | "outcome" | "raised")
ExecutorInChild.interrupt --("interrupt",)--> reading thread
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import Any, cast

from repl_kernel.executor import OnDisplay, OnInput, OnOutput
from task_logger.record import Artifact, ExecutionOutcome, ExecutionRequest, Isolation, OutputName, Route

_LONGEST_CALL_S = 120.0
"""After this the other process is taken for stuck."""


class ExecutorInChild:
    """An `Executor`: the local one that owns its process, which is a child of this one."""

    route: Route = "local"
    isolation: Isolation = "none"

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.executor_host", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        theirs.close()
        self._turn = threading.RLock()
        self._interrupted: queue.Queue[bool] = queue.Queue()
        self._replies: queue.Queue[Any] = queue.Queue()
        self._reading = threading.Thread(target=self._read, name="executor in child")
        self._reading.start()
        self.outer_output = b""
        """What the process wrote to its own stdout and stderr; known after `close`."""

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                (self._interrupted if message[0] == "interrupted" else self._replies).put(message)
        except EOFError:
            self._replies.put(("gone",))
            self._interrupted.put(False)

    def _call(
        self, *message: object, on_output: OnOutput | None = None, on_input: OnInput | None = None
    ) -> Any:
        with self._turn:
            self._connection.send(message)
            while True:
                reply = self._replies.get(timeout=_LONGEST_CALL_S)
                match reply:
                    case ("output", name, text):
                        assert on_output
                        on_output(cast(OutputName, name), text)
                    case ("input", prompt, is_password):
                        assert on_input
                        self._connection.send(("answer", on_input(prompt, is_password)))
                    case ("returned", value):
                        return value
                    case ("raised", exc):
                        raise exc
                    case _:
                        raise EOFError("the process of the executor has ended")

    def execute(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionOutcome:
        outcome = self._call(
            "execute",
            request,
            on_output is not None,
            on_input is not None,
            on_output=on_output,
            on_input=on_input,
        )
        assert isinstance(outcome, ExecutionOutcome)
        return outcome

    def interrupt(self) -> bool:
        self._connection.send(("interrupt",))
        answer: Any = self._interrupted.get(timeout=_LONGEST_CALL_S)
        return bool(answer and answer[1])

    def restart(self) -> None:
        self._call("restart")

    def variables(self) -> list[Mapping[str, object]]:
        return cast(list[Mapping[str, object]], self._call("variables"))

    def complete(self, code: str, cursor: int) -> Mapping[str, object]:
        return cast(Mapping[str, object], self._call("complete", code, cursor))

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> Mapping[str, object]:
        return cast(Mapping[str, object], self._call("inspect", code, cursor, detail_level))

    def close(self) -> None:
        if self._reading.is_alive():
            self.interrupt()
            self._call("close")

    def end(self) -> None:
        """End the process, which is more than closing the executor."""
        if self._reading.is_alive():
            try:
                self._connection.send(("end",))
            except OSError:
                pass
        try:
            self.outer_output = b"".join(self._process.communicate(timeout=_LONGEST_CALL_S))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.outer_output = b"".join(self._process.communicate()) + b"(it did not end)"
        self._reading.join()
        self._connection.close()


class Host:
    """The child's side."""

    def __init__(self, connection: Connection) -> None:
        from repl_kernel.in_process import LocalExecutor

        self._connection = connection
        self._executor = LocalExecutor(owns_process=True)
        self._calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._answers: queue.Queue[str] = queue.Queue()
        self._sending = threading.Lock()

    def serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        while (message := self._calls.get())[0] != "end":
            try:
                value = self._do(*message)
            except Exception as exc:  # noqa: BLE001 -- it goes to the caller, whatever it is
                self._send("raised", exc)
            else:
                self._send("returned", value)

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                match message[0]:
                    case "interrupt":
                        self._send("interrupted", self._executor.interrupt())
                    case "answer":
                        self._answers.put(message[1])
                    case _:
                        self._calls.put(message)
        except (EOFError, OSError):
            os._exit(1)  # the tests are gone, whatever runs here

    def _do(self, what: str, *arguments: Any) -> object:
        if what != "execute":
            return getattr(self._executor, what)(*arguments)
        request, has_output, has_input = arguments
        outcome = self._executor.execute(
            request,
            (lambda name, text: self._send("output", name, text)) if has_output else None,
            self._ask if has_input else None,
        )
        return replace(outcome, artifacts=tuple(_loaded(artifact) for artifact in outcome.artifacts))

    def _ask(self, prompt: str, is_password: bool) -> str:
        self._send("input", prompt, is_password)
        return self._answers.get()

    def _send(self, *message: object) -> None:
        with self._sending:
            self._connection.send(message)


def _loaded(artifact: Artifact) -> Artifact:
    content = artifact.content
    if content is None or isinstance(content, bytes):
        return artifact
    content.seek(0)
    return replace(artifact, content=content.read())


if __name__ == "__main__":
    # Executed code gets `__main__` as its own module: this one's classes must be found under their real name.
    from tests.executor_host import Host as ImportedHost

    ImportedHost(Connection(int(sys.argv[1]))).serve()
    os._exit(0)  # threads that executed code left running are not waited for
