"""The one protocol that every route satisfies; wrappers satisfy it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from task_logger.record import ExecutionOutcome, ExecutionRequest, Isolation, OutputName, Route

OnOutput = Callable[[OutputName, str], None]
"""Takes output as it is written: which stream, and at most 64 KiB of its text."""

OnInput = Callable[[str, bool], str]
"""Answers `input()`: takes the prompt and whether the answer is a password; returns the line without its
end."""

OnDisplay = Callable[[Mapping[str, Any]], None]
"""Takes what is displayed as it is shown: `kind` (`display_data`, `update_display_data`, `execute_result` or
`clear_output`, as Jupyter's messages), `data`, `metadata` and `transient`; for `clear_output` only `wait`."""


ShellName = Literal["plain", "ipython"]
"""What runs code in a worker: Python as it is, or IPython's shell, with magics and displays."""


class Executor(Protocol):
    """Runs code in one namespace, one execution at a time; knows nothing of logs."""

    @property
    def route(self) -> Route: ...

    @property
    def isolation(self) -> Isolation: ...

    def execute(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionOutcome:
        """Run the request's code and return its outcome; what the code does is never raised.

        `on_output` is called from any thread while the code runs. `on_input` of `None` makes `input()` in
        the code raise `EOFError`. `on_display` is called only where a shell that displays
        runs the code. Raises `ExecutorClosed` after `close()`, and `WorkerStartFailed` where a
        process that runs the code can't be had; the executor stays usable after the latter.
        """
        ...

    def interrupt(self) -> bool:
        """Interrupt the running execution, from any thread; returns false where none runs."""
        ...

    def restart(self) -> None:
        """Empty the namespace. Must not be called while an execution runs."""
        ...

    def variables(self) -> list[Mapping[str, object]]:
        """Describe the variables: `name`, `type`, `shape` or `length`, `bytes` and `preview` of
        each, by name."""
        ...

    def complete(self, code: str, cursor: int) -> Mapping[str, object]:
        """What can be typed at the cursor, in code points: the content of Jupyter's `complete_reply`.

        This and `inspect` evaluate no calls and no properties; `__dir__`, `__repr__` and their like may run,
        for at most a second: where that doesn't do, nothing is found. Neither leaves a trace in the next
        outcome, nor may be called while an execution runs. Raises `RequestRefused` for a cursor that is not
        in the code.
        """
        ...

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> Mapping[str, object]:
        """What is known of the object under the cursor, from `detail_level` 1 on with its source: the content
        of Jupyter's `inspect_reply`. As `complete`."""
        ...

    def close(self) -> None:
        """End the executor and every process it started; idempotent. A running execution is
        interrupted first."""
        ...
