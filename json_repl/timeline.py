"""The timeline of a session: states that are kept, gone back to, branched from, tried out.

Part of `Session`; all of it needs `route="worker"`, since it works on frozen copies of the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, cast

from json_repl.errors import InvalidRequest
from json_repl.recorded import RecordedExecutor
from json_repl.session_events import SessionEvents
from json_repl.wire import wire_form
from repl_kernel.errors import SnapshotRefused
from repl_kernel.executor import Executor
from task_logger.errors import ConfigurationError
from task_logger.record import ExecutionOutcome, ExecutionRecord, ExecutionRequest, TaskIds

if TYPE_CHECKING:
    from json_repl.session import Session
    from json_repl.work_folder import WorkFolder
    from repl_kernel.timeline import TimelineExecutor

SnapshotPolicy = Literal["auto", "manual", "off"]


class Timeline:
    """What a session can do with the states of its namespace."""

    session_id: str
    log_path: str
    task: TaskIds
    route: str
    pool: object
    _turn: AbstractContextManager[object]
    _executor: Executor
    _recorded: RecordedExecutor
    _events: SessionEvents
    _policy: SnapshotPolicy
    _work: WorkFolder
    _time_limit_s: float | None

    def snapshots(self) -> list[dict[str, object]]:
        """The states that are kept, oldest first.

        `seq`: the execution it is the state after; `age_s`; `extra_bytes`: what it holds for itself, at most;
        `descriptors`: what was open then, in words.
        """
        with self._turn:
            return self._require_timeline("snapshots").snapshots()

    def snapshot(self) -> dict[str, int]:
        """Keep the live state now; returns its `seq`. Raises `SnapshotRefused`, with the reason."""
        with self._turn:
            return {"seq": self._require_idle_timeline("snapshot").snapshot()}

    def ensure_snapshot(self) -> bool:
        """Have the live state kept, where it isn't yet; returns false where the worker can't be copied."""
        with self._turn:
            try:
                self._require_idle_timeline("snapshot").ensure_snapshot()
            except SnapshotRefused:
                return False
            return True

    def record_command(
        self, code: str, run: Callable[[], ExecutionOutcome], *, tags: Mapping[str, object] | None = None
    ) -> ExecutionRecord:
        """Record what a front end does itself, `run`, as an execution of `code`, with a number and a line.

        What `run` raises is raised, once the line that says so is written.
        """
        with self._turn:
            self._require_open()
            request = self._request(code, None, tags)
            return self._recorded.record_all([request], lambda _: [run()])[0]

    def rewind(self, seq: int) -> dict[str, object]:
        """Make the state after execution `seq` the live one; returns `seq` and `notices`.

        Numbering goes on. Raises `SnapshotGone`, which names the nearest state that is kept, `SnapshotLost`;
        nothing has changed then.
        """
        with self._turn:
            notices = self._require_idle_timeline("rewind").rewind(_checked_seq(seq))
            return {"seq": seq, "notices": list(notices)}

    def branch(self, seq: int, *, reseed: bool = False) -> Session:
        """A new session whose namespace begins with the state after execution `seq`; the caller closes it.

        Both go on independently, with the same random state unless `reseed`. Raises as `rewind`.
        """
        from json_repl.session import Session

        if not isinstance(reseed, bool):
            raise InvalidRequest("reseed", f"must be true or false, not {reseed!r}")
        with self._turn:
            timeline = self._require_idle_timeline("branch")
            executor = timeline.branch(_checked_seq(seq), self.session_id, reseed=reseed)
            try:
                branch = Session(executor=executor, **self._branch_settings())
            except BaseException:
                executor.close()  # again, where the session has begun: it shares this one's keeper
                raise
            branch._work = self._work.shared()
            branch.pool = self.pool
            return branch

    def speculate(
        self,
        codes: Sequence[str],
        *,
        time_limit_s: float | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> list[dict[str, Any]]:
        """Run each piece of code in a copy of the live state, all at once; returns their wire forms.

        The live state stays as it is until one is adopted. Raises `SnapshotRefused` where it can't be copied;
        nothing has run then, and the line of each says so.
        """
        is_list = isinstance(codes, Sequence) and not isinstance(codes, str)
        if not is_list or not codes or not all(type(code) is str for code in codes):
            raise InvalidRequest("codes", "must be a list of at least one text")
        limit_s = self._time_limit_s if time_limit_s is None else checked_time_limit(time_limit_s)
        with self._turn:
            executor = self._require_idle_timeline("speculate")
            requests = [self._request(code, limit_s, tags) for code in codes]
            records = self._recorded.record_all(requests, executor.speculate)
            if self._events.notices:
                records[0] = self._events.noticed(records[0])
            return [wire_form(record, self.log_path) for record in records]

    def adopt(self, index: int) -> None:
        """Make the state of candidate `index` of the last `speculate` the live one."""
        if isinstance(index, bool) or not isinstance(index, int):
            raise InvalidRequest("index", f"must be the number of a candidate, from 0, not {index!r}")
        with self._turn:
            self._require_idle_timeline("adopt").adopt(index)

    def discard(self) -> None:
        """Let all candidates of the last `speculate` go."""
        with self._turn:
            self._require_idle_timeline("discard").discard()

    def _require_timeline(self, name: str) -> TimelineExecutor:
        self._require_open()
        if self.route != "worker":
            raise InvalidRequest(name, f"needs route='worker': the {self.route} route can't be copied")
        return cast("TimelineExecutor", self._executor)

    def _require_idle_timeline(self, name: str) -> TimelineExecutor:
        timeline = self._require_timeline(name)
        self._require_idle(name)
        return timeline

    def _branch_settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def _require_open(self) -> None:
        raise NotImplementedError

    def _require_idle(self, name: str) -> None:
        raise NotImplementedError

    def _request(
        self, code: str, limit_s: float | None, tags: Mapping[str, object] | None
    ) -> ExecutionRequest:
        raise NotImplementedError


def checked_policy(policy: str) -> SnapshotPolicy:
    """The policy; raises `ConfigurationError` for one that there isn't."""
    if policy not in ("auto", "manual", "off"):
        raise ConfigurationError("snapshots", f"must be 'auto', 'manual' or 'off', not {policy!r}")
    return cast(SnapshotPolicy, policy)


def checked_time_limit(time_limit_s: float | None) -> float | None:
    """The time limit in seconds, `None` without one; raises `InvalidRequest` for what can't be one."""
    if time_limit_s is None:
        return None
    if (
        isinstance(time_limit_s, bool)
        or not isinstance(time_limit_s, (int, float))
        or not 0 < time_limit_s < 1e9
    ):
        raise InvalidRequest(
            "time_limit_s", f"must be a number of seconds above 0, below 1e9, or None, not {time_limit_s!r}"
        )
    return float(time_limit_s)


def _checked_seq(seq: int) -> int:
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        raise InvalidRequest("seq", f"must be the number of an execution, not {seq!r}")
    return seq
