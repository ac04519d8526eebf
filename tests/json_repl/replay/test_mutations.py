"""200 mutations planted in a recording: each is found at its line, field and column."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.json_repl.replay.recorded_logs import change, record, replayed

KINDS = ("output", "name", "import", "exception", "lines of output swapped", "lines of the log swapped")
PER_KIND = dict.fromkeys(KINDS[:4], 40) | dict.fromkeys(KINDS[4:], 20)
"""200; each swap of the log's lines puts two of them in the wrong place, and counts as one."""

FIELDS = {"name": "added_vars", "import": "added_imports", "exception": "error.type"}
"""Where a mutation is planted; the others in what was printed."""

_NAMES = ("alpha", "beta", "gamma", "delta")


def code_of(number: int) -> str:
    """Code whose outcome has something of every kind."""
    return (
        f"import sys, types\n"
        f"sys.modules['made_{number}'] = sys.modules['also_made_{number}'] = types.ModuleType('made')\n"
        + "".join(f"{name}_{number} = {number}\n" for name in _NAMES)
        + f"print('first line of {number}')\nprint('another line: {number * 7919}')\n"
        + f"class Odd{number}(Exception): pass\nraise Odd{number}('no {number}')"
    )


def plant(lines: list[dict[str, Any]], chance: random.Random) -> dict[int, tuple[str, int, int]]:
    """Change lines in place; returns the field, line and column of what was planted, by the log's line."""
    kinds = [kind for kind, count in PER_KIND.items() for _ in range(count)]
    chance.shuffle(kinds)
    planted = {}
    at = 0
    for kind in kinds:
        if kind == "lines of the log swapped":
            lines[at], lines[at + 1] = lines[at + 1], lines[at]
            for index in (at, at + 1):
                planted[index + 1] = ("seq", *_place(str(lines[index]["seq"]), str(index + 1)))
            at += 2
            continue
        field = FIELDS.get(kind, "stdout")
        home, name = (lines[at]["error"], "type") if field == "error.type" else (lines[at], field)
        before = home[name]
        home[name] = _swapped(before) if kind == "lines of output swapped" else _mutated(before, chance)
        planted[at + 1] = (field, *_place(_text(home[name]), _text(before)))
        at += 1
    return planted


def _swapped(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[::-1])


def _mutated(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list):
        which = chance.randrange(len(value))
        return sorted([*value[:which], _mutated(value[which], chance), *value[which + 1 :]])
    at = chance.choice([index for index, char in enumerate(value) if char != "\n"])
    other = chance.choice([char for char in "abcxyzAZ019_" if char != value[at]])
    return value[:at] + other + value[at + 1 :]


def _text(value: object) -> str:
    return "\n".join(value) if isinstance(value, list) else str(value)


def _place(one: str, other: str) -> tuple[int, int]:
    """Line and column where two texts part, told the slow way."""
    line = column = 1
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        line, column = (line + 1, 1) if ours == "\n" else (line, column + 1)
    return line, column


@pytest.mark.parametrize("is_chained", [True, False], ids=["chained anew", "chain broken"])
def test_200_planted_mutations_are_found_at_line_field_and_column(
    is_chained: bool, log_root: Path, tmp_path: Path
) -> None:
    path = record(map(code_of, range(1, 261)), snapshots="off")
    chance = random.Random(20261120)
    planted: dict[int, tuple[str, int, int]] = {}

    def mutate(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        planted.update(plant(lines, chance))
        return lines

    mutant = change(path, tmp_path / "mutants" / "local" / "1.x.jsonl", mutate, is_chained=is_chained)
    before = mutant.read_bytes()
    assert replayed(path).counts["MATCH"] == 260
    report = replayed(mutant)
    found = {
        step.number: [(each.field, each.line, each.column) for each in step.differences]
        for step in report.steps
        if step.verdict == "DIFF"
    }
    assert sum(PER_KIND.values()) == 200
    assert found == {number: [place] for number, place in planted.items()}
    assert report.counts["random"] == 0
    assert bool(report.faults) is not is_chained  # a broken chain is told, and ends nothing
    assert mutant.read_bytes() == before
