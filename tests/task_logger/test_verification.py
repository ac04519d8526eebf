"""What a verification says of a log that was changed, cut, or left by writers that died."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_logger import artifacts
from task_logger.codec import FIRST_PREV, UnreadablePiece, complete, seal, timestamp
from task_logger.line_checks import ArtifactCheck, LineChecks
from task_logger.log_file import LogFile
from task_logger.record import Artifact, TaskIds
from task_logger.verification import LogVerdict, verify_log

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="user login")
SESSION_ID = "0190163d-8694-739b-aea5-966c26f8ad91"


def body(seq: int, **fields: object) -> bytes:
    given = {"code": f"x = {seq}", **fields}
    return complete(given, task=TASK, session_id=SESSION_ID, seq=seq, timestamp=timestamp(seq * 10**9))


def chained(count: int, prev: str = FIRST_PREV, first: int = 1) -> list[bytes]:
    sealed = []
    for number in range(first, first + count):
        line, prev = seal(body(number), number, prev)
        sealed.append(line)
    return sealed


def hash_of(line: bytes) -> str:
    return line[-67:-3].decode()


LINES = chained(100)
HEAD = (100, hash_of(LINES[-1]))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "7.user_login.jsonl"


def verdict_of(log: Path, lines: list[bytes], head: tuple[int, str] | None = HEAD) -> LogVerdict:
    log.write_bytes(b"".join(lines))
    return verify_log(str(log), head=head)


def problems(verdict: LogVerdict) -> list[tuple[str, int]]:
    return [(one.kind, one.line) for one in verdict.findings if one.level == "problem"]


def starts(lines: list[bytes]) -> list[int]:
    places, at = [], 0
    for line in lines:
        places.append(at)
        at += len(line)
    return places


def test_a_whole_log_with_its_head_is_a_yes(log: Path) -> None:
    verdict = verdict_of(log, LINES)
    assert verdict.findings == ()
    assert (verdict.lines, verdict.head, verdict.complete_to) == (100, HEAD, 100)
    assert verdict.is_yes(strict=True)


def test_without_a_head_nothing_proves_that_the_last_line_is_the_last(log: Path) -> None:
    verdict = verdict_of(log, LINES, None)
    (finding,) = verdict.findings
    assert (finding.kind, finding.level, finding.line) == ("completeness", "unproven", 100)
    assert "complete only if line 100 is the head" in finding.reason
    assert "unsynced_tail_possible" in finding.reason
    assert verdict.is_yes()
    assert not verdict.is_yes(strict=True)
    assert verdict.complete_to == 0


def test_an_empty_log_is_not_proven_complete(log: Path) -> None:
    verdict = verdict_of(log, [], None)
    assert [one.kind for one in verdict.findings] == ["completeness"]
    assert verdict.head is None


def test_a_line_taken_out_is_found_where_it_was(log: Path) -> None:
    for place in range(100):
        lines = LINES[:place] + LINES[place + 1 :]
        verdict = verdict_of(log, lines)
        if place == 99:
            assert problems(verdict) == [("truncated", 99)]
            assert "truncated: 1 record missing" in verdict.findings[0].reason
        else:
            assert problems(verdict) == [("missing", place + 1)]
            assert (verdict.findings[0].at, verdict.findings[0].n) == (starts(lines)[place], place + 1)


def test_a_line_that_is_there_twice_is_found(log: Path) -> None:
    for place in range(100):
        for second in {place + 1, 0, 50, 100}:
            lines = [*LINES[:second], LINES[place], *LINES[second:]]
            verdict = verdict_of(log, lines)
            (finding,) = verdict.findings
            assert (finding.kind, finding.n) == ("duplicated", place + 1)
            assert finding.line in (second + 1, place + 1 + (second <= place)), "one of the two"
            assert finding.at == starts(lines)[finding.line - 1]


def test_two_neighbours_that_changed_places_are_found(log: Path) -> None:
    for place in range(99):
        lines = [*LINES[:place], LINES[place + 1], LINES[place], *LINES[place + 2 :]]
        verdict = verdict_of(log, lines)
        (finding,) = verdict.findings
        assert finding.kind == "swapped"
        assert finding.line in (place + 1, place + 2)
        assert finding.at == starts(lines)[finding.line - 1]
        assert LINES[(finding.n or 0) - 1] == lines[finding.line - 1]


@pytest.mark.parametrize(("one", "other"), [(0, 2), (0, 99), (10, 50), (97, 99), (3, 5)])
def test_two_lines_far_apart_that_changed_places_are_both_found(log: Path, one: int, other: int) -> None:
    lines = list(LINES)
    lines[one], lines[other] = lines[other], lines[one]
    found = problems(verdict_of(log, lines))
    assert {kind for kind, _ in found} == {"swapped"}
    if other - one > 2:
        assert {line for _, line in found} == {one + 1, other + 1}


INSERTED = {
    "no line at all": b"hello\n",
    "nothing": b"\n",
    "the start of a line": LINES[3][:60] + b"\n",
    "a line of another log": seal(body(5, code="elsewhere"), 5, "ab" * 32)[0],
    "a line with a number far away": seal(body(5), 10**9, "ab" * 32)[0],
}


@pytest.mark.parametrize("what", INSERTED)
def test_what_is_put_in_is_found_where_it_is(log: Path, what: str) -> None:
    for place in range(101):
        lines = [*LINES[:place], INSERTED[what], *LINES[place:]]
        found = problems(verdict_of(log, lines))
        assert [line for _, line in found] == [place + 1]
        assert found[0][0] in (("inserted",) if place < 100 else ("inserted", "missing", "cut"))


def test_a_line_put_in_with_the_right_number_and_hashes_is_found(log: Path) -> None:
    for place in range(100):
        prev = hash_of(LINES[place - 1]) if place else FIRST_PREV
        forged = seal(body(place + 1, code="forged"), place + 1, prev)[0]
        found = problems(verdict_of(log, [*LINES[:place], forged, *LINES[place:]]))
        assert found == [("inserted", place + 1)] if place < 99 else found[0][0] == "inserted"


def test_an_altered_line_is_found_at_any_of_its_bytes(log: Path) -> None:
    for place in range(100):
        line = LINES[place]
        chosen = random.Random(place)
        offsets = {0, len(line) - 2, len(line) - 10, len(line) - 76, *chosen.sample(range(len(line) - 1), 8)}
        for offset in offsets:
            changed = bytearray(line)
            changed[offset] ^= 1
            verdict = verdict_of(log, [*LINES[:place], bytes(changed), *LINES[place + 1 :]])
            found = [one for one in verdict.findings if one.level == "problem" and one.kind != "truncated"]
            (finding,) = found
            assert finding.kind in ("altered", "cut"), offset
            assert (finding.line, finding.at, finding.n) == (place + 1, starts(LINES)[place], place + 1)


def test_an_altered_line_with_its_hash_made_anew_is_found_by_the_line_behind_it(log: Path) -> None:
    for place in range(100):
        prev = hash_of(LINES[place - 1]) if place else FIRST_PREV
        changed = seal(body(place + 1, code="harmless"), place + 1, prev)[0]
        found = problems(verdict_of(log, [*LINES[:place], changed, *LINES[place + 1 :]]))
        assert found == [("altered" if place < 99 else "other_head", place + 1)]


def test_the_size_of_a_damaged_log_is_that_of_the_file(log: Path) -> None:
    altered = LINES[4].replace(b"x = 5", b"x = 6")
    verdict = verdict_of(log, [*LINES[:4], altered, *LINES[5:90], LINES[90][:50] + b"\n"])
    assert verdict.bytes == log.stat().st_size
    assert problems(verdict) == [("altered", 5), ("cut", 91), ("truncated", 91)]


def test_line_ends_changed_to_those_of_windows_are_found(log: Path) -> None:
    verdict = verdict_of(log, [line[:-1] + b"\r\n" for line in LINES])
    assert verdict.lines == 0
    assert not verdict.is_yes()


def test_lines_run_together_are_found(log: Path) -> None:
    found = problems(verdict_of(log, [*LINES[:40], LINES[40][:-1], *LINES[41:]]))
    assert found == [("altered", 41)]


def test_a_log_cut_at_any_byte_has_exactly_its_whole_lines(log: Path) -> None:
    lines = LINES[:4]
    whole = b"".join(lines)
    ends = [0, *(start + len(line) for start, line in zip(starts(lines), lines, strict=True))]
    for size in range(len(whole) + 1):
        verdict = verdict_of(log, [whole[:size]], None)
        count = sum(size >= end - 1 for end in ends[1:])  # a line without its LF is whole
        assert verdict.lines == count, size
        kinds = {one.kind: one for one in verdict.findings}
        assert all(one.level == "unproven" for one in verdict.findings)
        assert "complete only if" in kinds["completeness"].reason
        is_at_line_end = size in ends or size + 1 in ends[1:]
        assert ("torn_tail" in kinds) is not is_at_line_end, size
        if not is_at_line_end:
            torn = kinds["torn_tail"]
            assert (torn.at, torn.bytes) == (ends[count], size - ends[count])
            assert torn.reason.startswith(f"torn_tail({count})")


@pytest.mark.parametrize("kept", [0, 1, 50, 97, 99])
def test_a_head_tells_how_many_records_were_cut_off(log: Path, kept: int) -> None:
    verdict = verdict_of(log, LINES[:kept])
    (finding,) = verdict.findings
    missing = 100 - kept
    text = "1 record" if missing == 1 else f"{missing} records"
    assert finding.kind == "truncated"
    assert f"truncated: {text} missing behind line {kept}" in finding.reason
    assert not verdict.is_yes()


def test_a_head_of_a_line_in_the_middle_proves_all_up_to_it(log: Path) -> None:
    verdict = verdict_of(log, LINES, (40, hash_of(LINES[39])))
    assert verdict.complete_to == 40
    assert verdict.is_yes(strict=True)


def test_a_chain_made_anew_is_found_by_a_head_and_by_nothing_else(log: Path) -> None:
    anew = []
    prev = FIRST_PREV
    for number in range(1, 101):
        line, prev = seal(body(number, code="y = 0"), number, prev)
        anew.append(line)
    assert problems(verdict_of(log, anew)) == [("other_head", 100)]
    assert verdict_of(log, anew, None).is_yes()


def torn_log(count: int = 6) -> tuple[list[bytes], tuple[int, str]]:
    """Lines 1 to `count`, with a dead writer's piece before line 4, which names it."""
    lines = chained(3)
    piece = LINES[10][:100]
    at = sum(map(len, lines))
    fourth, prev = seal(body(4), 4, hash_of(lines[-1]), [UnreadablePiece(at, len(piece))])
    lines += [piece + b"\n", fourth, *chained(count - 4, prev, 5)]
    return lines, (count, hash_of(lines[-1]))


def test_a_dead_writers_piece_that_the_next_line_names_is_no_problem(log: Path) -> None:
    lines, head = torn_log()
    verdict = verdict_of(log, lines, head)
    assert [(one.kind, one.level, one.line) for one in verdict.findings] == [("torn", "note", 4)]
    assert verdict.is_yes(strict=True)


def test_a_named_piece_that_was_taken_out_or_altered_in_length_is_found(log: Path) -> None:
    lines, head = torn_log()
    assert problems(verdict_of(log, lines[:3] + lines[4:], head)) == [("piece_missing", 4)]
    lines[3] = b"x" + lines[3]
    assert problems(verdict_of(log, lines, head)) == [("inserted", 4), ("piece_missing", 5)]


def test_a_line_taken_out_before_a_named_piece_is_the_only_thing_found(log: Path) -> None:
    lines, head = torn_log()
    assert problems(verdict_of(log, lines[1:], head)) == [("missing", 1)]


def test_a_piece_behind_the_last_line_that_a_dead_writer_can_have_left_is_not_a_problem(log: Path) -> None:
    piece = b'{"code":"'.ljust(4095 - len(LINES[0]), b"y")
    verdict = verdict_of(log, [LINES[0], piece, b"\n"], None)
    assert [one.kind for one in verdict.findings] == ["torn", "completeness"]
    assert verdict.is_yes()
    two_pieces = verdict_of(log, [LINES[0], LINES[1][:60], b"\n", LINES[1][:80]], None)
    assert [one.kind for one in two_pieces.findings] == ["torn", "torn_tail", "completeness"]
    assert two_pieces.is_yes()


CHANGES = st.sampled_from(["delete", "duplicate", "swap", "insert", "alter", "rehash"])


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(CHANGES, st.integers(0, 19), st.integers(0, 19)), min_size=1, max_size=4))
def test_no_mixture_of_changes_goes_unnoticed_or_breaks_the_verifier(
    log: Path, changes: list[tuple[str, int, int]]
) -> None:
    whole = LINES[:20]
    lines = list(whole)
    for change, one, other in changes:
        place, second = one % len(lines), other % len(lines)
        if change == "delete" and len(lines) > 1:
            del lines[place]
        elif change == "duplicate":
            lines.insert(second, lines[place])
        elif change == "swap":
            lines[place], lines[second] = lines[second], lines[place]
        elif change == "insert":
            lines.insert(place, b"%d\n" % other)
        elif change == "alter":
            lines[place] = lines[place].replace(b"x", b"z", 1)
        elif change == "rehash":
            lines[place] = seal(body(place + 1, code="r"), place + 1, "ab" * 32)[0]
    verdict = verdict_of(log, lines, (20, hash_of(whole[-1])))
    assert bool(problems(verdict)) is (lines != whole)


def test_a_log_made_of_thousands_of_parts_is_given_up_in_time(log: Path) -> None:
    lines = [seal(body(1), number, "cd" * 32)[0] for number in range(3000, 0, -1)]
    verdict = verdict_of(log, lines, None)
    assert problems(verdict)[-1][0] == "broken_up"


def with_artifact(plan: Path, content: bytes) -> tuple[list[bytes], str]:
    sha256 = hashlib.sha256(content).hexdigest()
    artifacts.put(
        str(plan),
        Artifact(field="stdout", sha256=sha256, bytes=len(content), mime="text/plain", content=content),
    )
    named = [{"field": "stdout", "sha256": sha256, "bytes": len(content), "mime": "text/plain"}]
    first, prev = seal(body(1), 1, FIRST_PREV)
    second, prev = seal(body(2, artifacts=named), 2, prev)
    third, _ = seal(body(3, artifacts=named), 3, prev)
    return [first, second, third], sha256


@pytest.mark.parametrize(
    ("damage", "kind"), [("none", None), ("gone", "missing"), ("byte", "damaged"), ("short", "damaged")]
)
def test_artifacts_are_looked_at(tmp_path: Path, log: Path, damage: str, kind: str | None) -> None:
    lines, sha256 = with_artifact(tmp_path, b"much output\n" * 1000)
    stored = Path(artifacts.artifact_path(str(tmp_path), sha256))
    if damage == "gone":
        stored.unlink()
    elif damage == "byte":
        stored.write_bytes(b"M" + stored.read_bytes()[1:])
    elif damage == "short":
        os.truncate(stored, 100)
    log.write_bytes(b"".join(lines))
    checks = LineChecks(str(log), artifacts=ArtifactCheck(str(tmp_path)))
    verdict = verify_log(str(log), head=(3, hash_of(lines[-1])), checks=checks)
    assert problems(verdict) == ([(f"artifact_{kind}", 2), (f"artifact_{kind}", 3)] if kind else [])


_WRITER = """
import sys
from task_logger.log_file import LogFile
log = LogFile(sys.argv[1], lock_wait_s=60)
number = 0
while True:
    number += 1
    log.append(b'{"code":"%b"' % (b"x" * (number % 17 * 1000)))
"""


@pytest.fixture
def writers(log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    LogFile(str(log)).close()
    started = [subprocess.Popen([sys.executable, "-c", _WRITER, str(log)]) for _ in range(16)]
    yield started
    for writer in started:
        writer.kill()
        writer.wait()


def test_no_alarm_is_raised_while_sixteen_writers_write(
    log: Path, writers: list[subprocess.Popen[bytes]]
) -> None:
    before = 0
    looks = 0
    while looks < 12:
        assert [writer.poll() for writer in writers] == [None] * 16
        verdict = verify_log(str(log))
        assert problems(verdict) == []
        assert verdict.lines >= before
        if verdict.lines > 32:
            looks += 1
        before = verdict.lines
        if log.stat().st_size > 64 << 20:
            break
    head = verdict.head
    assert head is not None
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    at_the_end = verify_log(str(log), head=head)
    assert problems(at_the_end) == []
    assert at_the_end.complete_to == head[0]
