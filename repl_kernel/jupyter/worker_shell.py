"""IPython's shell as it runs in a worker: what it shows goes to the session instead of to a terminal.

value of a last expression --> WorkerDisplayHook --+
display(), clear_output() ---> WorkerDisplays -----+--> show --> data socket
`obj?`, %load ---------------> payloads -----------+
"""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from IPython.core import page
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Any as AnyTrait
from traitlets import Type

from repl_kernel.jupyter.kernel_magics import COMMANDS
from repl_kernel.refusal import THREAD_END_S

Show = Callable[[dict[str, Any]], None]
"""Takes a message about a display; see `OnDisplay`."""

HIDDEN_NAMES = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
"""What IPython puts in the namespace, and doesn't start with `_`."""


class WorkerDisplayHook(DisplayHook):
    """Shows the value of a last expression, with all its MIME types."""

    shell: Any

    def write_output_prompt(self) -> None:
        """Do nothing: front ends number results themselves."""

    def write_format_data(
        self, format_dict: Mapping[str, Any], md_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Show it."""
        if format_dict:
            data = {mime: as_text(part) for mime, part in format_dict.items()}
            self.shell.show(
                {"kind": "execute_result", "data": data, "metadata": dict(md_dict or {}), "transient": {}}
            )

    def log_output(self, format_dict: Mapping[str, Any]) -> None:
        """Do nothing: the task log has it, and kept here it would fill the worker's memory."""

    def finish_displayhook(self) -> None:
        """Nothing was written to stdout, so nothing is to be flushed."""
        self._is_active = False


class WorkerDisplays(DisplayPublisher):
    """Shows what `display()` is given."""

    def publish(  # type: ignore[override]  # without `source`, which is long deprecated
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        *,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **_: object,
    ) -> None:
        """Show a MIME bundle, or with `update` a new one in place of an earlier one."""
        self._validate_data(data, metadata)
        self.shell.show(
            {
                "kind": "update_display_data" if update else "display_data",
                "data": {mime: as_text(part) for mime, part in data.items()},
                "metadata": dict(metadata or {}),
                "transient": dict(transient or {}),
            }
        )

    def clear_output(self, wait: bool = False) -> None:
        """Have front ends forget what this execution has shown so far."""
        self.shell.show({"kind": "clear_output", "wait": bool(wait)})


class ExecutionCompiler(CachingCompiler):
    """Names code after its execution, as on every route."""

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """The file name of an execution's code."""
        return f"<execution {number}>"


class WorkerShell(InteractiveShell):
    """The shell; `show` takes what it displays, `payload` what a front end shall do."""

    displayhook_class = Type(WorkerDisplayHook)
    display_pub_class = Type(WorkerDisplays)
    compiler_class = Type(ExecutionCompiler)
    show = AnyTrait()

    def init_virtualenv(self) -> None:
        """Do nothing: the worker runs in the environment that it was started in."""

    def init_hooks(self) -> None:
        """Have the pager show pages in the front end."""
        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(self._show_page), 99)

    def init_magics(self) -> None:
        """Add those that the kernel itself takes care of."""
        super().init_magics()
        for name, about in COMMANDS.items():
            register: Any = self.register_magic_function
            register(_only_alone(name, about), "line", name)

    def _show_page(self, text: str | Mapping[str, Any], start: int = 0, *_: object, **__: object) -> None:
        data = (
            {mime: as_text(part) for mime, part in text.items()}
            if isinstance(text, Mapping)
            else {"text/plain": text}
        )
        self._pay({"source": "page", "data": data, "start": max(0, start)}, data)

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """Keep no copy of what is written: the task log has it, and it would fill the worker's memory.

        IPython's fails at a `sys.stdout` of `None`, and no cell could set another.
        """
        yield

    def set_next_input(self, text: str, replace: bool = False) -> None:
        """Have the front end offer a text as the next cell."""
        self._pay({"source": "set_next_input", "text": text, "replace": replace}, {})

    def ask_exit(self) -> None:
        """Have the front end end the kernel."""
        self._pay({"source": "ask_exit", "keepkernel": False}, {})

    def _pay(self, payload: dict[str, Any], data: dict[str, Any]) -> None:
        self.show({"kind": "display_data", "data": data, "metadata": {}, "transient": {"payload": payload}})

    def enable_gui(self, gui: str | None = None) -> None:
        """Accept what needs no event loop of a window system; raises `UsageError` for the others."""
        if gui not in (None, "inline"):
            raise UsageError(f"this kernel has no event loop for {gui!r}: its code runs in a worker")

    def system(self, cmd: str) -> None:
        """Run a program as `!cmd` does; it writes to our descriptors: its output comes at once."""
        sys.stdout.flush()
        self.system_raw(cmd)

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        """Show an exception that isn't the execution's own: that one is its outcome."""
        if running_compiled_code or exception_only or self._is_transforming(exc_tuple):
            self.InteractiveTB.tb = self._get_exc_info(exc_tuple)[2]  # for %debug and %tb
            return
        super().showtraceback(exc_tuple, filename, tb_offset)

    @staticmethod
    def _is_transforming(exc_tuple: Any) -> bool:
        """Whether the code could not even be made Python: `run_cell_async` hands that over so."""
        return exc_tuple is not None and sys._getframe(2).f_code.co_name == "run_cell_async"

    def showsyntaxerror(self, filename: str | None = None, running_compiled_code: bool = False) -> None:
        """Do nothing: it is the execution's outcome."""

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        print(self.InteractiveTB.stb2text(stb), file=sys.stderr)

    def _format_exception_for_storage(self, *_: object, **__: object) -> dict[str, Any]:
        """Keep nothing: the task log has it, and IPython's traceback takes 50 ms."""
        return {}

    def align_history(self, seq: int) -> None:
        """Make the next entry of `In` that of execution `seq`: some numbers this shell never sees."""
        history: Any = self.history_manager
        for entries in (history.input_hist_parsed, history.input_hist_raw):
            del entries[seq:]
            entries.extend([""] * (seq - len(entries)))

    def stop_threads(self) -> None:
        """End the threads that `%%bash` leaves: while there is one, no snapshot can be made."""
        scripts = self.magics_manager.registry.get("ScriptMagics")
        if scripts is not None and scripts.event_loop is not None:
            scripts._gc_bg_processes()
            if not scripts.bg_processes:
                scripts.stop_event_loop()
                _await_waiters_for_programs()


def _await_waiters_for_programs() -> None:
    """Join asyncio's threads that wait for a program: that of `%%bash` has told its end, and ends itself.

    Such a thread of the user's own may wait for long: hence the bound.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("asyncio-waitpid-"):
            thread.join(THREAD_END_S)


def _only_alone(name: str, about: str) -> Callable[[str], None]:
    def command(_line: str) -> None:
        raise UsageError(
            f"%{name} works alone in its cell, in the kernel json_repl_isolated: that does it, not the code "
            "(in Python: a Session's methods; with json-repl run: --kernel json_repl_isolated)"
        )

    command.__name__ = command.__qualname__ = name
    command.__doc__ = about
    return command


def as_text(part: Any) -> Any:
    """A part of a MIME bundle as JSON has it: bytes (images) in base64."""
    return base64.b64encode(part).decode() if isinstance(part, (bytes, bytearray, memoryview)) else part
