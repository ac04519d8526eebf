"""Which execution started from the state of which: against a naive model, and as `show --tree` draws it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from task_logger.codec import FIRST_PREV, complete, seal, timestamp
from task_logger.lineage import Lineage, Step, lineage
from task_logger.record import TaskIds
from task_logger.tree import ASCII, tree_lines, tree_nodes

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="user login")
A, B = "0190163d-8694-739b-aea5-966c26f8ad91", "0190163d-8694-739b-aea5-966c26f8ad92"


def step(n: int, session_id: str, seq: int, parent: str | None = None, **more: object) -> Step:
    fields: dict[str, object] = {"status": "ok", "is_rolled_back": False, "code": f"x{n} = {n}", **more}
    return Step(n=n, session_id=session_id, seq=seq, parent=parent, **fields)  # type: ignore[arg-type]  # any of them


@st.composite
def logs(draw: st.DrawFn) -> list[Step]:
    """Logs of a few sessions, lines in any order, with parents that are there or not, and even circles."""
    names = draw(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 8)), max_size=14))
    parents = st.none() | st.builds("{}:{}".format, st.sampled_from("ABCD"), st.integers(0, 9))
    return [step(n, session_id, seq, draw(parents)) for n, (session_id, seq) in enumerate(names, start=1)]


def naive_parent(steps: Sequence[Step], at: Step) -> str | None:
    """The name of the execution whose state this one started from, by looking at all others."""
    if at.parent is not None:
        return at.parent if any(other.name == at.parent for other in steps) else None
    earlier = [other.seq for other in steps if other.session_id == at.session_id and other.seq < at.seq]
    return f"{at.session_id}:{max(earlier)}" if earlier else None


@given(logs())
def test_the_forest_is_that_of_a_naive_model(steps: list[Step]) -> None:
    found = lineage(steps)
    cut = []
    for position, one in enumerate(steps):
        parent = found.parents[position]
        expected = naive_parent(steps, one)
        if parent is None and expected is not None:
            cut.append(one)
        else:
            assert (None if parent is None else steps[parent].name) == expected
            assert parent is None or steps[parent] is next(each for each in steps if each.name == expected)
    for one in cut:  # only ever what lies on a circle, and of each circle only one
        seen, name = [one], naive_parent(steps, one)
        while name != one.name:
            seen.append(next(each for each in steps if each.name == name))
            name = naive_parent(steps, seen[-1])
        assert [each for each in seen if each in cut] == [one]
        assert one.n == min(each.n for each in seen)


@given(logs())
def test_every_execution_is_drawn_once_and_reached_from_a_root(steps: list[Step]) -> None:
    found = lineage(steps)
    drawn = [text for text in tree_lines(found, columns=200, strokes=ASCII) if " session " not in text]
    assert sorted(int(text.split()[0]) for text in drawn) == [one.n for one in steps]
    assert all(
        found.parents[child] == position
        for position, children in enumerate(found.children)
        for child in children
    )
    named = {one.name: len(nodes) for one, nodes in zip(steps, found.children, strict=True)}
    assert len(list(tree_nodes(found))) == len(steps)
    assert sum(named.values()) <= len(steps)


@given(logs())
def test_straight_down_is_the_way_to_the_newest_execution_of_the_session(steps: list[Step]) -> None:
    found = lineage(steps)

    def newest_below(position: int) -> int:
        same = steps[position].session_id
        below = [child for child in found.children[position] if steps[child].session_id == same]
        return max([steps[position].seq, *map(newest_below, below)])

    for position, following in found.next_of.items():
        own = [
            each for each in found.children[position] if steps[each].session_id == steps[position].session_id
        ]
        assert newest_below(following) == max(map(newest_below, own))


def a_session_with_everything() -> Lineage:
    """Rewound, tried out, branched, crashed and restored, restarted."""
    return lineage(
        [
            step(1, A, 1),
            step(2, A, 2),
            step(3, B, 1, f"{A}:1"),
            step(4, B, 2),
            step(5, A, 3, f"{A}:2"),
            step(6, A, 4, f"{A}:2"),
            step(7, A, 5, f"{A}:3"),
            step(8, A, 6, f"{A}:1", status="crashed", is_rolled_back=True),
            step(9, A, 7, f"{A}:1"),
            step(10, A, 8, f"{A}:0"),
            step(11, B, 3, f"{'C'}:9"),
        ]
    )


def test_branches_are_drawn_off_the_line_that_goes_on() -> None:
    assert list(tree_lines(a_session_with_everything(), columns=80)) == [
        f"    session {A}",
        " 1  1 ok  x1 = 1",
        " 2  ├─ 2 ok  x2 = 2",
        " 6  │  ├─ 4 ok  x6 = 6",
        " 5  │  3 ok  x5 = 5",
        " 7  │  5 ok  x7 = 7",
        f"    │  session {B}",
        " 3  ├─ 1 ok  x3 = 3",
        " 4  │  2 ok  x4 = 4",
        " 8  ├─ 6 crashed, rolled back  x8 = 8",
        " 9  7 ok  x9 = 9",
        f"    session {A}, from the empty namespace",
        "10  8 ok  x10 = 10",
        f"    session {B}, from C:9, which is not in this log",
        "11  3 ok  x11 = 11",
    ]


def test_nodes_name_their_parents_and_children() -> None:
    nodes = {node["n"]: node for node in tree_nodes(a_session_with_everything())}
    assert (nodes[1]["parent"], nodes[1]["children"]) == (None, [f"{A}:2", f"{B}:1", f"{A}:6", f"{A}:7"])
    assert (nodes[7]["parent"], nodes[7]["children"]) == (f"{A}:3", [])
    assert (nodes[10]["parent"], nodes[11]["parent"]) == (None, "C:9")
    assert (nodes[8]["status"], nodes[8]["rolled_back"]) == ("crashed", True)


def test_a_long_chain_and_a_deep_one_are_drawn_within_the_columns() -> None:
    long = lineage(step(n, A, n) for n in range(1, 20_001))
    assert len(list(tree_lines(long, columns=80))) == 20_001
    deep = []
    for session in range(60):  # each a branch of the one before
        parent = f"{session - 1}:1" if session else None
        deep += [
            step(2 * session + 1, str(session), 1, parent, code="y" * 200),
            step(2 * session + 2, str(session), 2),
        ]
    drawn = list(tree_lines(lineage(deep), columns=80))
    assert max(map(len, drawn)) <= 80
    assert sum("y" * 10 in text for text in drawn) == 60


def write_log(path: Path, *more: dict[str, object]) -> list[bytes]:
    prev, lines = FIRST_PREV, []
    for n, fields in enumerate(more, start=1):
        seq, session_id = fields.pop("seq"), fields.pop("session_id", A)
        body = complete(
            fields, task=TASK, session_id=str(session_id), seq=int(str(seq)), timestamp=timestamp(n * 10**9)
        )
        line, prev = seal(body, n, prev)
        lines.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))
    return lines


def show_tree(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "task_logger", "show", "--tree", *arguments, str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ
        | {"PYTHONWARNINGS": "error", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
        | variables,
        timeout=60,
    )


FIELDS: list[dict[str, object]] = [
    {"seq": 1, "code": "x = 1\nprint(x)"},
    {"seq": 2, "code": "x = 2 # \x1b[31m" + "é" * 100},
    {"seq": 3, "code": "x", "parent": f"{A}:1"},
]


def test_the_command_draws_in_a_pipe_and_in_plain_ascii_where_it_must(tmp_path: Path) -> None:
    path = tmp_path / "P-1" / "7.user_login.jsonl"
    write_log(path, *(dict(fields) for fields in FIELDS))
    ended = show_tree(path)
    assert (ended.returncode, ended.stderr) == (0, "")
    head, first, second, third = ended.stdout.splitlines()
    assert (head, first, third) == (f"   session {A}", "1  1 ok  x = 1…", "3  3 ok  x")
    assert second.startswith("2  ├─ 2 ok  x = 2 # \\x1b[31mé")
    assert len(second) == 80
    plain = show_tree(path, PYTHONIOENCODING="ascii")
    assert "2  |- 2 ok" in plain.stdout
    assert plain.stdout.isascii()


def test_the_command_gives_nodes_as_json(tmp_path: Path) -> None:
    path = tmp_path / "P-1" / "7.user_login.jsonl"
    write_log(path, *(dict(fields) for fields in FIELDS))
    nodes = [json.loads(line) for line in show_tree(path, "--json").stdout.splitlines()]
    assert [(node["name"], node["parent"], node["children"]) for node in nodes] == [
        (f"{A}:1", None, [f"{A}:2", f"{A}:3"]),
        (f"{A}:2", f"{A}:1", []),
        (f"{A}:3", f"{A}:1", []),
    ]
    assert nodes[0]["code"] == "x = 1\nprint(x)"


def test_damage_is_reported_beside_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "P-1" / "7.user_login.jsonl"
    lines = write_log(path, *(dict(fields) for fields in FIELDS))
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])
    ended = show_tree(path)
    assert ended.returncode == 1
    assert "unreadable" in ended.stderr
    assert "chain break" in ended.stderr
    assert "3  3 ok  x" in ended.stdout


def test_a_line_number_beside_the_tree_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "P-1" / "7.user_login.jsonl"
    write_log(path, *(dict(fields) for fields in FIELDS))
    ended = show_tree(path, "2")
    assert ended.returncode == 2
    ended = subprocess.run(
        [sys.executable, "-m", "task_logger", "show", str(path), "2", "--tree"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "leave the line number out" in ended.stderr
