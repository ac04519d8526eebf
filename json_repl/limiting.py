"""The limits that a caller asks for: checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repl_kernel.errors import LimitRefused
from task_logger.errors import ConfigurationError

if TYPE_CHECKING:
    from repl_kernel.limits import Limits

_OF_THE_SANDBOX = ("work_folder_bytes", "work_folder_files")


def checked_limits(route: str, isolation: str, given: Limits | Mapping[str, Any] | None) -> Limits | None:
    """The limits of a session, `None` without any; raises `ConfigurationError` where they can't be meant."""
    if given is None:
        return None
    from repl_kernel.limits import Limits

    try:
        limits = Limits.of(given)
    except LimitRefused as exc:
        raise ConfigurationError("limits", str(exc).removeprefix("limits: ")) from exc
    if route != "worker":
        raise ConfigurationError(
            "limits", "need route='worker': code on the local route can't be limited apart from this process"
        )
    for name in _OF_THE_SANDBOX:
        if isolation != "sandbox" and getattr(limits, name) is not None:
            raise ConfigurationError("limits", f"{name} needs isolation='sandbox', and this is {isolation!r}")
    return limits


def parsed_limits(texts: Sequence[str]) -> Limits | None:
    """Limits from the texts of a command line, such as `memory_bytes=512M`; raises `ConfigurationError`."""
    if not texts:
        return None
    from repl_kernel.limits import Limits

    try:
        return Limits.parse(list(texts))
    except LimitRefused as exc:
        raise ConfigurationError("--limit", str(exc).removeprefix("limits: ")) from exc
