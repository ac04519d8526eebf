"""How much executed code may use, and the verdicts where it wanted more.

caller's limits (a `Limits`, a mapping, or texts: 512M) --> Limits --with those of the isolation--> in force
what was used --> Strike --> the `type` and `message` of an outcome's error
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from repl_kernel.errors import LimitRefused

NONE = math.inf
"""As a value: no limit, where the isolation would set one of its own."""

_MIB = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Kind(NamedTuple):
    """What there is to know of one limit: its verdict, what it counts, and the least that makes sense."""

    verdict: str
    counts: str
    least: float


_KINDS: Mapping[str, _Kind] = {
    "memory_bytes": _Kind("MemoryLimitExceeded", "bytes of memory", 64 * _MIB),
    "cpu_s": _Kind("CpuLimitExceeded", "seconds of CPU time", 0.01),
    "processes": _Kind("ProcessLimitExceeded", "processes and threads beside the worker", 0),
    "open_files": _Kind("OpenFilesLimitExceeded", "open files", 8),
    "file_size_bytes": _Kind("FileSizeLimitExceeded", "bytes in one file", 0),
    "output_bytes": _Kind("OutputLimitExceeded", "bytes of output in one execution", 0),
    "session_output_bytes": _Kind("OutputLimitExceeded", "bytes of output in the session", 0),
    "work_folder_bytes": _Kind("WorkFolderLimitExceeded", "bytes in the work folder", _MIB),
    "work_folder_files": _Kind("WorkFolderLimitExceeded", "files and folders in the work folder", 16),
}


def _is_sensible(name: str, value: object, least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if value == NONE:
        return True
    is_whole = name == "cpu_s" or isinstance(value, int)
    return is_whole and least <= value < 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What code may use; `None` is what the isolation sets (in `sandbox` `SANDBOX_LIMITS`, else no limit).

    `math.inf` is no limit, whatever the isolation sets. `memory_bytes` holds for each process, and for all
    of them together; `cpu_s` and `output_bytes` for each execution; `processes` are processes and threads
    beside the worker's own; `work_folder_…` need a sandbox. Raises `LimitRefused` for a value that can't be
    meant.
    """

    memory_bytes: float | None = None
    cpu_s: float | None = None
    processes: float | None = None
    open_files: float | None = None
    file_size_bytes: float | None = None
    output_bytes: float | None = None
    session_output_bytes: float | None = None
    work_folder_bytes: float | None = None
    work_folder_files: float | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not _is_sensible(name, value, kind.least):
                whole = "a number" if name == "cpu_s" else "a whole number"
                allowed = f"{whole} of {kind.counts}, {kind.least:g} or more, or math.inf for no limit"
                raise LimitRefused(name, value, allowed)

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in _KINDS)

    def over(self, defaults: Limits) -> Limits:
        """These, and of those that are not named the defaults; `None` is no limit in what is returned."""
        chosen = {name: getattr(self, name) for name in _KINDS}
        named = {name: value for name, value in chosen.items() if value is not None}
        merged = replace(defaults, **named)
        endless = {name: None for name in _KINDS if getattr(merged, name) == NONE}
        return replace(merged, **endless)

    @classmethod
    def of(cls, given: Limits | Mapping[str, Any] | None) -> Limits:
        """What a caller gave, as `Limits`; raises `LimitRefused`."""
        if given is None:
            return NO_LIMITS
        if isinstance(given, Limits):
            return given
        if not isinstance(given, Mapping):
            raise LimitRefused("limits", given, "a Limits, or a mapping with its names")
        for name in given:
            if name not in _KINDS:
                raise LimitRefused(str(name), given[name], f"one of {', '.join(_KINDS)}")
        return cls(**given)

    @classmethod
    def parse(cls, texts: tuple[str, ...] | list[str]) -> Limits:
        """Limits from texts such as `memory_bytes=512M` or `processes=none`; raises `LimitRefused`."""
        found: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            found[name.strip()] = _parse(name.strip(), value.strip())
        return cls.of(found)


NO_LIMITS = Limits()

SANDBOX_LIMITS = Limits(
    memory_bytes=max(64 * _MIB, min(4 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)),
    processes=256,
    file_size_bytes=2 << 30,
    work_folder_bytes=8 << 30,
    work_folder_files=200_000,
)
"""What a sandbox holds unless it is told otherwise: more than usual work needs, less than a machine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A limit that was reached; `used` is `None` where nobody could tell, `dropped_bytes` output not kept."""

    name: str
    limit: float
    used: float | None = None
    dropped_bytes: int = 0

    @property
    def verdict(self) -> str:
        """The `type` of the outcome's error."""
        return _KINDS[self.name].verdict

    @property
    def message(self) -> str:
        """Which limit, its value, and what was used."""
        used = "" if self.used is None else f"; used: {_text(self.name, self.used)}"
        dropped = f"; {self.dropped_bytes} bytes beyond it are not kept" if self.dropped_bytes else ""
        return (
            f"the limit {self.name} of {_text(self.name, self.limit)} was reached "
            f"({_KINDS[self.name].counts}){used}{dropped}"
        )


def _parse(name: str, text: str) -> float:
    if text.lower() in ("none", "inf"):
        return NONE
    unit = text[-1:].upper() if name.endswith("_bytes") and text[-1:].isalpha() else ""
    number = text[: len(text) - len(unit)]
    try:
        return float(number) if name == "cpu_s" else int(number) * _UNITS[unit]
    except (ValueError, KeyError) as exc:
        sizes = ", 512M and the like" if name.endswith("_bytes") else ""
        raise LimitRefused(name, text, f"a number{sizes}, or none") from exc


def _text(name: str, value: float) -> str:
    if name == "cpu_s":
        return f"{value:.3g} s"
    if not name.endswith("_bytes"):
        return f"{value:.0f}"
    if value >= _MIB and value % _MIB == 0:
        return f"{value / _MIB:.0f} MiB"
    return f"{value / _MIB:.1f} MiB" if value >= _MIB else f"{value:.0f} bytes"
