"""A session: one conversation with one namespace, every execution recorded.

front end --> Session.execute --> RecordedExecutor --> executor of the route
"""

from __future__ import annotations

import _thread
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

from json_repl.errors import InvalidRequest, SessionClosed
from json_repl.keeping import Keeping
from json_repl.recorded import RecordedExecutor
from json_repl.session_events import SessionEvents
from json_repl.session_settings import (
    SessionRoute,
    checked_actor,
    checked_kernel,
    checked_limits,
    checked_pass_env,
    checked_preload,
    checked_redact,
    checked_shell,
    route_of,
)
from json_repl.timeline import SnapshotPolicy, Timeline, checked_policy, checked_time_limit
from json_repl.wire import wire_form
from json_repl.work_folder import WorkFolder, checked_isolation
from repl_kernel.errors import ExecutorClosed
from repl_kernel.executor import Executor, OnDisplay, OnInput, OnOutput, ShellName
from repl_kernel.spawn import SpawnedKeeper
from task_logger.codec import timestamp
from task_logger.errors import ConfigurationError
from task_logger.events import SANDBOX_VARIABLE
from task_logger.record import ExecutionRecord, ExecutionRequest, Isolation, TaskIds
from task_logger.secret_search import Secrets
from task_logger.session_log import SessionLog
from task_logger.task import TaskContext, check_settings, current_context, log_path, plan_folder, task_ids
from task_logger.writer import new_session_id

if TYPE_CHECKING:
    from repl_kernel.limits import Limits
    from repl_kernel.probe import Attempt
    from repl_kernel.timeline import TimelineExecutor
    from task_logger.alerts import OnAlert

_NO_TAGS: Mapping[str, object] = {}


class Session(Timeline):
    """One namespace, and the recorded executions in it; may be used from several threads, which take
    turns."""

    _is_closed = True  # until there is something to close

    def __init__(
        self,
        route: SessionRoute | None = None,
        *,
        plan_id: str | None = None,
        task_id: str | None = None,
        task_name: str | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        snapshots: SnapshotPolicy = "auto",
        isolation: Isolation | None = None,
        work_folder: str | os.PathLike[str] | None = None,
        network: bool = False,
        pass_env: Collection[str] = (),
        preload: Collection[str] = (),
        limits: Limits | Mapping[str, Any] | None = None,
        shell: ShellName = "plain",
        actor: str | None = None,
        time_limit_s: float | None = None,
        owns_process: bool = False,
        spawned: SpawnedKeeper | None = None,
        executor: TimelineExecutor | None = None,
        kernel: str | None = None,
        redact: Mapping[str, str | re.Pattern[str]] | Literal[False] | None = None,
    ) -> None:
        """Open the task's log and start the route's executor.

        `None` means from the environment, for `actor` `python`, and for `time_limit_s` no limit. `pass_env`
        names secret-looking environment variables that the worker gets all the same, `preload` modules that
        are imported before the worker is forked, so that it has them at once, after a restart too. With the
        `shell` `ipython` the worker runs code as a notebook does: magics, `!`, displays. In a sandbox
        `work_folder` is the one folder that code can write to, `None` a new one below the plan's; `network`
        lets it use the machine's network. `limits` (a `Limits`, or a mapping with its names) say how much
        code may use, on top of what a sandbox limits anyway. `kernel` goes with `route="jupyter"`: the name
        of a Jupyter kernel to start, or the path of the connection file of one that runs. `redact` names
        secrets, as values or compiled patterns, that are kept out of the log beside those in the environment
        and well-known tokens; `False` keeps everything in it. `owns_process` is for programs of ours,
        `executor` for branches.
        Raises `ConfigurationError` for a setting that makes no sense, `LogPathRefused` where the log can't be
        one (with `TASK_LOG_STRICT=1` any other error of the log too), and `WorkerStartFailed` (where the
        isolation doesn't hold, `IsolationUnavailable`, for a module that can't be preloaded `PreloadFailed`);
        nothing is left then.
        """
        settings = check_settings(log_dir)
        self.session_id = new_session_id()
        self.pool: object = None
        """The pool that this session is of, which lives as long as its sessions, `None` without one."""
        self.task = task_ids(plan_id, task_id, task_name)
        self.log_path = log_path(settings.root, self.task)
        self._settings = settings
        self._actor = checked_actor(actor)
        self._time_limit_s = checked_time_limit(time_limit_s)
        self._turn = _thread.RLock()
        self._owner_pid = os.getpid()
        self._seq = 0
        self._is_executing = False
        self._redact = checked_redact(redact)
        secrets = None if self._redact is False else Secrets(os.environ, self._redact)
        self._keeping = Keeping(settings, self.task, secrets)
        self._events = SessionEvents(settings, self.session_id, self.task, self._keeping.redactor)
        self._contexts: tuple[TaskContext | None, TaskIds, Mapping[str, object]] = (None, self.task, _NO_TAGS)
        chosen = route_of(route)
        self._kernel = checked_kernel(chosen, kernel)
        self._policy = checked_policy(snapshots)
        self.isolation: Isolation = checked_isolation(chosen, isolation)
        self._work = WorkFolder(self.isolation, work_folder, network, self.log_path, self.session_id)
        self.route: SessionRoute = chosen
        self._preload = checked_preload(chosen, preload)
        self.limits = checked_limits(chosen, self.isolation, limits)
        """What was asked for, `None` without any."""
        self._shell = checked_shell(chosen, shell)
        try:
            started: Executor = executor or self._start(chosen, snapshots, pass_env, owns_process, spawned)
        except BaseException:
            self._work.remove_if_empty()
            raise
        self._executor = started
        try:
            self._recorded = RecordedExecutor(started, self._open_log, self._open_log(self.task), self.task)
        except BaseException:
            started.close()
            self._work.remove_if_empty()
            self._events.close()
            raise
        self._is_closed = False
        if chosen == "worker":
            self._attach(cast("TimelineExecutor", started), is_branch=executor is not None)

    def _start(
        self,
        route: SessionRoute,
        snapshots: SnapshotPolicy,
        pass_env: Collection[str],
        owns_process: bool,
        spawned: SpawnedKeeper | None,
    ) -> Executor:
        if route == "worker":
            from repl_kernel.timeline import TimelineExecutor

            return TimelineExecutor(
                snapshots=snapshots,
                isolation=self._work.tier(),
                pass_env=checked_pass_env(pass_env),
                open_spool=self._keeping.open_spool,
                spawned=spawned,
                preload=self._preload,
                limits=self.limits,
                shell=self._shell,
            )
        if route == "jupyter":
            from repl_kernel.jupyter.kernel_executor import KernelExecutor

            return KernelExecutor(self._kernel, task=self.task, open_spool=self._keeping.open_spool)
        from repl_kernel.in_process import LocalExecutor

        return LocalExecutor(
            owns_process=owns_process,
            open_spool=self._keeping.open_spool,
            open_capture=self._keeping.open_capture,
        )

    def execute(
        self,
        code: str,
        *,
        time_limit_s: float | None = None,
        tags: Mapping[str, object] | None = None,
        atomic: bool = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionRecord:
        """Run code and return its record, once its line is in the log.

        `time_limit_s` of `None` means the session's own. `on_output` gets output as it is written,
        `on_display` what a shell that displays shows, `on_input` answers `input()`; without it `input()`
        raises `EOFError` in the code. What the code does is never raised. Raises `InvalidRequest` before
        anything has run, `SessionClosed`, a KeyboardInterrupt of the
        caller's once the line is written, and with `TASK_LOG_STRICT=1` the log's own errors.
        """
        if type(code) is not str:
            raise InvalidRequest("code", f"must be a text, not a {type(code).__name__}")
        limit_s = self._time_limit_s if time_limit_s is None else checked_time_limit(time_limit_s)
        if atomic:
            self._require_timeline("atomic")
        with self._turn:
            if self._is_closed:
                raise SessionClosed
            if self._is_executing:
                self._require_idle("execute")
            request = self._request(code, limit_s, tags, may_ask=on_input is not None, atomic=atomic)
            self._is_executing = True
            token = self._events.enter(request) if self.route == "local" else None
            try:
                record = self._recorded.record(request, on_output, on_input, on_display)
            except ExecutorClosed as exc:
                raise SessionClosed(str(exc)) from exc
            finally:
                self._is_executing = False
                if token is not None:
                    self._events.leave(token)
            return self._events.noticed(record) if self._events.notices else record

    def _request(
        self,
        code: str,
        limit_s: float | None,
        tags: Mapping[str, object] | None,
        *,
        may_ask: bool = False,
        atomic: bool = False,
    ) -> ExecutionRequest:
        """The next request of this session."""
        context = current_context()
        task, all_tags = self.task, _NO_TAGS
        if context is not None:
            task, all_tags = self._in_context(context)
        if self._shell != "plain":
            all_tags = {"shell": self._shell, **all_tags}
        if tags:
            all_tags = {**all_tags, **_checked_tags(tags)}
        self._seq += 1
        return ExecutionRequest(
            code=code,
            session_id=self.session_id,
            seq=self._seq,
            task=task,
            timestamp=timestamp(time.time_ns()),
            tags=all_tags,
            time_limit_s=limit_s,
            allow_input=may_ask,
            atomic=atomic,
            actor=self._actor,
        )

    def execute_code(
        self,
        code: str,
        *,
        time_limit_s: float | None = None,
        tags: Mapping[str, object] | None = None,
        atomic: bool = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> dict[str, Any]:
        """Run code and return the wire form of what came of it; see `execute`."""
        record = self.execute(
            code,
            time_limit_s=time_limit_s,
            tags=tags,
            atomic=atomic,
            on_output=on_output,
            on_input=on_input,
            on_display=on_display,
        )
        return wire_form(record, self.log_path)

    def interrupt(self) -> bool:
        """Interrupt the running execution, from any thread; returns false where none runs."""
        return not self._is_closed and self._recorded.interrupt()

    def restart(self) -> None:
        """Empty the namespace; the session, and its numbering, go on. Waits for a running execution."""
        with self._turn:
            self._require_open()
            self._require_idle("restart")
            self._recorded.restart()

    def variables(self) -> list[dict[str, object]]:
        """Describe the variables: `name`, `type`, `shape` or `length`, `bytes`, `preview` of each,
        sorted by name."""
        with self._turn:
            self._require_open()
            self._require_idle("variables")
            return [dict(variable) for variable in self._recorded.variables()]

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        """What can be typed at the cursor, in code points: the content of Jupyter's `complete_reply`.

        Takes a second at most, once it has its turn; nothing of it is recorded. Raises `InvalidRequest`, and
        `CannotFork` where the worker can't be copied for it.
        """
        with self._turn:
            self._require_question("complete", code, cursor)
            return dict(self._recorded.complete(code, cursor))

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> dict[str, Any]:
        """What is known of the object under the cursor, with `detail_level` 1 its source too: the content of
        Jupyter's `inspect_reply`. As `complete`."""
        with self._turn:
            self._require_question("inspect", code, cursor)
            if isinstance(detail_level, bool) or detail_level not in (0, 1):
                raise InvalidRequest("detail_level", f"must be 0 or 1, not {detail_level!r}")
            return dict(self._recorded.inspect(code, cursor, detail_level))

    def _require_question(self, name: str, code: str, cursor: int) -> None:
        """Raise where `complete` and `inspect` can't be asked, or not this."""
        self._require_open()
        self._require_idle(name)
        if type(code) is not str:
            raise InvalidRequest("code", f"must be a text, not a {type(code).__name__}")
        if isinstance(cursor, bool) or not isinstance(cursor, int) or not 0 <= cursor <= len(code):
            raise InvalidRequest(
                "cursor", f"must be from 0 to {len(code)}, the code's length in code points, not {cursor!r}"
            )

    @property
    def last_seq(self) -> int:
        """The number of the newest execution, 0 before the first."""
        return self._seq

    @property
    def work_folder(self) -> str | None:
        """The folder that a sandboxed worker can write to, `None` without a sandbox."""
        return self._work.path

    @property
    def isolation_probe(self) -> tuple[Attempt, ...]:
        """What the worker tried in vain before any code ran: `name`, `denied`, `detail` of each attempt."""
        return cast("TimelineExecutor", self._executor).isolation_probe if self.route == "worker" else ()

    def on_alert(self, callback: OnAlert) -> Callable[[], None]:
        """Have `callback` called with each alert of this session, at once, by the thread where it comes up.

        Alerts are of the log that can't be written, of workers that died, of events that are dropped, and of
        `task_logger.alert(…)` for a task of this session. What `callback` raises is named on stderr. Returns
        what ends the subscription. Raises `InvalidRequest` for what can't be called.
        """
        if not callable(callback):
            raise InvalidRequest("callback", f"must be a function that takes an alert, not {callback!r}")
        return self._events.subscribe(callback)

    def redact(self, name: str, secret: str | re.Pattern[str]) -> None:
        """Keep a value, or what a compiled pattern matches, out of the log from now on.

        In its place stands `⟨secret:NAME:tag⟩`. What is in the log already stays. Raises `ConfigurationError`
        for a value of less than 4 characters, a pattern that matches nothing, and with `redact=False`.
        """
        with self._turn:
            self._require_open()
            if self._keeping.secrets is None or self._redact is False:
                raise ConfigurationError("redact", "is off for this session: it was made with redact=False")
            self._keeping.secrets.add(name, secret)
            self._redact[name] = secret

    def artifact(self, source: str | os.PathLike[str] | bytes, mime: str | None = None) -> dict[str, object]:
        """Keep a file, or bytes, with the log: whole, once, and without its secrets.

        Returns the reference: `field` (its name), `sha256`, `bytes`, `mime`; a `mime` of `None` is guessed
        from the name. Raises `InvalidRequest`, `OSError` where the file can't be read, `ArtifactNotStored`.
        """
        from json_repl.user_artifacts import keep_artifact

        self._require_open()
        context = current_context()
        task, tags = (self.task, _NO_TAGS) if context is None else self._in_context(context)
        return keep_artifact(
            source,
            mime,
            plan_folder=plan_folder(self._settings.root, task.plan_id),
            settings=self._settings,
            redactor=self._keeping.redactor(task),
            events=self._events.of(task),
            tags=tags,
        )

    def history(self, last: int | None = None) -> list[dict[str, Any]]:
        """The lines of this session in its task's log, oldest first; `last` bounds them to the
        newest ones. Raises `InvalidRequest` where it is no number of lines."""
        from json_repl.history import session_lines

        is_number = isinstance(last, int) and not isinstance(last, bool)
        if last is not None and (not is_number or not 0 <= last < 1 << 63):
            raise InvalidRequest("last", f"must be a number of lines, or None for all, not {last!r}")
        with self._turn:
            self._require_open()
            return session_lines(self.log_path, self.session_id, last, self._settings.key)

    def close(self) -> None:
        """Interrupt what runs, end the worker and all it started, close the log; idempotent.

        Raises `InvalidRequest` from a callback of an execution, which is interrupted all the same.
        """
        if self._is_closed:
            return
        if os.getpid() != self._owner_pid:  # a fork of the host: a thread that isn't here may hold the lock
            self._is_closed = True
            self._recorded.close()
            self._events.close()
            return
        self._recorded.interrupt()
        with self._turn:
            if not self._is_closed:
                self._require_idle("close")
                self._is_closed = True
                self._recorded.close()
                self._events.close()
                self._work.remove_if_empty()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _branch_settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "plan_id": self.task.plan_id,
            "task_id": self.task.task_id,
            "task_name": self.task.task_name,
            "log_dir": self._settings.root,
            "snapshots": self._policy,
            "isolation": self.isolation,
            "work_folder": self._work.path,
            "network": self._work.network,
            "limits": self.limits,
            "shell": self._shell,
            "actor": self._actor,
            "time_limit_s": self._time_limit_s,
            "redact": self._redact,
        }

    def _require_open(self) -> None:
        if self._is_closed:
            raise SessionClosed
        if os.getpid() != self._owner_pid:
            raise SessionClosed(f"the session belongs to process {self._owner_pid}; start one in this one")

    def _require_idle(self, name: str) -> None:
        """Raise where this thread, which has the turn, is in the middle of an execution: in a callback, or in
        the executed code; the lock lets it in again."""
        if self._is_executing:
            raise InvalidRequest(name, "was called from within an execution of the same session")

    def _attach(self, executor: TimelineExecutor, *, is_branch: bool) -> None:
        """Let the worker know where the logs are; have its death told, and its isolation's proof kept."""
        executor.environment = {"TASK_LOG_DIR": self._settings.root}
        if self.isolation == "sandbox":
            executor.environment[SANDBOX_VARIABLE] = "1"
        executor.on_death = self._events.worker_died  # (not of `self`: an unused session must end)
        if executor.isolation_probe and not is_branch:
            self._events.isolation_held(self.isolation, executor.isolation_probe)

    def _open_log(self, task: TaskIds) -> SessionLog:
        return self._keeping.open_log(
            task,
            session_id=self.session_id,
            route=self.route,
            isolation=self.isolation,
            on_alert=self._events.log_alert(task),
        )

    def _in_context(self, context: TaskContext) -> tuple[TaskIds, Mapping[str, object]]:
        """Ids and tags in force; the same ids as last time are the same object, so that nothing is
        looked up."""
        known, task, tags = self._contexts
        if context is not known:
            changed = context.task_ids(self.task)
            task = task if changed == task else self.task if changed == self.task else changed
            tags = context.tags
            self._contexts = (context, task, tags)
        return task, tags


def _checked_tags(tags: Mapping[str, object]) -> Mapping[str, object]:
    if not isinstance(tags, Mapping) or not all(isinstance(name, str) for name in tags):
        raise InvalidRequest("tags", "must be a mapping from names to JSON values")
    return tags
