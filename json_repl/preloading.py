"""Which libraries a worker's keeper loads before it forks the worker."""

from __future__ import annotations

from collections.abc import Collection

from task_logger.errors import ConfigurationError


def checked_preload(route: str, preload: Collection[str]) -> tuple[str, ...]:
    """The names of the modules, in order; raises `ConfigurationError` where they can't be such."""
    if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
        raise ConfigurationError("preload", f"must be a list of names of modules, not {preload!r}")
    for name in preload:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigurationError("preload", f"must be names of modules; {name!r} is none")
    if preload and route != "worker":
        raise ConfigurationError(
            "preload", "needs route='worker': the local route has no process to load it in"
        )
    return tuple(preload)
