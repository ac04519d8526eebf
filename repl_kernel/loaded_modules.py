"""Which modules were loaded since the last look."""

from __future__ import annotations

import sys


class LoadedModules:
    """The names in `sys.modules`; looks at its length and its last entry unless these differ."""

    def __init__(self) -> None:
        self._names = _module_names()
        self._mark = self._look()

    def _look(self) -> tuple[int, object, int]:
        modules = sys.modules
        last = next(reversed(modules), None)
        return len(modules), last, id(modules.get(last))  # type: ignore[arg-type]  # None is in no sys.modules

    def added(self) -> list[str]:
        """Return the names that are new since the last call, sorted."""
        mark = self._look()
        if mark == self._mark:
            return []
        self._mark = mark
        before, self._names = self._names, _module_names()
        return sorted(self._names - before)

    def know(self, name: str) -> None:
        """Count a module as loaded before."""
        self._names.add(name)


def _module_names() -> set[str]:
    return {name for name in tuple(sys.modules) if type(name) is str}
