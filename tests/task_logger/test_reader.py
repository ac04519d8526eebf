"""What a reader says of a log, whole or damaged."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_logger.codec import FIRST_PREV, UnreadablePiece, complete, seal, timestamp
from task_logger.errors import EncryptedLine, LogNotFound, LogUnreadable
from task_logger.reader import (
    Damage,
    LogLine,
    LogReader,
    find_logs,
    last_lines,
    last_records,
    pending_of,
    read_lines,
    read_records,
    recovered_pieces,
    start_of_last,
)
from task_logger.record import ExecutionRecord, TaskIds
from task_logger.summary import DamageTally, summarize

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="user login")
SESSION_ID = "0190163d-8694-739b-aea5-966c26f8ad91"


def body(seq: int, **fields: object) -> bytes:
    given = {"code": f"x = {seq}", **fields}
    return complete(given, task=TASK, session_id=SESSION_ID, seq=seq, timestamp=timestamp(seq * 10**9))


def lines(count: int) -> list[bytes]:
    prev, sealed = FIRST_PREV, []
    for number in range(1, count + 1):
        line, prev = seal(body(number), number, prev)
        sealed.append(line)
    return sealed


LINES = lines(8)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "7.user_login.jsonl"


def seen(log: Path) -> list[str | int]:
    """What a reader finds: a line's number, or the kind of damage."""
    return [found.link.n if isinstance(found, LogLine) else found.kind for found in read_lines(str(log))]


def test_a_whole_log_is_its_lines_in_order(log: Path) -> None:
    log.write_bytes(b"".join(LINES))
    assert seen(log) == [1, 2, 3, 4, 5, 6, 7, 8]
    records = list(read_records(str(log)))
    assert [record.request.code for record in records if isinstance(record, ExecutionRecord)] == [
        f"x = {number}" for number in range(1, 9)
    ]
    first = records[0]
    assert isinstance(first, ExecutionRecord)
    assert first.head is not None
    assert (first.head.path, first.head.n) == (str(log), 1)


def test_an_empty_log_has_no_lines(log: Path) -> None:
    log.write_bytes(b"")
    assert seen(log) == []
    assert list(last_lines(str(log), 3)) == []


def test_a_log_cut_at_any_byte_gives_exactly_its_whole_lines(log: Path) -> None:
    data = b"".join(LINES[:3])
    ends = [sum(map(len, LINES[:count])) for count in range(4)]
    for cut in range(len(data) + 1):
        log.write_bytes(data[:cut])
        whole = sum(1 for end in ends[1:] if end - 1 <= cut)
        is_torn = cut not in ends and cut + 1 not in ends
        assert seen(log) == [*range(1, whole + 1), *(["torn_tail"] if is_torn else [])], cut


@pytest.mark.parametrize("position", range(8))
def test_a_missing_line_breaks_the_chain_at_the_line_after_it(log: Path, position: int) -> None:
    log.write_bytes(b"".join(LINES[:position] + LINES[position + 1 :]))
    numbers = [number for number in range(1, 9) if number != position + 1]
    expected: list[str | int] = [*numbers]
    if position < 7:
        expected.insert(position, "chain_break")
    assert seen(log) == expected


@pytest.mark.parametrize("position", range(8))
def test_a_doubled_line_breaks_the_chain_at_the_second_of_them(log: Path, position: int) -> None:
    log.write_bytes(b"".join(LINES[: position + 1] + LINES[position:]))
    expected: list[str | int] = list(range(1, position + 2))
    expected += ["chain_break", *range(position + 1, 9)]
    assert seen(log) == expected


@pytest.mark.parametrize("position", range(7))
def test_swapped_lines_break_the_chain_where_the_first_of_them_stands(log: Path, position: int) -> None:
    swapped = [*LINES]
    swapped[position], swapped[position + 1] = swapped[position + 1], swapped[position]
    log.write_bytes(b"".join(swapped))
    found = seen(log)
    assert found.index("chain_break") == position
    assert [one for one in found if one != "chain_break"] == [int(json.loads(line)["n"]) for line in swapped]
    assert found.count("chain_break") == (3 if position < 6 else 2)


@pytest.mark.parametrize("position", range(9))
def test_a_forged_line_breaks_the_chain_where_it_stands(log: Path, position: int) -> None:
    forged, _ = seal(body(99), position + 1, "f" * 64)
    log.write_bytes(b"".join([*LINES[:position], forged, *LINES[position:]]))
    assert seen(log).index("chain_break") == position


def test_a_line_changed_in_one_byte_is_unreadable_and_the_next_does_not_follow(log: Path) -> None:
    changed = LINES[2].replace(b"x = 3", b"x = 4")
    log.write_bytes(b"".join([*LINES[:2], changed, *LINES[3:5]]))
    assert seen(log) == [1, 2, "unreadable", "chain_break", 4, 5]
    damage = [found for found in read_lines(str(log)) if isinstance(found, Damage)]
    at = len(LINES[0]) + len(LINES[1])
    assert (damage[0].at, damage[0].bytes) == (at, len(changed) - 1)
    assert damage[1].at == at + len(changed)
    assert "line 4 follows line 2" in damage[1].reason


def test_a_chain_made_anew_from_a_changed_line_on_can_only_be_found_by_an_earlier_head(log: Path) -> None:
    forged, prev = seal(body(3, code="other"), 3, json.loads(LINES[1])["hash"])
    rest, _ = seal(body(4), 4, prev)
    log.write_bytes(b"".join([*LINES[:2], forged, rest]))
    assert seen(log) == [1, 2, 3, 4]


def test_pieces_a_later_line_names_are_reported_and_no_alarm(log: Path) -> None:
    torn = LINES[1][:100]
    third, prev = seal(body(3), 2, json.loads(LINES[0])["hash"], [UnreadablePiece(len(LINES[0]), 100)])
    log.write_bytes(LINES[0] + torn + b"\n" + third + b"\n" + seal(body(4), 3, prev)[0])
    tally = DamageTally()
    found = list(read_lines(str(log)))
    for one in found:
        tally.add(one)
    assert seen(log) == [1, "unreadable", 2, "unreadable", 3]
    assert [tally.is_named(one) for one in tally.damage] == [True, False]
    assert tally.alarming() == tally.damage[1:]
    assert isinstance(found[2], LogLine)
    assert recovered_pieces(found[2]) == [(len(LINES[0]), 100)]


@given(garbage=st.binary(max_size=300), position=st.integers(0, 4))
def test_any_bytes_between_lines_are_reported_and_no_line_is_lost(
    log: Path, garbage: bytes, position: int
) -> None:
    log.write_bytes(b"".join([*LINES[:position], garbage, b"\n", *LINES[position:4]]))
    found = list(read_lines(str(log)))
    assert [one.link.n for one in found if isinstance(one, LogLine)] == [1, 2, 3, 4]
    pieces = [one for one in found if isinstance(one, Damage)]
    assert sum(one.bytes + 1 for one in pieces) == len(garbage) + 1
    for before, after in pairwise(pieces):
        assert before.at + before.bytes + 1 == after.at


def test_a_line_without_its_line_feed_is_a_line_and_the_next_reading_goes_on_behind_it(log: Path) -> None:
    log.write_bytes(LINES[0] + LINES[1][:-1])
    with LogReader(str(log)) as reader:
        assert [one.link.n for one in reader.lines() if isinstance(one, LogLine)] == [1, 2]
        assert list(reader.lines()) == []
        with log.open("ab") as file:
            file.write(b"\n" + LINES[2])
        assert [one.link.n for one in reader.lines() if isinstance(one, LogLine)] == [3]


def test_a_torn_tail_is_seen_until_it_is_whole(log: Path) -> None:
    log.write_bytes(LINES[0] + LINES[1][:50])
    with LogReader(str(log)) as reader:
        assert [type(one) for one in reader.lines()] == [LogLine, Damage]
        (torn,) = reader.lines()
        assert isinstance(torn, Damage)
        assert (torn.kind, torn.at, torn.bytes) == ("torn_tail", len(LINES[0]), 50)
        with log.open("ab") as file:
            file.write(LINES[1][50:] + LINES[2])
        assert [one.link.n for one in reader.lines() if isinstance(one, LogLine)] == [2, 3]


def test_a_log_that_became_shorter_while_it_was_read_is_an_error(log: Path) -> None:
    log.write_bytes(b"".join(LINES))
    with LogReader(str(log)) as reader:
        list(reader.lines())
        os.truncate(log, 10)
        with pytest.raises(LogUnreadable, match="shorter"):
            list(reader.lines())


@pytest.mark.parametrize("count", [0, 1, 3, 8, 100])
def test_the_last_lines_are_found_from_the_end(log: Path, count: int) -> None:
    log.write_bytes(b"".join(LINES))
    found = [
        one.head.n for one in last_records(str(log), count) if isinstance(one, ExecutionRecord) and one.head
    ]
    assert found == list(range(1, 9))[max(0, 8 - count) :]


def test_the_last_lines_come_with_the_damage_between_and_behind_them(log: Path) -> None:
    log.write_bytes(b"".join([*LINES[:6], b"garbage\n", *LINES[6:], b"\n", LINES[0][:30]]))
    kinds = [one.kind if isinstance(one, Damage) else one.link.n for one in last_lines(str(log), 3)]
    assert kinds == [6, "unreadable", 7, 8, "unreadable", "torn_tail"]


@pytest.mark.foreign_lines
def test_a_line_of_another_major_version_is_damage_with_its_reason(log: Path) -> None:
    newer, prev = seal(body(2).replace(b'"schema":1', b'"schema":2'), 2, json.loads(LINES[0])["hash"])
    log.write_bytes(LINES[0] + newer + seal(body(3), 3, prev)[0])
    first, second, third = read_records(str(log))
    assert isinstance(first, ExecutionRecord)
    assert isinstance(second, Damage)
    assert second.kind == "unsupported"
    assert "schema 2" in second.reason
    assert isinstance(third, ExecutionRecord)


def test_a_sealed_line_that_is_no_execution_is_damage_with_its_reason(log: Path) -> None:
    log.write_bytes(seal(b'{"other":1', 1, FIRST_PREV)[0])
    (damage,) = read_records(str(log))
    assert isinstance(damage, Damage)
    assert "plan_id" in damage.reason


def test_encrypted_lines_are_named_as_what_they_are(log: Path) -> None:
    sealed, _ = seal(b'{"enc":"AAAA"', 1, FIRST_PREV)
    log.write_bytes(b'{"enc":"AAAA"}\n' + sealed)
    for damage in read_records(str(log)):
        assert isinstance(damage, Damage)
        assert damage.kind == "unsupported"
        assert "encrypted" in damage.reason
    line = list(read_lines(str(log)))[-1]
    assert isinstance(line, LogLine)
    with pytest.raises(EncryptedLine):
        line.record()


def test_a_missing_log_is_an_error_and_no_empty_log(log: Path) -> None:
    for read in (read_lines, read_records):
        with pytest.raises(LogNotFound, match="no task log"):
            list(read(str(log)))
    with pytest.raises(LogNotFound):
        list(last_lines(str(log), 1))


def test_what_is_no_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null"), Path("a\0b")):
        with pytest.raises(LogUnreadable):
            list(read_lines(str(path)))


def test_a_log_that_may_not_be_read_is_an_error_that_says_so(log: Path) -> None:
    log.write_bytes(LINES[0])
    log.chmod(0)
    # As root nothing is forbidden: the reader becomes somebody else after its imports.
    code = (
        "import os\nfrom task_logger.reader import read_lines\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        f"list(read_lines({str(log)!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LogUnreadable" in found.stderr
    assert "ermission denied" in found.stderr


def test_logs_are_found_below_the_root_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("P-1/7.a.jsonl", "P-1/8.b.jsonl", "P-2/x.c.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(LINES[0])
    (tmp_path / "P-1/events").mkdir()
    (tmp_path / "P-1/events/7.a.events.jsonl").write_bytes(b"")
    (tmp_path / "P-1/pending").mkdir()
    assert find_logs(str(tmp_path)) == [
        str(tmp_path / name) for name in ("P-1/7.a.jsonl", "P-1/8.b.jsonl", "P-2/x.c.jsonl")
    ]
    with pytest.raises(LogNotFound):
        find_logs(str(tmp_path / "nowhere"))


def test_a_log_nobody_runs_code_for_has_nothing_pending(log: Path) -> None:
    log.write_bytes(LINES[0])
    assert pending_of(str(log)) == []


def test_a_log_in_numbers(log: Path) -> None:
    failed, _ = seal(body(2, success=False), 2, json.loads(LINES[0])["hash"])
    log.write_bytes(LINES[0] + failed + b"garbage\n" + b"torn")
    summary = summarize(str(log))
    assert (summary.lines, summary.ok, summary.failed, summary.damaged) == (2, 1, 1, 1)
    assert (summary.plan, summary.task, summary.name) == ("P-1", "T-7", "user login")
    assert summary.last == timestamp(2 * 10**9)
    assert summary.bytes == log.stat().st_size


def test_a_gigantic_piece_is_reported_in_little_memory(log: Path) -> None:
    with log.open("wb") as file:
        file.write(LINES[0])
        file.truncate(len(LINES[0]) + (300 << 20))
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + LINES[1])
    code = (
        "import resource; from task_logger.reader import read_lines\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = list(read_lines({str(log)!r}))\n"
        "print(found[1].kind, found[1].bytes, found[2].link.n)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    limit = (1 << 30, 1 << 30)
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),  # no threads here
    )
    first, grown_kib = found.stdout.splitlines()
    assert first == f"unreadable {300 << 20} 2"
    assert int(grown_kib) < 100 * 1024


def test_no_descriptor_is_left_open(log: Path) -> None:
    log.write_bytes(b"".join(LINES))
    gc.collect()  # of earlier tests: it must not close anything in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        list(last_records(str(log), 2))
        next(read_records(str(log)))
        with pytest.raises(LogUnreadable):
            list(read_lines("/dev/null"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_path_may_be_a_path_object(tmp_path: Path) -> None:
    path = tmp_path / "1.it.jsonl"
    path.write_bytes(seal(body(1), 1, FIRST_PREV)[0])
    with LogReader(path) as reader:
        assert len(list(reader.lines())) == 1
    assert start_of_last(path, 1) == 0
    for records in (read_records(path), last_records(path, 1)):
        assert [isinstance(record, ExecutionRecord) for record in records] == [True]
