"""How much a sandbox's work folder holds: looked at where its file system has got fuller.

file system's free room (one call) --> has it changed enough? --> every file counted --> Strike
"""

from __future__ import annotations

import os
import time

from repl_kernel.limits import Limits, Strike

_BLOCK_BYTES = 512
_PATIENCE = 20.0
"""After a count, the next one comes no sooner than so many times as long later."""


class WorkFolderSize:
    """One work folder; what is in it at the start doesn't count."""

    def __init__(self, path: str, limits: Limits) -> None:
        self._path = path
        self._max_bytes = limits.work_folder_bytes
        self._max_files = limits.work_folder_files
        self._at_start: tuple[int, int] | None = (0, 0) if _is_empty(path) else None
        self._last = (0, 0)
        self._free = self._counted_at = (0, 0)
        self._count_at_s = 0.0
        self._has_struck = False

    def begin(self) -> None:
        """An execution starts: what the one that struck has left until it stopped is no news, and counted."""
        if self._has_struck:
            self.look()

    def look(self) -> Strike | None:
        """The limit that has been reached, where there is more than at the last look.

        Else what runs may be what makes it less.
        """
        if not self._may_have_grown() and not self._has_struck:
            return None
        began_s = time.monotonic()
        self._counted_at = self._free
        count = self._count()
        self._count_at_s = began_s + _PATIENCE * (time.monotonic() - began_s)
        if self._at_start is None:
            self._at_start = count
        used = count[0] - self._at_start[0], count[1] - self._at_start[1]
        last, self._last = self._last, used
        if self._has_struck:  # what came until the code stopped is no news
            self._has_struck = False
            return None
        for name, limit, index in (
            ("work_folder_bytes", self._max_bytes, 0),
            ("work_folder_files", self._max_files, 1),
        ):
            if limit is not None and used[index] > max(limit, last[index]):
                self._has_struck = True
                return Strike(name=name, limit=limit, used=used[index])
        return None

    def _may_have_grown(self) -> bool:
        """Whether the file system's free room has changed, and it is time for another count.

        It is at once where as much is gone as the folder may still take.
        """
        try:
            system = os.statvfs(self._path)
        except OSError:
            return False  # the folder is gone: nothing can grow in it
        before, self._free = self._free, (system.f_bfree * system.f_frsize, system.f_ffree)
        if self._free == before:
            return False
        return time.monotonic() >= self._count_at_s or any(
            limit is not None and counted - free > max(0, limit - used)
            for limit, counted, free, used in zip(
                (self._max_bytes, self._max_files), self._counted_at, self._free, self._last, strict=True
            )
        )

    def _count(self) -> tuple[int, int]:
        """Bytes and files, as far as the latter are no more than allowed; what vanishes doesn't count."""
        size = files = 0
        enough = float("inf") if self._max_files is None or self._at_start is None else self._max_files
        pending = [self._path]
        while pending and files <= enough + (self._at_start or (0, 0))[1] + self._last[1]:
            try:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        files += 1
                        size += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
            except OSError:
                continue
        return size, files


def _is_empty(path: str) -> bool:
    try:
        return not os.listdir(path)
    except OSError:
        return False  # it is gone: whether something is in it, the first count tells
