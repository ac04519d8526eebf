"""The kernel at hand: ours, started by name, or another's, connected to; with the link to it.

open --> KernelProcess (ours) or connection file --> KernelLink that the kernel answers on
let_go --> link closed; a kernel of ours has ended then, and how is known
"""

from __future__ import annotations

import os
import time

from repl_kernel.errors import KernelUnreachable
from repl_kernel.jupyter.connection import read_connection_file
from repl_kernel.jupyter.kernel_link import KernelLink
from repl_kernel.jupyter.kernel_process import KernelProcess
from repl_kernel.outcome import Death
from task_logger.record import TaskIds

_START_LIMIT_S = 60.0
"""How long a kernel may take to start: Julia's compiles much of itself."""

_CONNECT_LIMIT_S = 20.0
_SHUTDOWN_LIMIT_S = 0.8


class KernelHold:
    """At most one kernel; `link` is `None` without one."""

    def __init__(self, kernel: str, task: TaskIds | None) -> None:
        """None yet; `kernel` is the connection file of one that runs, or the name of one to start.

        `task` is for that, see `KernelProcess`.
        """
        self.is_ours = not is_connection_file(kernel)
        self.link: KernelLink | None = None
        self._kernel = kernel
        self._task = task
        self._process: KernelProcess | None = None

    def open(self) -> KernelLink:
        """Start the kernel, or connect to it; raises `KernelUnreachable`, and there is none then."""
        process = KernelProcess(self._kernel, self._task) if self.is_ours else None
        connection = process.connection if process is not None else read_connection_file(self._kernel)
        self._process = process
        try:
            self.link = link = KernelLink(connection, process)
            link.get_ready(_START_LIMIT_S if self.is_ours else _CONNECT_LIMIT_S)
        except KernelUnreachable as exc:
            death, tail = self.let_go()
            how = f": it {death.words}" if process is not None else ""
            raise KernelUnreachable(f"kernel {self._kernel!r}: {exc}{how}", tail) from exc
        except BaseException:
            self.let_go()
            raise
        if process is not None:
            process.forget_words()
        return link

    def let_go(self) -> tuple[Death, str]:
        """Close the link, and end a kernel of ours; returns how that ended, and the last it wrote."""
        if self.link is not None:
            self.link.close()
            self.link = None
        if self._process is None:
            return Death(None, None, "has ended, or was restarted", 0), ""
        process, self._process = self._process, None
        return process.end()

    def interrupt(self) -> None:
        """Interrupt what runs on it, in the way that it wants."""
        if self._process is not None and not self._process.interrupts_by_message:
            self._process.interrupt()
        elif self.link is not None:
            self.link.send("control", "interrupt_request", {})

    def end(self) -> None:
        """Let go; a kernel of ours may end as it would, its `atexit` handlers run, for a moment."""
        if self.link is not None and self.is_ours:
            self.link.send("control", "shutdown_request", {"restart": False})
            deadline = time.monotonic() + _SHUTDOWN_LIMIT_S
            while not self.link.is_dead and (left_s := deadline - time.monotonic()) > 0:
                self.link.receive(left_s)
        self.let_go()

    def abandon(self) -> None:
        """Close our descriptors only: in a forked child, whose parent the session is."""
        if self.link is not None:
            self.link.abandon()
        if self._process is not None:
            self._process.abandon()


def is_connection_file(kernel: str) -> bool:
    """Whether that is the path of a connection file, and not the name of a kernel."""
    return os.sep in kernel or kernel.endswith(".json")
