"""Counts what is written, and keeps no more of it than a limit allows."""

from __future__ import annotations

import _thread

from repl_kernel.limits import Limits, Strike


class OutputTotal:
    """What the executions of a session have written; those that run at once share it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = _thread.allocate_lock()

    def admit(self, size: int, limit: float | None) -> tuple[int, int]:
        """Count bytes; returns how many of them are within the limit, and how many were written until now."""
        with self._lock:
            before = self.bytes
            self.bytes += size
        return (size if limit is None else max(0, min(size, int(limit) - before))), before + size


class OutputMeter:
    """The output of one execution after the other."""

    def __init__(self, limits: Limits, total: OutputTotal) -> None:
        self._limits = limits
        self._total = total
        self.begin()

    def begin(self) -> None:
        """Another execution starts."""
        self.written_bytes = 0
        self.strike: Strike | None = None

    def admit(self, data: bytes) -> bytes:
        """Count output; returns what of it is kept. What comes beyond a limit leaves a `strike`."""
        limits, size = self._limits, len(data)
        kept = size
        if limits.output_bytes is not None:
            kept = max(0, min(size, int(limits.output_bytes) - self.written_bytes))
        self.written_bytes += size
        struck: tuple[str, float, int] | None = None
        in_session, session_bytes = self._total.admit(size, limits.session_output_bytes)
        if in_session < kept and limits.session_output_bytes is not None:
            kept = in_session
            struck = "session_output_bytes", limits.session_output_bytes, session_bytes
        elif kept < size and limits.output_bytes is not None:
            struck = "output_bytes", limits.output_bytes, self.written_bytes
        if struck is None:
            return data
        name, limit, used = struck
        dropped = size - kept + (0 if self.strike is None else self.strike.dropped_bytes)
        self.strike = Strike(name=name, limit=limit, used=used, dropped_bytes=dropped)
        return data[:kept]
