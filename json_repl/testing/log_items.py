"""A recording as pytest collects it: a file, and a test for each line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

from json_repl.testing.checking import CheckedLine, check_lines
from json_repl.testing.sessions import shown_path
from task_logger.errors import TaskLogError


class RecordingFile(pytest.File):
    """A `*.exec.jsonl` file."""

    def collect(self) -> Iterable[RecordingLine]:
        """Yield a test for each line; a recording that can't be read is an error of the collection."""
        try:
            lines = list(check_lines(str(self.path)))
        except TaskLogError as exc:
            raise self.CollectError(str(exc)) from exc
        if not lines:
            raise self.CollectError(f"{shown_path(str(self.path))}: the recording holds no execution")
        for line in lines:
            yield RecordingLine.from_parent(self, name=f"line {line.number}", checked=line)


class RecordingLine(pytest.Item):
    """One line of a recording."""

    def __init__(self, *, checked: CheckedLine, **more: Any) -> None:
        super().__init__(**more)
        self._checked = checked

    def runtest(self) -> None:
        """Fail for what is wrong with the line, skip what couldn't be replayed."""
        place = f"{shown_path(str(self.path))}:{self._checked.number}"
        if self._checked.problems:
            pytest.fail("\n".join(f"{place}: {each}" for each in self._checked.problems), pytrace=False)
        if self._checked.skip_reason is not None:
            pytest.skip(f"{place}: {self._checked.skip_reason}")

    def reportinfo(self) -> tuple[os.PathLike[str], int, str]:
        """Where it is: the file and the line, from 0."""
        return self.path, self._checked.number - 1, f"{self.path.name}:{self._checked.number}"
