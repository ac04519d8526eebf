"""What a session is made with: each setting is checked, and named where it is wrong, before all else."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from task_logger.errors import ConfigurationError

if TYPE_CHECKING:
    from repl_kernel.executor import ShellName
    from repl_kernel.limits import Limits
    from task_logger.record import Isolation

SessionRoute = Literal["local", "worker", "jupyter"]


def route_of(route: str | None) -> SessionRoute:
    """The route, `None` from the environment; raises `ConfigurationError`."""
    if route is None:
        setting = os.environ.get("USE_SUBPROCESS_WORKER") or "0"
        if setting not in ("0", "1"):
            raise ConfigurationError("USE_SUBPROCESS_WORKER", f"must be 0 or 1, not {setting!r}")
        return "worker" if setting == "1" else "local"
    if route in ("worker", "local", "jupyter"):
        return cast(SessionRoute, route)
    raise ConfigurationError("route", f"must be 'local', 'worker' or 'jupyter', not {route!r}")


def checked_kernel(route: SessionRoute, kernel: str | None) -> str:
    """The kernel of a session on the jupyter route, nothing on others; raises `ConfigurationError`."""
    if route != "jupyter":
        if kernel is not None:
            raise ConfigurationError("kernel", f"needs route='jupyter', and this is {route!r}")
        return ""
    if not isinstance(kernel, str) or not kernel:
        raise ConfigurationError(
            "kernel",
            "must be the name of a Jupyter kernel, or the path of a connection file, as a text, with "
            f"route='jupyter'; not {kernel!r}",
        )
    return kernel


def checked_actor(actor: str | None) -> str:
    """Who executes, as the log names it; raises `ConfigurationError` for what is no text."""
    if actor is not None and not isinstance(actor, str):
        raise ConfigurationError("actor", f"must be a text, not a {type(actor).__name__}")
    return actor or "python"


def checked_redact(
    redact: Mapping[str, str | re.Pattern[str]] | Literal[False] | None,
) -> dict[str, str | re.Pattern[str]] | Literal[False]:
    """The secrets by name, `False` to look for none; raises `ConfigurationError` for what is no mapping."""
    if redact is False:
        return False
    if redact is not None and not isinstance(redact, Mapping):
        raise ConfigurationError("redact", "takes secrets by name, {'NAME': value or pattern}, or False")
    return dict(redact or {})


def checked_pass_env(pass_env: Collection[str]) -> tuple[str, ...]:
    """Names of secret-looking variables that a worker gets; see `preloading`."""
    if not pass_env:
        return ()
    from json_repl import preloading

    return preloading.checked_pass_env(pass_env)


def checked_preload(route: SessionRoute, preload: Collection[str]) -> tuple[str, ...]:
    """Modules that are imported before the worker is forked; see `preloading`."""
    if not preload:
        return ()
    from json_repl import preloading

    return preloading.checked_preload(route, preload)


def checked_limits(
    route: SessionRoute, isolation: Isolation, limits: Limits | Mapping[str, Any] | None
) -> Limits | None:
    """How much code may use, `None` without limits; see `limiting`."""
    if limits is None:
        return None
    from json_repl import limiting

    return limiting.checked_limits(route, isolation, limits)


def checked_shell(route: str, shell: str) -> ShellName:
    """What runs the code of a session; raises `ConfigurationError` where there is none such on its route."""
    if shell not in ("plain", "ipython"):
        raise ConfigurationError("shell", f"must be 'plain' or 'ipython', not {shell!r}")
    if shell != "plain" and route != "worker":
        raise ConfigurationError("shell", f"{shell!r} needs route='worker'")
    return cast("ShellName", shell)
