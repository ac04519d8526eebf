"""Whether there is room for what a benchmark writes."""

from __future__ import annotations

import shutil

_RESERVE_BYTES = 1 << 30


def require_room(folder: str, needed_bytes: int) -> None:
    """Raise OSError, before anything is written, where a folder's disk hasn't that much and 1 GB more."""
    free_mb, needed_mb = (
        size >> 20 for size in (shutil.disk_usage(folder).free, needed_bytes + _RESERVE_BYTES)
    )
    if free_mb < needed_mb:
        raise OSError(
            f"{free_mb} MB are free at {folder}, {needed_mb} MB are needed: let TMPDIR name another place"
        )
