"""Notices what a kernel has dropped, where its messages are numbered.

A kernel drops what a stalled subscriber doesn't take, and says nothing. Kernels that send with Jupyter's own
library, ipykernel among them, number all they send, on whichever channel: `<session>_<pid>_<number>`. Numbers
that are missing on IOPub are those of the replies, one between `busy` and `idle` of each request, and of
questions for input; and what was dropped.
"""

from __future__ import annotations

import re

from repl_kernel.jupyter.wire import Message

_NUMBERED = re.compile(r"(?P<sender>.+_\d+)_(?P<number>\d+)")


class GapCounter:
    """The numbers of one kernel's messages on IOPub, in any order."""

    def __init__(self) -> None:
        self.can_tell = False
        """Whether the kernel numbers its messages."""
        self._sender: str | None = None
        self._start_anew(0)

    def _start_anew(self, number: int) -> None:
        self._first = self._last = number
        self._seen = 0
        self._replies = 0
        self._told = 0
        self._open: set[str] = set()

    def take(self, message: Message) -> bool:
        """Take in the next message; returns whether another kernel process sends now."""
        match = _NUMBERED.fullmatch(message.id)
        if match is None:
            return False
        sender, number = match["sender"], int(match["number"])
        is_other = False
        if sender != self._sender:
            if message.type != "status":  # of a child that the kernel forked, which counts for itself
                return False
            is_other = self._sender is not None
            self._sender, self.can_tell = sender, True
            self._start_anew(number)
        self._last = max(self._last, number)
        self._seen += 1
        if message.type == "status":
            self._take_status(message, number)
        return is_other

    def _take_status(self, message: Message, number: int) -> None:
        if message.content.get("execution_state") == "busy":
            self._open.add(message.parent_id)
        elif message.parent_id and message.content.get("execution_state") == "idle":
            self._open.discard(message.parent_id)
            self._replies += number > self._first

    def forget(self, parent_id: str) -> None:
        """The request's `idle` will not come any more, its reply has been sent."""
        if parent_id in self._open:
            self._open.remove(parent_id)
            self._replies += 1

    def lost(self, just_begun: str | None = None) -> int:
        """How many messages have not come since this was asked last, though they were sent.

        Ask when an execution's `idle` has come, or its `busy` (it is `just_begun` then). While others are
        open one reply of each may be on its way; it gets the benefit of the doubt.
        """
        if not self._seen:
            return 0
        missing = self._last - self._first + 1 - self._seen - self._replies
        others = len(self._open - {just_begun})
        lost = max(0, missing - others - self._told)
        self._told = self._told + lost if others else missing
        return lost
