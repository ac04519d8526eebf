"""ipykernel's application around an isolated kernel: sockets, heartbeat, connection file."""

from __future__ import annotations

import signal
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from traitlets import Type

from repl_kernel.jupyter.child_pipe import move_child_pipe
from repl_kernel.jupyter.isolated_kernel import IsolatedKernel
from repl_kernel.jupyter.recorded_session import RecordedSession


class IsolatedKernelApp(IPKernelApp):
    """ipykernel's application around an isolated kernel."""

    name = "json-repl-isolated-kernel"
    kernel_class = Type(  # type: ignore[assignment]  # that of the parent, with another default
        IsolatedKernel, klass="ipykernel.kernelbase.Kernel"
    ).tag(config=True)
    classes = [*IPKernelApp.classes, RecordedSession]  # noqa: RUF012  # a trait of the parent

    def _session_default(self) -> RecordedSession:
        return RecordedSession(parent=self)

    def init_iopub(self, context: Any) -> None:
        """See `IPKernelApp`; where the transport is ipc there is no TCP port at all."""
        super().init_iopub(context)
        if self.transport == "ipc":
            move_child_pipe(self.iopub_thread, f"{self.ip}-children")

    def init_pdb(self) -> None:
        """Do nothing: no code runs here."""

    def init_kernel(self) -> None:
        """See `IPKernelApp`; without subshells: one cell runs at a time."""
        self.shell_channel_thread = None
        super().init_kernel()

    def init_signal(self) -> None:
        """Ignore interrupts until the kernel serves."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
