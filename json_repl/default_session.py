"""`json_repl.execute_code`: one session for this process, made from the environment when it is first
needed."""

from __future__ import annotations

import os
import threading
from typing import Any

from json_repl.session import Session


class DefaultSession:
    """Makes its session at the first call; a forked child makes one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: Session | None = None
        os.register_at_fork(after_in_child=self._forget)

    def execute_code(self, code: str, *, time_limit_s: float | None = None) -> dict[str, Any]:
        """Run code in the process's session; see `Session.execute_code`."""
        return self._get().execute_code(code, time_limit_s=time_limit_s)

    def _get(self) -> Session:
        with self._lock:
            if self._session is None:
                import atexit

                self._session = Session()
                atexit.register(self._session.close)
            return self._session

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._session = None


# The one piece of state of this module: the contract of `execute_code` is to need none from its caller.
_DEFAULT = DefaultSession()

execute_code = _DEFAULT.execute_code
