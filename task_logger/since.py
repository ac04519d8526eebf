"""What people write for a time, as the log has it: `2h` and `3d` ago, or a date with or without a time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from task_logger.codec import timestamp
from task_logger.errors import ConfigurationError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def since_timestamp(text: str, *, now_ns: int | None = None) -> str:
    """Return the moment in the form of a line's `timestamp`, so that the two compare as texts.

    A number with `s`, `m`, `h`, `d` or `w` is so long before `now_ns` (`None`: now); all else is ISO 8601, in
    UTC where it names no zone. Raises `ConfigurationError`.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    ago = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip())
    try:
        if ago:
            return timestamp(max(0, now_ns - int(ago[1]) * _SECONDS[ago[2]] * 10**9))
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
    except (ValueError, OverflowError):
        raise ConfigurationError(
            "--since", f"must be like 30m, 2h, 3d, 2026-01-31 or 2026-01-31T12:00Z, not {text!r}"
        ) from None
