"""What a worker starts with: libraries that its keeper loads, and variables that it is not denied."""

from __future__ import annotations

from collections.abc import Collection

from task_logger.errors import ConfigurationError


def checked_preload(route: str, preload: Collection[str]) -> tuple[str, ...]:
    """The names of the modules, in order; raises `ConfigurationError` where they can't be such."""
    if not _are_names(preload):
        raise ConfigurationError("preload", f"must be a list of names of modules, not {preload!r}")
    for name in preload:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigurationError("preload", f"must be names of modules; {name!r} is none")
    if preload and route != "worker":
        raise ConfigurationError(
            "preload", f"needs route='worker': the {route} route has no process to load it in"
        )
    return tuple(preload)


def checked_pass_env(pass_env: Collection[str]) -> tuple[str, ...]:
    """The names of the variables; raises `ConfigurationError` where they can't be such."""
    if not _are_names(pass_env):
        raise ConfigurationError("pass_env", f"must be a list of names of variables, not {pass_env!r}")
    return tuple(pass_env)


def _are_names(given: object) -> bool:
    """Whether these are several names; a single text is none, though it holds letters."""
    if isinstance(given, str) or not isinstance(given, Collection):
        return False
    return all(isinstance(name, str) for name in given)
