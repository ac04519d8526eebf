"""The two files that a session writes: its task's log, and its pending file.

open --> folders made, log and pending file opened --> what dead sessions left is settled
"""

from __future__ import annotations

import os
from time import monotonic

from task_logger.errors import TaskLogError
from task_logger.log_file import LogFile
from task_logger.opening import make_folder
from task_logger.pending import PendingFile
from task_logger.record import Isolation, Route
from task_logger.settling import settle

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.encryption import Cipher, LogKeys
    from task_logger.sealing import Sealer

_SETTLE_EVERY_S = 1.0  # a look at the pending folder costs as much as a line for each living session


class SessionFiles:
    """Whichever of the two could be opened; the caller lets one thread in at a time."""

    def __init__(
        self,
        path: str,
        session_id: str,
        *,
        fsync: bool,
        route: Route,
        isolation: Isolation,
        sealer: Sealer | None = None,
        keys: LogKeys | None = None,
    ) -> None:
        """Of the log at that path; nothing is opened yet. Without `keys` they are plain."""
        self.log: LogFile | None = None
        """The task's log, `None` where it isn't open."""
        self.pending: PendingFile | None = None
        """The session's pending file, `None` where it isn't open."""
        self._path = path
        self._plan_folder = os.path.dirname(path)
        self._session_id = session_id
        self._fsync = fsync
        self._sealer = sealer
        self._keys = keys
        self._route: Route = route
        self._isolation: Isolation = isolation
        self._settle_at_s = 0.0

    def open(self, lock_wait_s: float) -> list[str]:
        """Have both open, and settle; returns notices. Raises `TaskLogError` for what is wrong."""
        if self.log is None:
            make_folder(self._plan_folder, fsync=self._fsync)
            self.log = LogFile(
                self._path,
                fsync=self._fsync,
                lock_wait_s=lock_wait_s,
                sealer=self._sealer,
                cipher=self._cipher(),
            )
        if self.pending is None:
            self.open_pending()
        return self.settle()

    def open_pending(self) -> PendingFile:
        """Open the pending file; raises `TaskLogError` where that can't be."""
        folder = f"{self._plan_folder}/pending"
        make_folder(folder, fsync=self._fsync)
        self.pending = PendingFile(
            folder,
            self._session_id,
            os.path.basename(self._path),
            route=self._route,
            isolation=self._isolation,
            fsync=self._fsync,
            cipher=self._cipher(),
        )
        return self.pending

    def _cipher(self) -> Cipher | None:
        return None if self._keys is None else self._keys.cipher()

    @property
    def is_settling_due(self) -> bool:
        """Whether it is time to look for what dead sessions left."""
        return monotonic() >= self._settle_at_s

    def settle(self) -> list[str]:
        """Append what dead sessions left to the log, if it is open; returns notices.

        Raises `TaskLogError`.
        """
        if self.log is None:
            return []
        self._settle_at_s = monotonic() + _SETTLE_EVERY_S
        own = () if self.pending is None else (self.pending.name,)
        return settle(self._plan_folder, self.log, own=own, fsync=self._fsync)

    def forget_moved_log(self) -> None:
        """Close a log whose path is no longer that file's: the next line opens what is there then."""
        if self.log is not None:
            try:
                self.log.check()
            except TaskLogError:
                self.log.close()
                self.log = None

    def close(self, *, remove_pending: bool) -> None:
        """Close both; the pending file goes where nothing in it is needed any more."""
        if self.pending is not None:
            self.pending.close(remove=remove_pending)
        if self.log is not None:
            self.log.close()
