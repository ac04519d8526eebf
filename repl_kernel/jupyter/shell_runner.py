"""Runs executions by IPython's shell: the second runner behind `worker`.

code text --transform--> Python --run_cell--> displays, result --> show
                                     +-- raises --> ExecutionError
namespace --watch--> NamespaceChanges
"""

from __future__ import annotations

import ast
import getpass
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from types import CodeType, ModuleType
from typing import Any

from repl_kernel.code_result import CodeResult
from repl_kernel.failure import is_interrupt, line_of
from repl_kernel.run_code import CodeRunner, InterruptGate
from repl_kernel.source import Program
from repl_kernel.streams import InputStream
from task_logger.record import ExecutionError, Status

_ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "TERM": "dumb",
}
"""For libraries and programs that would look for a window or a terminal."""


class ShellRunner(CodeRunner):
    """Runs executions by one IPython shell, one at a time; the module is the user's `__main__`."""

    def __init__(
        self,
        module: ModuleType,
        gate: InterruptGate,
        show: Callable[[dict[str, Any]], None],
        stdin: InputStream,
    ) -> None:
        """Start the shell; `show` takes what it displays."""
        from traitlets.config import Config

        from repl_kernel.jupyter.worker_shell import HIDDEN_NAMES, WorkerShell

        _complete_environment()
        getpass.getpass = lambda prompt="Password: ", stream=None: stdin.ask_line(prompt, is_password=True)
        config = Config()
        config.HistoryManager.enabled = False  # on disk it would be in clear text; and it needs a thread
        config.IPCompleter.use_jedi = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a home that can't be written to: then there is a temporary one
            self._shell = WorkerShell.instance(
                config=config, user_module=module, user_ns=module.__dict__, show=show, colors="nocolor"
            )
        warnings.filterwarnings("ignore", "To exit: use", module="IPython.core.interactiveshell")
        self._shell.loop_runner = self._run_in_loop
        self._shell.run_cell("None", store_history=False)  # loads what the first execution would
        super().__init__(module, gate, hidden=HIDDEN_NAMES)
        self._was_refused = False

    def run(self, text: str, seq: int) -> CodeResult:
        """Run one execution; see `CodeRunner.run`. Its result is shown, not returned."""
        shell, gate = self._shell, self.gate
        filename = f"<execution {seq}>"
        failure: BaseException | None = None
        transformed = ""
        self._was_refused = False
        shell.execution_count = seq
        shell.align_history(seq)
        started_ns = perf_counter_ns()
        try:
            try:
                gate.is_open = True
                ended = shell.run_cell(text, store_history=True)
                transformed = ended.info.transformed_cell or ""
                self._was_refused = ended.error_before_exec is not None
                failure = ended.error_before_exec if self._was_refused else ended.error_in_exec
                ended = None
            finally:
                gate.close()
        except BaseException as exc:  # noqa: BLE001 - all of it is the user's
            failure = exc
        elapsed_ns = perf_counter_ns() - started_ns
        status: Status = "ok"
        error: ExecutionError | None = None
        if failure is not None:
            status, error = self._judge(failure, filename)
            failure = None
        shell.stop_threads()
        code = _compiled(transformed, filename)
        self.sources.settle(filename, Program(code, None, 0))
        return CodeResult(status, elapsed_ns, None, error, self._watcher.changes(code, elapsed_ns))

    def _judge(self, exc: BaseException, filename: str) -> tuple[Status, ExecutionError]:
        from IPython.core.error import UsageError

        exc = _interrupt_behind(exc, filename) or exc
        if self._was_refused and not is_interrupt(exc):
            # Its frames are those of the shell, which could not make Python of the code.
            exc = exc.with_traceback(None)
        elif type(exc) is UsageError:  # a magic used wrongly: where it was raised tells nobody anything
            return "error", ExecutionError(
                type="UsageError", message=str(exc), traceback=f"UsageError: {exc}\n", line=None
            )
        status, error = super()._judge(exc, filename)
        if status == "interrupted" and '  File "<execution ' not in error.traceback:
            error = replace(
                error, traceback="KeyboardInterrupt\n"
            )  # the event loop's frames, and the shell's
        return status, error

    def has_moved(self) -> None:
        """Have the shell know the folder and the environment that the process has now."""
        _complete_environment()
        folder = os.getcwd()
        self._shell.starting_dir = folder
        history: Any = self._shell.history_manager
        history.dir_hist[:] = [Path(folder)]

    def _run_in_loop(self, coroutine: object) -> object:
        return self._persistent_loop().run(coroutine)

    def warm_up(self) -> CodeResult:
        """Go through the shell's preparations of an execution as well; see `CodeRunner.warm_up`."""
        self._shell.transform_cell("x = 1")
        return super().warm_up()

    def complete(self, code: str, cursor: int) -> dict[str, object]:
        """What can be typed next, magics and files too."""
        from IPython.core.completer import provisionalcompleter, rectify_completions

        from repl_kernel.cursor_reply import completion_reply

        with provisionalcompleter():
            found = list(rectify_completions(code, self._shell.Completer.completions(code, cursor)))
        if not found:
            return completion_reply([], cursor, cursor)
        return completion_reply([each.text for each in found], found[0].start, found[0].end)

    def inspect(self, code: str, cursor: int, detail_level: int) -> dict[str, object]:
        """What `name?` shows, from `detail_level` 1 on what `name??` does."""
        from IPython.utils.tokenutil import token_at_cursor

        from repl_kernel.cursor_reply import inspection_reply
        from repl_kernel.jupyter.worker_shell import as_text

        try:
            name = token_at_cursor(code, cursor)
            bundle = self._shell.object_inspect_mime(name, detail_level=detail_level)
        except (KeyError, SyntaxError):
            return inspection_reply(None)
        return {
            "status": "ok",
            "found": True,
            "data": {mime: as_text(part) for mime, part in bundle.items()},
            "metadata": {},
        }


def _complete_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _interrupt_behind(exc: BaseException, filename: str) -> BaseException | None:
    """The interrupt that another one, or an error of the shell's, came on top of; `None` without one."""
    found: BaseException | None = None
    each = exc if line_of(exc, filename) is None else None
    while each is not None:
        found = each if is_interrupt(each) else found
        each = each.__context__
    return found


def _compiled(text: str, filename: str) -> CodeType | None:
    """The code of an execution once more, for the names in it: IPython compiles each statement by itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code: CodeType = compile(
                text, filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return code
