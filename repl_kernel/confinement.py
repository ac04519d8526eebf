"""How the workers of one namespace are confined: started so, and proven to be so before any code runs.

Confinement.spawn --> keeper (in a sandbox: below bwrap) --> worker
Confinement.prove --probe--> worker --attempts--> all denied? kept : IsolationUnavailable
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from repl_kernel.errors import IsolationUnavailable, LimitUnavailable, SandboxUnavailable, WorkerStartFailed
from repl_kernel.executor import ShellName
from repl_kernel.isolation import worker_environment
from repl_kernel.spawn import Launcher, SpawnedKeeper, spawn_keeper
from repl_kernel.worker_link import WorkerLink
from task_logger.record import Isolation

if TYPE_CHECKING:
    from repl_kernel.probe import Attempt
    from repl_kernel.sandbox import Sandbox

_PROBE_LIMIT_S = 20.0
_PROBE_ID = 0
_NO_ANSWER = "the worker did not answer the probe of its isolation"
_BROKEN_FIX = "json-repl doctor shows every attempt; use another isolation until this one holds"


class Confinement:
    """The isolation of one namespace's workers, and which secret-looking variables they may have."""

    def __init__(
        self,
        tier: Literal["none", "process"] | Sandbox,
        pass_env: Collection[str],
        preload: Sequence[str] = (),
        shell: ShellName = "plain",
    ) -> None:
        self._sandbox = None if isinstance(tier, str) else tier
        self.isolation: Isolation = tier if isinstance(tier, str) else "sandbox"
        self._pass_env = frozenset(pass_env)
        self._preload = preload
        self._shell: ShellName = shell

    def spawn(self) -> SpawnedKeeper:
        """Start a keeper; raises `WorkerStartFailed`, in a sandbox `SandboxUnavailable`."""
        environment = worker_environment(os.environ, self._pass_env, self.isolation)
        if self._sandbox is None:
            return self._spawn(environment)
        launcher = self._sandbox.launcher()
        try:
            spawned = self._spawn(self._sandbox.environment(environment), launcher)
            # Meanwhile: what `prove` needs soon, and what the worker could compile, but not keep compiled.
            import repl_kernel.escapes
            import repl_kernel.outside  # noqa: F401

            return spawned
        finally:
            for fd in launcher.fds:
                os.close(fd)

    def _spawn(self, environment: Mapping[str, str], launcher: Launcher | None = None) -> SpawnedKeeper:
        if not self._preload:
            return spawn_keeper(environment, self.isolation, launcher, self._shell)
        from repl_kernel.zygote_link import ZygoteLink

        return ZygoteLink.start(
            environment, self._preload, self.isolation, launcher, self._shell
        ).become_keeper()

    def explained(self, failure: WorkerStartFailed) -> WorkerStartFailed:
        """A failed start, with the layer that is to blame where one is."""
        if self._sandbox is None:
            return failure
        from repl_kernel.sandbox import explained

        return explained(failure)

    def move(self, link: WorkerLink, message: dict[str, Any]) -> None:
        """Have a new worker change to another folder and environment; raises `WorkerStartFailed`."""
        try:
            link.send(message)
        except OSError as exc:
            raise WorkerStartFailed("the worker ended before it could be moved") from exc

    def limit(self, link: WorkerLink, settings: Mapping[str, int]) -> None:
        """Have a new worker limit itself, and so all that will come of it; raises `LimitUnavailable`."""
        if not settings:
            return
        refused = _ask(link, {"id": _PROBE_ID, "op": "limit", "limits": settings})["refused"]
        if refused is not None:
            raise LimitUnavailable("of each process", refused, "ask for less, or for no limit")

    def prove(self, link: WorkerLink) -> tuple[Attempt, ...]:
        """Have a new worker try what it must not be able to do; returns the attempts, all of them denied.

        Raises `IsolationUnavailable` where one wasn't, and `WorkerStartFailed`.
        """
        if self.isolation == "none":
            return ()
        if self._sandbox is None:
            return self._judged(_ask(link, self._message(None))["attempts"])
        from repl_kernel.outside import Outside

        with Outside(network=self._sandbox.network) as outside:
            attempts = self._judged(_ask(link, self._message(outside.targets))["attempts"])
            if outside.was_reached:
                raise SandboxUnavailable("network", "a socket outside was reached", _BROKEN_FIX)
        return attempts

    def _message(self, outside: dict[str, Any] | None) -> dict[str, Any]:
        return {"id": _PROBE_ID, "op": "probe", "pass_env": sorted(self._pass_env), "outside": outside}

    def _judged(self, attempts: list[Attempt]) -> tuple[Attempt, ...]:
        for attempt in attempts:
            if not attempt["denied"]:
                error = IsolationUnavailable if self._sandbox is None else SandboxUnavailable
                raise error(attempt["name"], f"not denied: {attempt['detail']}", _BROKEN_FIX)
        return tuple(attempts)


def _ask(link: WorkerLink, message: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + _PROBE_LIMIT_S
    try:
        link.send(message)
        while (reply := link.receive_soon()) is None:
            ready = link.wait(_PROBE_LIMIT_S * 1000)
            if link.is_dead(ready) or time.monotonic() > deadline:
                raise WorkerStartFailed(_NO_ANSWER)
    except (EOFError, OSError) as exc:
        raise WorkerStartFailed(_NO_ANSWER) from exc
    return reply
