"""Sessions that are ready at once: their libraries are loaded once, and their workers forked in advance.

SessionPool --> zygote: imports once --fork--> keeper + worker, keeper + worker, …   (`size` of them wait)
    session() --> who waits longest becomes a Session's; the zygote is asked for another, and not waited for
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Mapping
from threading import Lock
from types import TracebackType
from typing import Any

from json_repl.errors import PoolClosed
from json_repl.limiting import checked_limits
from json_repl.preloading import checked_pass_env, checked_preload
from json_repl.session import Session
from json_repl.session_settings import checked_actor, checked_redact, checked_shell
from json_repl.timeline import checked_policy, checked_time_limit
from repl_kernel.errors import CannotFork, IsolationUnavailable, PreloadFailed, WorkerStartFailed
from repl_kernel.isolation import worker_environment
from repl_kernel.spawn import SpawnedKeeper
from repl_kernel.zygote_link import ZygoteLink
from task_logger.errors import ConfigurationError
from task_logger.record import Isolation
from task_logger.secret_search import Secrets
from task_logger.task import log_root, task_ids

MAX_SIZE = 256
"""Each that waits is two processes, and holds five descriptors here."""

_OF_THE_POOL = frozenset(("isolation", "pass_env", "preload", "route", "shell"))
"""Settings that are those of processes which are there before a session is."""

_OF_A_SESSION = frozenset(
    ("plan_id", "task_id", "task_name", "log_dir", "snapshots", "limits", "actor", "time_limit_s", "redact")
)
"""Settings that each session of a pool can have to itself."""


class SessionPool:
    """Warm sessions on the worker route; a context manager, usable from several threads.

    `size` sessions wait ready, each in processes of its own: what one does, and how it ends, is nothing to
    the others. `preload` names the modules that are imported before. All else is as for `Session`, and holds
    for every session that `session()` doesn't ask otherwise for. Raises `ConfigurationError`, as `Session`
    does, `PreloadFailed` (it names the module), and `WorkerStartFailed`; nothing is left then.
    """

    def __init__(
        self, size: int = 2, *, preload: Collection[str] = (), pass_env: Collection[str] = (), **settings: Any
    ) -> None:
        self._is_closed = True  # until there is something to close
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
            raise ConfigurationError("size", f"must be a number from 1 to {MAX_SIZE}, not {size!r}")
        self._size = size
        self._isolation = _checked_isolation(settings)
        self._preload = checked_preload("worker", preload)
        self._pass_env = checked_pass_env(pass_env)
        self._shell = checked_shell("worker", settings.pop("shell", "plain"))
        _check_settings(settings, self._isolation)
        self._settings = settings
        self._lock = Lock()
        self._owner_pid = os.getpid()
        self._given_out: weakref.WeakSet[Session] = weakref.WeakSet()
        self._waiting: list[SpawnedKeeper] = []
        """Taken back from sessions that could not begin."""
        self._zygote = self._start_zygote()
        self._is_closed = False

    def session(self, **overrides: Any) -> Session:
        """A session that is ready at once; the caller closes it.

        `overrides` are settings of `Session` (ids, `log_dir`, `actor`, `time_limit_s`, `snapshots`) for this
        one alone. Raises as `Session` does, and `PoolClosed`.
        """
        for name in _OF_THE_POOL & overrides.keys():
            raise ConfigurationError(name, "is that of the whole pool: its workers are there already")
        _check_names(overrides)
        if os.getpid() != self._owner_pid:
            raise PoolClosed(f"the pool belongs to process {self._owner_pid}; make one in this process")
        for spares in reversed(range(self._size + 1)):
            try:
                session = self._begin({**self._settings, **overrides})
                break
            except (CannotFork, IsolationUnavailable, PreloadFailed):
                raise
            except WorkerStartFailed:  # it died while it waited
                if not spares:
                    raise
        session.pool = self
        with self._lock:
            if not self._is_closed:
                self._given_out.add(session)
                return session
        session.close()
        raise PoolClosed

    def _begin(self, settings: dict[str, Any]) -> Session:
        with self._lock:
            if self._is_closed:
                raise PoolClosed
            keeper = self._take_keeper()
        try:
            return Session(
                "worker",
                isolation=self._isolation,
                pass_env=self._pass_env,
                preload=self._preload,
                shell=self._shell,
                spawned=keeper,
                **settings,
            )
        except BaseException:
            self._take_back(keeper)
            raise

    def close(self) -> None:
        """End the pool, and all sessions that it gave out and that are still open; idempotent."""
        if self._is_closed:
            return
        if os.getpid() != self._owner_pid:  # a fork of the host: the processes aren't its to end
            self._is_closed = True  # without the lock, which a thread that isn't here may have held
            self._zygote.abandon()
            return
        with self._lock:
            self._is_closed = True
            given_out, waiting = list(self._given_out), self._waiting
            self._waiting = []
        for session in given_out:
            session.close()
        for keeper in waiting:
            keeper.control.close()
            keeper.ends.close()
        self._zygote.end()

    def __enter__(self) -> SessionPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _start_zygote(self) -> ZygoteLink:
        environment = worker_environment(os.environ, frozenset(self._pass_env), self._isolation)
        zygote = ZygoteLink.start(environment, self._preload, self._isolation, shell=self._shell)
        try:
            self._refill(zygote)
        except BaseException:
            zygote.end()
            raise
        return zygote

    def _refill(self, zygote: ZygoteLink) -> None:
        while zygote.requested < self._size:
            zygote.request_keeper()

    def _take_keeper(self) -> SpawnedKeeper:
        """The keeper that waits longest; where the zygote has died, one of another zygote."""
        if self._waiting:
            return self._waiting.pop()
        try:
            if not self._zygote.requested:  # they were refused before
                self._refill(self._zygote)
            keeper = self._zygote.take_keeper()
        except CannotFork:
            raise
        except WorkerStartFailed:
            self._zygote.end()
            self._zygote = self._start_zygote()
            keeper = self._zygote.take_keeper()
        try:
            self._refill(self._zygote)
        except WorkerStartFailed:
            pass  # who finds none waiting asks again, and is told what is wrong
        return keeper

    def _take_back(self, keeper: SpawnedKeeper) -> None:
        """Keep what no session took: then its control socket is still open."""
        with self._lock:
            if keeper.control.fileno() < 0:
                return
            if not self._is_closed:
                self._waiting.append(keeper)
                return
        keeper.control.close()
        keeper.ends.close()


def _check_settings(settings: Mapping[str, Any], isolation: Isolation) -> None:
    """Raise, before anything is started, what every session would."""
    _check_names(settings)
    given = {name: value for name, value in settings.items() if value is not None}
    task_ids(given.get("plan_id"), given.get("task_id"), given.get("task_name"))
    log_root(given.get("log_dir"))
    checked_policy(settings.get("snapshots", "auto"))
    checked_limits("worker", isolation, given.get("limits"))
    checked_actor(given.get("actor"))
    checked_time_limit(given.get("time_limit_s"))
    if redact := checked_redact(given.get("redact")):
        Secrets({}, redact)


def _check_names(settings: Mapping[str, Any]) -> None:
    for name in sorted(settings.keys() - _OF_A_SESSION):
        known = ", ".join(sorted(_OF_A_SESSION))
        raise ConfigurationError(name, f"is no setting of a pool's sessions; those are {known}")


def _checked_isolation(settings: dict[str, Any]) -> Any:
    if settings.pop("route", "worker") not in ("worker", None):
        raise ConfigurationError("route", "must be 'worker' in a pool")
    isolation = settings.pop("isolation", None) or "process"
    if isolation == "sandbox":
        raise ConfigurationError(
            "isolation",
            "'sandbox' would put all sessions of a pool into one; "
            "use Session(preload=…, isolation='sandbox') for each",
        )
    if isolation not in ("none", "process"):
        raise ConfigurationError("isolation", f"must be 'process' or 'none' in a pool, not {isolation!r}")
    return isolation
