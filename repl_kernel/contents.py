"""Mutation in place: fingerprints of watched objects, taken within a time.

names read by the code, then new objects, then the rest -> small ones together, large ones alone
    -> fingerprint beside the one before -> mutated names, and whether all could be looked at

What each object took the last time decides what is tried, so that one that can't be afforded costs nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import chain, islice
from time import perf_counter_ns

from repl_kernel.fingerprint import (
    OutOfTime,
    fingerprint,
    fingerprints,
    has_contents,
    is_plain,
    pickled_together,
)

MAX_TOGETHER_NS = 25_000
"""An object that takes longer is looked at alone."""

MAX_OVERRUN_NS = 100_000
"""How far small objects that seemed affordable may go past a deadline, so that their cost becomes known."""

MAX_TOGETHER = 256
"""Objects in one pickling: these stay far below the 64 KiB of a frame."""


class Watched:
    """An object behind a name: where it is and what it held, never the object itself.

    `digest` of `None` means that its contents were never read to the end. `cost_ns` is what reading them
    takes, as far as known, `None` before the first try. `alone`: too large or entangled to share a pickling.
    """

    __slots__ = ("address", "alone", "cost_ns", "digest", "has_contents", "is_plain", "kind")

    def __init__(self, value: object) -> None:
        kind = type(value)
        self.address = id(value)
        self.kind = id(kind)
        self.has_contents = has_contents(kind)
        self.is_plain = is_plain(kind)
        self.digest: int | None = None
        self.cost_ns: int | None = None
        self.alone = False

    @property
    def is_small(self) -> bool:
        """Whether its contents can be read together with others."""
        return not self.alone and (self.cost_ns or 0) <= MAX_TOGETHER_NS


class Roster:
    """All watched objects of a namespace, laid out to be looked at at once; made anew when they change."""

    def __init__(self, objects: Mapping[str, Watched | None]) -> None:
        watched = [(name, entry) for name, entry in objects.items() if entry is not None]
        self.names = [name for name, _ in watched]
        self._addresses = [entry.address for _, entry in watched]
        typed = [(name, entry) for name, entry in watched if entry.is_plain or not entry.has_contents]
        self._typed = [name for name, _ in typed]
        self._kinds = [entry.kind for _, entry in typed]
        contents = [(name, entry) for name, entry in watched if entry.has_contents]
        self.small = [name for name, entry in contents if entry.is_small][:MAX_TOGETHER]
        self.chosen = frozenset(self.small)
        self.others = [name for name, _ in contents if name not in self.chosen]
        self.plain = [
            place for place, name in enumerate(self.small) if (entry := objects[name]) and entry.is_plain
        ]
        self.small_cost_ns = 0  # of all small ones together, as far as known
        self.small_digest = 0
        self.is_stale = False
        self.turn = 0  # where the next look begins that can't reach all

    def is_same(self, values: Mapping[str, object]) -> bool:
        """Tell whether every name is still bound to an object at its address, of its type.

        The type of a container is in its fingerprint; who can't get that has to compare it then.
        """
        if list(map(id, map(values.__getitem__, self.names))) != self._addresses:
            return False
        return list(map(id, map(type, map(values.__getitem__, self._typed)))) == self._kinds


class Look:
    """One search for changed contents until a deadline, on the clock of `perf_counter_ns`.

    `mutated` lists the names whose objects changed in place; `complete` tells whether that is all.
    """

    def __init__(
        self, objects: Mapping[str, Watched | None], values: Mapping[str, object], deadline_ns: int
    ) -> None:
        self._objects = objects
        self._values = values
        self._deadline_ns = deadline_ns
        self.mutated: list[str] = []
        self.complete = True

    def at_rest(self, roster: Roster, done: Container[str], *, small: bool) -> None:
        """Look at the objects of the roster but `done`, beginning behind those reached the last time.

        The small ones are left out unless `small`.
        """
        names = roster.small + roster.others if small else roster.others
        turn = roster.turn % max(len(names), 1)
        in_turn = chain(islice(names, turn, None), islice(names, turn))
        roster.turn = turn + self.at(name for name in in_turn if name not in done)

    def at_small(self, roster: Roster) -> bool:
        """Look at all small objects in one go, if that is affordable and works out; return whether it was."""
        started_ns = perf_counter_ns()
        if roster.small_cost_ns > self._deadline_ns - started_ns:
            roster.small_cost_ns -= roster.small_cost_ns >> 2  # it may have been disturbed
            return False
        try:
            values = list(map(self._values.__getitem__, roster.small))
            frame = pickled_together(values, self._deadline_ns + MAX_OVERRUN_NS, roster.plain)
        except Exception:  # noqa: BLE001  one of them is too large or too deep
            roster.small_cost_ns = perf_counter_ns() - started_ns
            roster.is_stale = True  # find out which, one by one
            return False
        digest = hash(frame)
        if digest != roster.small_digest:
            roster.small_digest = digest
            for name, (found, _) in zip(roster.small, fingerprints(frame), strict=True):
                self._settle(name, self._watched(name), found, fresh=False)
        roster.small_cost_ns = perf_counter_ns() - started_ns
        return True

    def _watched(self, name: str) -> Watched:
        watched = self._objects[name]
        assert watched is not None, "names that are no variables are not searched"
        return watched

    def at(self, names: Iterable[str], *, fresh: bool = False, deadline_ns: int | None = None) -> int:
        """Look at these names, as far as time allows; return how many it took up.

        `fresh` ones have no before. `deadline_ns` is for these alone, `None` the one of the whole search.
        """
        deadline_ns = deadline_ns or self._deadline_ns
        left_ns = deadline_ns - perf_counter_ns()
        together: list[tuple[str, Watched]] = []
        taken_up = 0
        for name in names:
            watched = self._watched(name)
            if left_ns <= 0:
                self.complete &= fresh
                break
            taken_up += 1
            if not watched.is_small:
                self._alone(name, watched, fresh, deadline_ns)
                left_ns = deadline_ns - perf_counter_ns()
                continue
            left_ns -= watched.cost_ns or 500
            together.append((name, watched))
            if len(together) == MAX_TOGETHER:
                self._together(together, fresh, deadline_ns)
                together = []
                left_ns = deadline_ns - perf_counter_ns()
        if together:
            self._together(together, fresh, deadline_ns)
        return taken_up

    def _together(self, batch: list[tuple[str, Watched]], fresh: bool, deadline_ns: int) -> None:
        values = self._values
        started_ns = perf_counter_ns()
        try:
            plain = [place for place, (_, watched) in enumerate(batch) if watched.is_plain]
            found = fingerprints(pickled_together([values[name] for name, _ in batch], deadline_ns, plain))
        except Exception:  # noqa: BLE001  one of them is too large or too deep: find out which
            spent_ns = perf_counter_ns() - started_ns
            for name, watched in batch:  # none of them is thought small again before it was read alone
                watched.cost_ns = max(
                    watched.cost_ns or 0, MAX_TOGETHER_NS + 1, 4 * spent_ns if len(batch) == 1 else 0
                )
                self._alone(name, watched, fresh, deadline_ns)
            return
        spent_ns = perf_counter_ns() - started_ns
        per_byte_ns = spent_ns // sum(length for _, length in found) + 1
        for (name, watched), (digest, length) in zip(batch, found, strict=True):
            self._settle(name, watched, digest, fresh=fresh)
            watched.cost_ns = length * per_byte_ns

    def _alone(self, name: str, watched: Watched, fresh: bool, deadline_ns: int) -> None:
        started_ns = perf_counter_ns()
        if (watched.cost_ns or 0) > deadline_ns - started_ns:
            # Not affordable now. The estimate may have been disturbed, so it doesn't hold for ever; a large
            # one holds long, since trying in vain costs the time of a whole frame.
            cost_ns = watched.cost_ns or 0
            watched.cost_ns = cost_ns - (cost_ns >> (3 if cost_ns < 4 * MAX_OVERRUN_NS else 6))
            self.complete &= fresh
            return
        try:
            digest = self._fingerprint(self._values[name], watched, deadline_ns)
        except Exception:  # noqa: BLE001  no time, no memory, too deep, changed by a thread meanwhile
            watched.cost_ns = 4 * (perf_counter_ns() - started_ns)  # at least; it was not read to the end
            self.complete &= fresh
            return
        watched.cost_ns = perf_counter_ns() - started_ns
        self._settle(name, watched, digest, fresh=fresh)

    def _fingerprint(self, value: object, watched: Watched, deadline_ns: int) -> int:
        if not watched.alone:
            try:
                return fingerprints(pickled_together([value], deadline_ns, (0,) if watched.is_plain else ()))[
                    0
                ][0]
            except OutOfTime:
                raise
            except Exception:  # noqa: BLE001  larger than a frame, or it contains itself
                watched.alone = True
        return fingerprint(value, deadline_ns)

    def _settle(self, name: str, watched: Watched, digest: int, *, fresh: bool) -> None:
        if watched.digest == digest:
            return
        if watched.digest is not None:
            self.mutated.append(name)
        else:
            self.complete &= fresh
        watched.digest = digest
