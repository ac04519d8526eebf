"""The executors of a live replay: a sandbox each unless told otherwise, and no log.

They live in a temporary folder, which ends with the replay. The recorded session's folders are not theirs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Literal

from json_repl.replay.shells import NO_SHELLS
from repl_kernel.executor import ShellName
from repl_kernel.timeline import TimelineExecutor

ReplayIsolation = Literal["none", "process", "sandbox"]


class ExecutorFactory:
    """Makes executors with an empty namespace; use it in `with`, and close them before it ends."""

    def __init__(
        self,
        isolation: ReplayIsolation = "sandbox",
        *,
        network: bool = False,
        shells: Mapping[str, ShellName] = NO_SHELLS,
    ) -> None:
        """`shells` names, by its id, what runs the code of a session, where that isn't plain Python."""
        self.isolation: ReplayIsolation = isolation
        self._network = network
        self._shells = shells
        self._made = 0
        self._folder = tempfile.TemporaryDirectory(prefix="json-repl-replay-", ignore_cleanup_errors=True)

    def __enter__(self) -> ExecutorFactory:
        return self

    def __exit__(self, *raised: object) -> None:
        self._folder.cleanup()

    def open(self, session_id: str) -> TimelineExecutor:
        """An executor for a session.

        Raises `WorkerStartFailed`, for a sandbox that can't be had `SandboxUnavailable`.
        """
        shell = self._shells.get(session_id, "plain")
        if self.isolation != "sandbox":
            return TimelineExecutor(snapshots="manual", isolation=self.isolation, shell=shell)
        from repl_kernel.sandbox import Sandbox

        self._made += 1
        work_folder = os.path.join(self._folder.name, f"work-{self._made}")
        os.mkdir(work_folder, 0o700)
        return TimelineExecutor(
            snapshots="manual",
            isolation=Sandbox(work_folder=work_folder, network=self._network),
            shell=shell,
        )
