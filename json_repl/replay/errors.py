"""What can go wrong around a replay; what the replayed code does is never one of these.

SessionError
 +-- ReplayError
      +-- NothingToReplay        the caller's: the file, or the part that was asked for, has no execution
      +-- UnknownNormalizer      the caller's: there is none of this name, or its pattern is none
      +-- StateUnreachable       a state that an execution started from can't be had again
"""

from __future__ import annotations

from json_repl.errors import SessionError


class ReplayError(SessionError):
    """Base of all errors of a replay; the recording is untouched."""


class NothingToReplay(ReplayError):
    """There is no execution to replay; a replay of nothing would pass for ever. `path` is the recording."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} has nothing to replay: {reason}")
        self.path = path


class UnknownNormalizer(ReplayError):
    """There is no normalizer `name`, or it can't be used."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"normalizer {name!r}: {reason}")
        self.name = name


class StateUnreachable(ReplayError):
    """The state `state` (`session_id:seq`) can't be had again; nothing has run in another one instead."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(f"the state after {state} can't be had again: {reason}")
        self.state = state
