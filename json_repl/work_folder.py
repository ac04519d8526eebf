"""The isolation that a session asks for, and the one folder that a sandboxed worker can write to.

given                 used as it is, and left as it is
not given             <plan>/work/<session_id>, made when the worker starts, kept if code left something in it
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, cast

from task_logger.errors import ConfigurationError
from task_logger.record import Isolation

if TYPE_CHECKING:
    from repl_kernel.sandbox import Sandbox

_PRIVATE = 0o700


class WorkFolder:
    """Where a sandbox's work folder is; `path` is `None` without a sandbox."""

    def __init__(
        self,
        isolation: Isolation,
        given: str | os.PathLike[str] | None,
        network: bool,
        log_path: str,
        session_id: str,
    ) -> None:
        """Raises `ConfigurationError` where what was given can't be meant."""
        self.network = network
        self._is_own = given is None
        self._isolation = isolation
        self._users = 1
        self.path: str | None = None
        if isolation != "sandbox":
            if given is not None or network:
                name = "work_folder" if given is not None else "network"
                raise ConfigurationError(name, f"needs isolation='sandbox', and this is {isolation!r}")
            return
        plan_folder = os.path.dirname(os.path.realpath(log_path))
        if given is None:
            self.path = os.path.join(plan_folder, "work", session_id)
            return
        text: object = os.fspath(given) if isinstance(given, os.PathLike) else given
        if not isinstance(text, str) or not text or "\0" in text:
            raise ConfigurationError("work_folder", f"must be the path of a folder, as a text, not {given!r}")
        self.path = os.path.realpath(text)
        if not os.path.isdir(self.path):
            raise ConfigurationError("work_folder", f"{self.path} is not a folder; make it first")
        if f"{plan_folder}/".startswith(f"{self.path.rstrip('/')}/"):
            raise ConfigurationError("work_folder", f"{self.path} holds the task log: code could write to it")

    def tier(self) -> Literal["none", "process"] | Sandbox:
        """What an executor is told; makes the folder, and raises `SandboxUnavailable` where it can't."""
        if self.path is None:
            return cast(Literal["none", "process"], self._isolation)
        from repl_kernel.errors import SandboxUnavailable
        from repl_kernel.sandbox import Sandbox

        if self._is_own:
            try:
                os.makedirs(os.path.dirname(self.path), _PRIVATE, exist_ok=True)
                os.mkdir(self.path, _PRIVATE)
            except OSError as exc:
                raise SandboxUnavailable(
                    "work folder", f"{self.path} can't be made: {exc.strerror}", "name another: work_folder=…"
                ) from exc
        return Sandbox(work_folder=self.path, network=self.network)

    def shared(self) -> WorkFolder:
        """The same, for one session more: a branch lives in the same sandbox."""
        self._users += 1
        return self

    def remove_if_empty(self) -> None:
        """At a session's end: with the last one, a folder of our own that nothing was left in goes."""
        self._users -= 1
        if self.path is not None and self._is_own and self._users == 0:
            try:
                os.rmdir(self.path)
            except OSError:
                pass  # code left something there, or it was never made


def checked_isolation(route: str, isolation: str | None) -> Isolation:
    """The isolation of a session; raises `ConfigurationError` where there is none such on its route."""
    if route == "jupyter":
        if isolation not in (None, "external"):
            raise ConfigurationError(
                "isolation", f"{isolation!r} needs route='worker': a Jupyter kernel is as isolated as it is"
            )
        return "external"
    if isolation is None:
        return "process" if route == "worker" else "none"
    if isolation not in ("none", "process", "sandbox"):
        raise ConfigurationError("isolation", f"must be 'none', 'process' or 'sandbox', not {isolation!r}")
    if route != "worker" and isolation != "none":
        raise ConfigurationError(
            "isolation", f"{isolation!r} needs route='worker': code on the local route is not isolated"
        )
    return cast(Isolation, isolation)
