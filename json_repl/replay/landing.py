"""The two states around an execution, each in a session to look around in.

recording --what led there runs again, twice--> executors --> Session `before`, Session `after`

Both are new sessions with a log of their own, in a temporary folder; the recording is not touched.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack

from json_repl.replay.errors import NothingToReplay, StateUnreachable
from json_repl.replay.evidence import Evidence
from json_repl.replay.executors import ExecutorFactory
from json_repl.replay.plan import PlannedStep
from json_repl.replay.runner import LiveReplay
from json_repl.replay.states import LiveStates
from json_repl.session import Session
from repl_kernel.executor import ShellName
from repl_kernel.timeline import TimelineExecutor


class Landing:
    """Sessions just before and just after the execution of one line; close it, or use it in `with`."""

    def __init__(self, replay: LiveReplay, number: int) -> None:
        """Run what led to line `number`, and the line itself for `after`.

        Raises `NothingToReplay` where there is no such line, `StateUnreachable` where its state can't be had,
        and `WorkerStartFailed`; nothing is left then.
        """
        step = next((each for each in replay.plan.steps if each.line.number == number), None)
        if step is None:
            raise NothingToReplay(replay.recording.path, f"it has no execution in line {number}")
        if step.before is None:
            raise StateUnreachable(step.after, "it starts from a state that is not in the recording")
        self.shell: ShellName = replay.shells.get(step.session_id, "plain")
        """What runs code in both: that of the recording."""
        settings, evidence = replay.settings, Evidence(replay.recording, replay.secrets)
        with ExitStack() as stack:
            factory = stack.enter_context(
                ExecutorFactory(settings.isolation, network=settings.network, shells=replay.shells)
            )
            states = stack.enter_context(LiveStates(replay.plan.steps, factory.open, evidence.code_of))
            self._log_dir = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="json-repl-replay-", ignore_cleanup_errors=True)
            )
            self.before = stack.enter_context(self._session(states.executor_at(step.before), step, replay, 1))
            self.after: Session | None = None
            """`None` where the execution leaves no state: it was skipped, or ends its worker."""
            if step.skip is None:
                try:
                    executor = states.executor_after(step)
                except StateUnreachable:
                    pass
                else:
                    self.after = stack.enter_context(self._session(executor, step, replay, 0))
            self._stack = stack.pop_all()

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End both sessions, and remove what they left; idempotent."""
        self._stack.close()

    def _session(
        self, executor: TimelineExecutor, step: PlannedStep, replay: LiveReplay, back: int
    ) -> Session:
        """A session around an executor, which goes on with the recorded numbers."""
        try:
            session = Session(
                "worker",
                executor=executor,
                log_dir=self._log_dir,
                snapshots="manual",
                isolation=replay.settings.isolation,
                network=replay.settings.network,
                shell=self.shell,
                actor="replay",
            )
        except BaseException:
            executor.close()
            raise
        session._seq = step.line.record.request.seq - back
        return session
