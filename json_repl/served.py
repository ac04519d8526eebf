"""What a server serves: the session that it began with, and its branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from json_repl.errors import InvalidRequest

if TYPE_CHECKING:
    from json_repl.session import Session

NOT_WHILE_RUNNING = frozenset(
    ("restart", "snapshot", "rewind", "branch", "speculate", "adopt", "discard", "complete", "inspect")
)
"""Methods that are about the live state, which is none while code runs."""


class ServedSessions:
    """One session and its branches, by id; owns them. One thread changes it, any may interrupt."""

    def __init__(self, first: Session) -> None:
        self.first = first
        self._branches: dict[str, Session] = {}

    def of(self, session_id: str | None) -> Session:
        """The session with that id, the first one for `None`; raises `InvalidRequest` where there is none."""
        if session_id is None or session_id == self.first.session_id:
            return self.first
        branch = self._branches.get(session_id)
        if branch is None:
            raise InvalidRequest("session_id", f"names no session of this process: {session_id[:100]!r}")
        return branch

    def add(self, branch: Session) -> None:
        """Serve one session more."""
        self._branches = {**self._branches, branch.session_id: branch}  # a new one: others may be looking

    def end(self, session_id: str | None) -> bool:
        """End a branch; returns whether it is the first session that is to end: then all of them are."""
        session = self.of(session_id)
        if session is self.first:
            return True
        self._branches = {name: one for name, one in self._branches.items() if one is not session}
        session.close()
        return False

    def interrupt(self, session_id: str | None = None) -> bool:
        """Interrupt what runs, in that session or, for `None`, in any; returns whether something did."""
        if session_id is not None:
            return self.of(session_id).interrupt()
        interrupted = [one.interrupt() for one in (self.first, *self._branches.values())]
        return any(interrupted)

    def close(self) -> None:
        """Close all of them; raises what the first one's closing raises, with the others closed."""
        branches, self._branches = self._branches, {}
        try:
            for branch in branches.values():
                branch.close()
        finally:
            self.first.close()
