"""The event loop on which top-level `await` runs: one for all executions of a namespace."""

from __future__ import annotations

import asyncio
from asyncio import events
from typing import Any

_CANCEL_WAIT_S = 1.0
"""How long an interrupted execution's tasks may take to end before they are left alone."""


class PersistentLoop:
    """Runs coroutines one after the other; tasks they leave behind go on whenever the next one runs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, coroutine: object) -> object:
        """Run a coroutine to its end and return its value; what it raises is raised.

        Works in a thread that runs a loop of its own, which waits meanwhile. After an interrupt the tasks
        that this coroutine started are cancelled, those of earlier ones stay.
        """
        if self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        outer = events._get_running_loop()
        events._set_running_loop(None)
        earlier = asyncio.all_tasks(self._loop)
        asyncio.set_event_loop(self._loop)
        try:
            return self._loop.run_until_complete(coroutine)  # type: ignore[arg-type]  # eval of a coroutine's code
        except (KeyboardInterrupt, SystemExit):
            self._cancel(asyncio.all_tasks(self._loop) - earlier)
            raise
        finally:
            events._set_running_loop(outer)

    def _cancel(self, tasks: set[asyncio.Task[object]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCEL_WAIT_S))

    def separate(self) -> None:
        """Give the loop of a copied process a selector and a self-pipe of its own.

        The old ones are shared with the original: what one process unregistered would be gone for the other,
        so they are closed, and nothing is unregistered.
        """
        loop: Any = self._loop
        if loop.is_closed():
            return
        old, new = loop._selector, type(loop._selector)()
        inner = {loop._ssock.fileno()}
        for key in list(old.get_map().values()):
            if key.fd not in inner:
                try:
                    new.register(key.fileobj, key.events, key.data)
                except (OSError, ValueError):
                    pass  # a pipe or socket, which no copy keeps
        loop._selector = new
        old._selector.close()
        loop._ssock.close()
        loop._csock.close()
        loop._internal_fds = 0
        loop._make_self_pipe()

    def own_fds(self) -> set[int]:
        """The descriptors of its self-pipe, which `separate` makes anew."""
        loop: Any = self._loop
        return set() if loop.is_closed() else {loop._ssock.fileno(), loop._csock.fileno()}

    def has_tasks(self) -> bool:
        """Whether tasks wait for the next run."""
        return not self._loop.is_closed() and bool(asyncio.all_tasks(self._loop))

    def close(self) -> None:
        """Close the loop; tasks that still wait are destroyed."""
        if not self._loop.is_running():
            self._loop.close()
