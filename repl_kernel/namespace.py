"""What an execution did to the names of its namespace.

namespace, baseline -> names and values beside each other, in C -> those that differ
    -> other atom, other object -> added, rebound, removed: always complete
    -> the same object -> `_search`: fingerprints of contents, until time is up -> mutated
    -> NamespaceChanges, and the next baseline

The baseline keeps atoms (small values that can't change) themselves and all other objects as their
address, type and fingerprint, so that nothing of the user's lives longer for being watched.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import compress, count, islice, repeat
from operator import is_, is_not
from time import perf_counter_ns
from types import CodeType

from repl_kernel.code_names import may_store_twice, reachable_code, store_sites, stored_low_bytes
from repl_kernel.contents import Look, Roster, Watched
from repl_kernel.description import describe
from repl_kernel.loaded_modules import LoadedModules
from task_logger.record import NO_CHANGES, NamespaceChanges

MAX_ATOM_BYTES = 4096
"""Longer text, bytes and integers are watched by their address instead of being kept."""

_NOT_KEPT = object()
"""Stands in the baseline where a value is no atom; identical to nothing in a namespace."""

_WAS_ATOM = Watched(None)
"""Stands for a name whose value is kept."""

MIN_SEARCH_NS = 60_000
"""Spent on mutation in place however short the execution was: what 120 small containers take."""

MIN_FIRST_NS = 250_000
"""The same for names that the code reads, and for new ones: a few small objects, even with cold caches."""

MAX_RESET_NS = 1_000_000
"""Spent on the contents of what a namespace already holds when the watch begins."""

_SIZELESS_ATOMS = frozenset(map(id, (bool, float, complex, type(None), type(...), type(NotImplemented))))
_SIZED_ATOMS = frozenset(map(id, (int, str, bytes)))


class NamespaceWatcher:
    """Tells what each execution did to a namespace.

    Names that start with `_`, and those in `hidden` when they first appear, are no variables.
    """

    def __init__(self, namespace: dict[str, object], hidden: Container[str] = ()) -> None:
        self._namespace = namespace
        self._hidden = hidden
        self.reset()

    def reset(self) -> None:
        """Take the namespace and the loaded modules as they are now for the baseline."""
        self._names: list[str] = []  # every name, in the order of the namespace
        self._atoms: list[object] = []  # beside it: the value, or _NOT_KEPT
        self._objects: dict[str, Watched | None] = {}  # what _NOT_KEPT stands for; None: not a variable
        self._odd_names = False  # whether the namespace ever held a name that isn't a plain string
        self._roster: Roster | None = None  # of _objects; None: to be made anew
        self._modules = LoadedModules()
        now = self._namespace.copy()
        added, _ = self._append(now, {})
        self._mutated(None, now, set(added), 50 * MAX_RESET_NS)

    def forget_imports(self) -> None:
        """Leave modules that were loaded since the last look out of the next `changes`."""
        self._modules.added()

    def leave_out_import(self, name: str) -> None:
        """Leave a module, which is ours, out of the next `changes`."""
        self._modules.know(name)

    def changes(self, code: CodeType | None, elapsed_ns: int) -> NamespaceChanges:
        """Return what was done since the last call, and move the baseline on.

        `code` is what ran, `None` where it never compiled; `elapsed_ns` is how long it ran, which bounds the
        search for mutation in place. Call it while no execution runs.
        """
        imports = self._modules.added()
        now = self._namespace.copy()  # other threads may go on; it keeps values alive only until we return
        names = self._names
        moved: dict[str, object] = {}
        if self._odd_names:
            now = _plain_names(now)
        if len(now) < len(names) or not all(map(is_, now, names)):
            now = _plain_names(now)
            moved = self._drop_moved(now)
        changed = self._compare(now)
        added: list[str] = []
        if len(now) > len(names):
            added, again = self._append(now, moved)
            changed += again
        complete = True
        if self._roster is None or self._roster.names:
            mutated, complete = self._mutated(code, now, {*added, *changed}, elapsed_ns)
            changed += mutated
        if not (added or changed or moved or imports) and complete:
            return NO_CHANGES
        added.sort()
        changed.sort()
        return NamespaceChanges(
            added_vars=added,
            changed_vars=changed,
            removed_vars=sorted(moved),
            added_imports=imports,
            variables={name: describe(now[name]) for name in (*added, *changed)},
            diff_complete=complete,
        )

    def _compare(self, now: dict[str, object]) -> list[str]:
        """Return the names that stayed in place but not with their value, and move the baseline on."""
        names, atoms = self._names, self._atoms
        differing = list(compress(names, map(is_not, now.values(), atoms)))
        if len(differing) == len(self._objects) and self._roster is not None and self._roster.is_same(now):
            return []
        place_of: Callable[[str], int] = names.index
        if len(differing) > 8:
            places = compress(count(), map(is_not, now.values(), atoms))
            place_of = dict(zip(differing, places, strict=False)).__getitem__
        return [name for name in differing if self._is_rebound(name, now[name], place_of)]

    def _is_rebound(self, name: str, value: object, place_of: Callable[[str], int]) -> bool:
        watched = self._objects.get(name, _WAS_ATOM)
        if watched is None:
            return False
        if watched is not _WAS_ATOM:
            if watched.address == id(value) and watched.kind == id(type(value)):
                return False
            place = place_of(name)
        else:
            place = place_of(name)
            before, self._atoms[place] = self._atoms[place], value
            if _same_atom(before, value):
                return False
        self._keep(name, place, value)
        return True

    def _keep(self, name: str, place: int, value: object) -> None:
        if is_atom(value):
            self._atoms[place] = value
            if self._objects.pop(name, None) is None:
                return
        else:
            self._atoms[place] = _NOT_KEPT
            self._objects[name] = Watched(value)
        self._roster = None

    def _append(self, now: dict[str, object], moved: dict[str, object]) -> tuple[list[str], list[str]]:
        """Take the names past the known ones; return new variables, and those that left `moved` for here."""
        added: list[str] = []
        again: list[str] = []
        for name in tuple(islice(now, len(self._names), None)):
            if type(name) is not str:
                self._odd_names = True
                continue
            value = now[name]
            self._names.append(name)
            self._atoms.append(_NOT_KEPT)
            if name[:1] == "_" or name in self._hidden:
                self._objects[name] = None
                continue
            self._keep(name, len(self._names) - 1, value)
            if name not in moved:
                added.append(name)
            elif not _same_atom(moved.pop(name), value):
                again.append(name)
        return added, again

    def _drop_moved(self, now: dict[str, object]) -> dict[str, object]:
        """Forget the names that lost their place, and return the variables among them with their atoms.

        A namespace keeps its order, and what is deleted and bound again comes last: so a name that lost its
        place was deleted, even where a new object has the address of the old one.
        """
        names, atoms = self._names, self._atoms
        start = next(compress(count(), map(is_not, now, names)), min(len(now), len(names)))
        left = islice(now, start, None)
        expected = next(left, None)
        moved: dict[str, object] = {}
        stay: list[int] = []
        for place in range(start, len(names)):
            name = names[place]
            if name is expected:
                stay.append(place)
                expected = next(left, None)
            elif self._objects.pop(name, _WAS_ATOM) is not None:
                moved[name] = atoms[place]
        self._roster = None
        names[start:] = [names[place] for place in stay]
        atoms[start:] = [atoms[place] for place in stay]
        return moved

    def _mutated(
        self, code: CodeType | None, now: dict[str, object], new: set[str], elapsed_ns: int
    ) -> tuple[list[str], bool]:
        """Return the names whose object was changed in place, or replaced unseen; and whether that is all."""
        started_ns = perf_counter_ns()
        first, rebound = self._read_names(code, now, new)
        new.update(rebound)
        look = Look(self._objects, now, started_ns + max(elapsed_ns // 50, MIN_SEARCH_NS))
        first_deadline_ns = started_ns + max(elapsed_ns // 50, MIN_FIRST_NS)
        roster = self._roster
        if new or roster is None or not look.at_small(roster):
            roster = self._look_first(look, first, new, first_deadline_ns)
        elif roster.others:
            look.at([name for name in first if name not in roster.chosen], deadline_ns=first_deadline_ns)
            look.at_rest(roster, first, small=False)
        if look.mutated or not look.complete:
            rebound += self._retyped(look, now, roster)
        if roster.is_stale:
            self._roster = None
        return rebound + look.mutated, look.complete

    def _read_names(
        self, code: CodeType | None, now: dict[str, object], new: set[str]
    ) -> tuple[dict[str, None], list[str]]:
        """Return the names with contents that the code reads, and those it rebound to the same address."""
        first: dict[str, None] = {}
        rebound: list[str] = []
        for reached in () if code is None else reachable_code(code, now):
            instructions = reached.co_code
            stored = stored_low_bytes(instructions)
            for index, name in enumerate(reached.co_names):
                watched = self._objects.get(name)
                if watched is None or name in new or name in rebound:
                    continue
                sites = store_sites(reached, instructions, name) if index & 0xFF in stored else None
                # Contents are compared anyway. An object without can also be replaced by a function that
                # stores once, but runs twice.
                if sites and (
                    may_store_twice(reached, instructions, sites)
                    or not (watched.has_contents or reached is code)
                ):
                    self._objects[name] = Watched(now[name])
                    rebound.append(name)
                    first.pop(name, None)
                elif watched.has_contents:
                    first[name] = None
        return first, rebound

    def _look_first(self, look: Look, first: dict[str, None], new: set[str], deadline_ns: int) -> Roster:
        """Look at what the code reads, then at what is new, then at the rest; return the roster of all."""
        objects = self._objects
        look.at(first, deadline_ns=deadline_ns)
        fresh = [name for name in new if (entry := objects.get(name)) and entry.has_contents]
        look.at(fresh, fresh=True, deadline_ns=deadline_ns)
        before = self._roster
        if before is not None and not new and not before.is_stale:
            look.at_rest(before, first, small=True)
            return before
        self._roster = roster = Roster(objects)
        small_done = look.at_small(roster)
        look.at_rest(roster, {*first, *new}, small=not small_done)
        return roster

    def _retyped(self, look: Look, now: dict[str, object], roster: Roster) -> list[str]:
        """Return names that another object of another type took over, at the same address."""
        retyped = [
            name
            for name in roster.names
            if (entry := self._objects[name]) and entry.kind != id(type(now[name]))
        ]
        for name in retyped:
            before, renewed = self._objects[name], Watched(now[name])
            if before is not None and renewed.has_contents and name in look.mutated:  # looked at just now
                renewed.digest, renewed.cost_ns, renewed.alone = before.digest, before.cost_ns, before.alone
            self._objects[name] = renewed
            self._roster = None
        return [name for name in retyped if name not in look.mutated]


def _plain_names(namespace: dict[str, object]) -> dict[str, object]:
    """Leave out keys that aren't plain strings: code can't name them, and comparing them could run code."""
    if all(map(is_, map(type, namespace), repeat(str))):
        return namespace
    return {name: value for name, value in namespace.items() if type(name) is str}


def is_atom(value: object) -> bool:
    """Tell whether the baseline keeps a value itself: small, unchangeable, of a type without user code."""
    kind = id(type(value))
    if kind in _SIZED_ATOMS:
        return value.__sizeof__() <= MAX_ATOM_BYTES
    return kind in _SIZELESS_ATOMS


def _same_atom(before: object, value: object) -> bool:
    """Tell whether an atom has the same type and value; NaN is NaN, and -0.0 isn't 0.0."""
    kind = type(before)
    if kind is not type(value):
        return False
    return repr(before) == repr(value) if kind is float or kind is complex else before == value
