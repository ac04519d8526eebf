"""Starting `python -m json_repl` for a caller, whose arguments are checked before anything is started.

Whether they go together, the process itself says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from json_repl.errors import InvalidRequest, SessionStartFailed
from json_repl.limiting import checked_limits
from json_repl.preloading import checked_preload
from task_logger.errors import ConfigurationError

if TYPE_CHECKING:
    from subprocess import Popen

    from repl_kernel.limits import Limits

ProcessRoute = Literal["local", "worker"]

_ROUTE_SETTINGS = {"local": "0", "worker": "1"}


def spawn_server(
    *,
    route: ProcessRoute | None,
    preload: Collection[str],
    limits: Limits | Mapping[str, Any] | None,
    env: Mapping[str, str] | None,
    python: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None,
) -> Popen[bytes]:
    """The process; raises `ConfigurationError` for what can't be meant, and `SessionStartFailed`."""
    import subprocess

    environment = dict(os.environ) if env is None else _checked_environment(env)
    if route is not None:
        if not isinstance(route, str) or route not in _ROUTE_SETTINGS:
            raise ConfigurationError("route", f"must be 'local', 'worker' or None, not {route!r}")
        environment["USE_SUBPROCESS_WORKER"] = _ROUTE_SETTINGS[route]
    options = _options(route, checked_preload("worker", preload), limits)
    command = [_checked_path("python", python), "-m", "json_repl", *options]
    folder = None if cwd is None else _checked_path("cwd", cwd)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
            env=environment,
            process_group=0,
        )
    except OSError as exc:
        what = exc.filename if exc.filename is not None else python
        raise SessionStartFailed(f"no session: {what}: {exc.strerror}; check python and cwd") from exc


def checked_bound(name: str, bound_s: float) -> float:
    """How long to wait, in seconds; raises `InvalidRequest` for what can't be meant."""
    is_number = isinstance(bound_s, (int, float)) and not isinstance(bound_s, bool)
    if not is_number or not (0 <= bound_s < 1e9 or bound_s == math.inf):
        raise InvalidRequest(name, f"must be a number of seconds below 1e9, or math.inf, not {bound_s!r}")
    return float(bound_s)


def _options(
    route: ProcessRoute | None, preload: tuple[str, ...], limits: Limits | Mapping[str, Any] | None
) -> list[str]:
    checked = checked_limits("worker", "process", limits)
    if not preload and not checked:
        return []
    options = ["serve"]
    if preload:
        options += ["--preload", ",".join(preload)]
    for name, value in ({} if checked is None else asdict(checked)).items():
        if value is not None:
            options += ["--limit", f"{name}={value}"]
    if route is not None:
        options += ["--route", route]
    return options


def _checked_environment(env: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(env, Mapping):
        raise ConfigurationError("env", f"must be a mapping of texts to texts, not a {type(env).__name__}")
    for name, text in env.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigurationError("env", f"must be a mapping of texts to texts; {name!r} is {text!r}")
        if "=" in name or not _is_for_the_system(name) or not _is_for_the_system(text):
            raise ConfigurationError("env", f"{name!r}: can't be a variable of a process")
    return dict(env)


def _checked_path(name: str, path: str | os.PathLike[str]) -> str:
    text: object = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or not _is_for_the_system(text):
        raise ConfigurationError(name, f"must be a path, as a text without NUL, not {path!r}")
    return text


def _is_for_the_system(text: str) -> bool:
    """Whether the system can be given this text: it takes bytes that end with NUL."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
