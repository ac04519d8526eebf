"""The states of a replay: each step runs in the state that it was recorded in, or not at all.

step -> the executor of its session, in the state `before` -> execute -> outcome
             | it is live                     -> as it is
             | it is another one of its own   -> rewind to the copy that was kept
             | it is another session's        -> a branch of that one's executor
             +-> no copy is left              -> what led there is run again in a new executor

Which states are needed again is known from the plan, so that only these are kept. Executions keep the numbers
that they were recorded with: tracebacks show them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from json_repl.replay.errors import StateUnreachable
from json_repl.replay.plan import PlannedStep, empty_state, session_of
from repl_kernel.errors import KernelError, SnapshotGone, SnapshotLost, SnapshotRefused
from repl_kernel.timeline import TimelineExecutor
from task_logger.record import ExecutionError, ExecutionOutcome, ExecutionRequest, TaskIds

OpenExecutor = Callable[[str], TimelineExecutor]
"""Makes an executor with an empty namespace, for the session with that id."""

CodeOf = Callable[[PlannedStep], str]
"""Gives all of the code of a step."""


@dataclass(slots=True)
class _Live:
    """An executor of one session, and which state is live in it; `None`: nobody knows."""

    executor: TimelineExecutor
    origin: str
    state: str | None


@dataclass(slots=True)
class _Uses:
    """How often each state is still started from, and each session still needed."""

    states: Counter[str] = field(default_factory=Counter)
    sessions: Counter[str] = field(default_factory=Counter)

    def add(self, step: PlannedStep, count: int) -> None:
        if step.skip is None and step.before is not None:
            self.states[step.before] += count
            for session_id in {step.session_id, session_of(step.before)}:
                self.sessions[session_id] += count


class LiveStates:
    """Runs the steps of a plan, in their order; close it, or use it in `with`."""

    def __init__(self, steps: Sequence[PlannedStep], open_executor: OpenExecutor, code_of: CodeOf) -> None:
        self._open_executor = open_executor
        self._code_of = code_of
        self._by_name = {step.after: step for step in steps if step.skip is None}
        self._origins = _origins(steps)
        self._lives: dict[str, _Live] = {}
        self._tasks: dict[TaskIds, TaskIds] = {}
        self._uses = _Uses()
        self.rebuilt = 0
        """How many executions were run again to reach a state that no copy was left of."""
        for step in steps:
            self._uses.add(step, 1)
        self._next = _next_in_session(steps)

    def __enter__(self) -> LiveStates:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End all executors."""
        while self._lives:
            self._lives.popitem()[1].executor.close()

    def run(self, step: PlannedStep, time_limit_s: float | None = None) -> ExecutionOutcome:
        """Run a step in the state that it starts from, and return what came of it.

        Raises `StateUnreachable`; nothing has run then. What the step needs no more is let go.
        """
        self._uses.add(step, -1)
        live = self._reach(step)
        outcome = self._execute(live, step, time_limit_s)
        if live.state is not None and self._is_kept(step, live.state):
            self._keep(live)
        return outcome

    def let_go(self) -> None:
        """End the executors of sessions that nothing needs any more."""
        for session_id in [each for each in self._lives if not self._uses.sessions[each]]:
            self._lives.pop(session_id).executor.close()

    def interrupt(self) -> None:
        """Interrupt what runs."""
        for live in list(self._lives.values()):
            live.executor.interrupt()

    def executor_at(self, state: str) -> TimelineExecutor:
        """Another executor, in which a state is live; the caller closes it. Raises `StateUnreachable`."""
        return self._rebuild(session_of(state), state).executor

    def executor_after(self, step: PlannedStep) -> TimelineExecutor:
        """Another executor, in which a step was run in its state; as `executor_at`."""
        assert step.before is not None
        live = self._rebuild(session_of(step.before), step.before)
        try:
            self._run_again(live, [step], step.after)
        except BaseException:
            live.executor.close()
            raise
        return live.executor

    def _reach(self, step: PlannedStep) -> _Live:
        assert step.before is not None
        live = self._lives.get(step.session_id)
        if live is None:
            origin = self._origins.get(step.session_id, empty_state(step.session_id))
            live = self._lives[step.session_id] = self._begin(step.session_id, origin)
            if live.origin != empty_state(step.session_id) and self._uses.states[live.origin]:
                self._keep(live)
        elif live.state == step.before:
            return live
        if live.state != step.before and not self._go_back(live, step):
            live = self._lives[step.session_id] = self._rebuild(step.session_id, step.before)
            if self._uses.states[step.before]:
                self._keep(live)
        return live

    def _begin(self, session_id: str, origin: str) -> _Live:
        """An executor for a session, in the state that it began with, or with an empty namespace."""
        if origin == empty_state(session_id):
            return _Live(self._open_executor(session_id), origin, origin)
        other = session_of(origin)
        parent = self._lives.get(other)
        if parent is not None:
            branch = self._branch(parent, origin)
            if branch is not None:
                return branch
        parent = self._rebuild(other, origin)
        try:
            branch = self._branch(parent, origin)
        finally:
            parent.executor.close()
        if branch is None:
            raise StateUnreachable(origin, "it can't be copied")
        return branch

    def _branch(self, parent: _Live, origin: str) -> _Live | None:
        session_id, _, seq = origin.rpartition(":")
        try:
            return _Live(parent.executor.branch(int(seq), session_id), origin, origin)
        except (SnapshotGone, SnapshotLost, SnapshotRefused):
            return None

    def _go_back(self, live: _Live, step: PlannedStep) -> bool:
        """Make the state that a step starts from live; false where no copy of it is left."""
        session_id, before = step.session_id, step.before
        assert before is not None
        if before == live.origin:
            seq = 0
        elif session_of(before) == session_id and before != empty_state(session_id):
            seq = int(before.rpartition(":")[2])
        else:
            self._lives.pop(session_id).executor.close()
            return False
        try:
            if before == empty_state(session_id) and not self._needs_others(session_id, before):
                live.executor.restart()  # as it was, most likely; it ends the programs that were started, too
            else:
                live.executor.rewind(seq)
        except (SnapshotGone, SnapshotLost):
            self._lives.pop(session_id).executor.close()
            return False
        live.state = before
        return True

    def _rebuild(self, session_id: str, state: str) -> _Live:
        """Another executor of a session, in which a state is live: what led there is run again."""
        origin = self._origins.get(session_id, empty_state(session_id))
        path: list[PlannedStep] = []
        name = state
        while name not in (origin, empty_state(session_id)):
            step = self._by_name.get(name)
            if step is None or step.before is None or len(path) > len(self._by_name):
                raise StateUnreachable(state, f"{name} was not run")
            path.append(step)
            name = step.before
        live = self._begin(session_id, name)
        try:
            self._run_again(live, path[::-1], state)
        except BaseException:
            live.executor.close()
            raise
        return live

    def _run_again(self, live: _Live, path: Sequence[PlannedStep], state: str) -> None:
        for step in path:
            self.rebuilt += 1
            self._execute(live, step, None)
            if live.state != step.leaves:
                raise StateUnreachable(state, f"line {step.line.number} now ends the worker")

    def _execute(self, live: _Live, step: PlannedStep, time_limit_s: float | None) -> ExecutionOutcome:
        recorded = step.line.record
        request = ExecutionRequest(
            code=self._code_of(step),
            session_id=step.session_id,
            seq=recorded.request.seq,
            task=self._tasks.setdefault(recorded.request.task, recorded.request.task),
            timestamp=recorded.request.timestamp,
            tags=recorded.request.tags,
            time_limit_s=time_limit_s,
            atomic=recorded.outcome.rolled_back,
            actor=recorded.request.actor,
        )
        before = live.state
        live.state = None  # until it is known
        try:
            outcome = live.executor.execute(request)
        except KernelError as exc:
            live.state = before
            return _not_run(live.executor, exc)
        if outcome.rolled_back:
            live.state = before
        elif not _has_died(outcome):
            live.state = step.after
        return outcome

    def _keep(self, live: _Live) -> None:
        """Keep the live state; where it can't be copied, what led there will be run again."""
        try:
            live.executor.snapshot()
        except KernelError:
            pass

    def _is_kept(self, step: PlannedStep, state: str) -> bool:
        """Whether a state is needed again after the next step of its session has changed it."""
        following = self._next.get(step.line.number)
        uses = self._uses.states[state]
        return uses > 1 or (uses == 1 and (following is None or following.before != state))

    def _needs_others(self, session_id: str, state: str) -> bool:
        """Whether a state of this session other than that one is started from later."""
        return any(
            count > 0 and name != state and session_of(name) == session_id and name in self._by_name
            for name, count in self._uses.states.items()
        )


def _origins(steps: Sequence[PlannedStep]) -> dict[str, str]:
    """The state that each session began with, where that is another session's."""
    origins: dict[str, str] = {}
    seen: set[str] = set()
    for step in steps:
        if step.skip is None and step.session_id not in seen:
            seen.add(step.session_id)
            if step.before is not None and session_of(step.before) != step.session_id:
                origins[step.session_id] = step.before
    return origins


def _next_in_session(steps: Sequence[PlannedStep]) -> dict[int, PlannedStep]:
    """For each line that is run, the next one of its session that is."""
    following: dict[int, PlannedStep] = {}
    last: dict[str, int] = {}
    for step in steps:
        if step.skip is None:
            if step.session_id in last:
                following[last[step.session_id]] = step
            last[step.session_id] = step.line.number
    return following


def _has_died(outcome: ExecutionOutcome) -> bool:
    """Whether the worker died in it, so that another state is live now."""
    error = outcome.error
    return outcome.status == "crashed" or (
        error is not None and (error.signal is not None or error.exit_code is not None)
    )


def _not_run(executor: TimelineExecutor, exc: KernelError) -> ExecutionOutcome:
    """An outcome for what could not be run, as a session records it."""
    kind, message = type(exc).__name__, str(exc)
    text = f"{kind}: {message}\n"
    return ExecutionOutcome(
        status="error",
        route=executor.route,
        isolation=executor.isolation,
        elapsed_ms=0.0,
        stderr=text,
        error=ExecutionError(type=kind, message=message, traceback=text),
    )
