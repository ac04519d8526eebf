"""Whatever is killed whenever: no acknowledged line is lost, and the chain holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from task_logger.log_file import LogFile
from tests.task_logger.kill_loop import lost_lines
from tests.task_logger.log_check import check_log

_SCRIPT = Path(__file__).with_name("kill_loop.py")


def _kill_loop(folder: Path, *arguments: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(_SCRIPT), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def _nothing_is_lost(result: dict[str, Any], *, least_kills: int) -> None:
    assert result["failed"] is None
    assert result["kills"] >= least_kills
    assert result["acknowledged"] > 0
    assert result["lost"] == 0
    assert result["breaks"] == []
    assert result["pieces"] <= result["kills"]
    assert result["line_ends"] == result["lines"] + result["pieces"]


def _all_is_decrypted(result: dict[str, Any]) -> None:
    assert result["decrypted"] == result["lines"]
    assert set(result["said"]) <= {"it is not a whole line with a right hash"}  # and nothing of keys


def test_killed_writers_lose_no_acknowledged_line(tmp_path: Path) -> None:
    _nothing_is_lost(_kill_loop(tmp_path, "--writers", "8", "--kills", "60"), least_kills=60)


def test_killed_writers_lose_no_synced_line(tmp_path: Path) -> None:
    _nothing_is_lost(_kill_loop(tmp_path, "--writers", "8", "--kills", "40", "--fsync"), least_kills=40)


def test_killed_writers_lose_nothing_in_memory_file_systems(shared_memory: Path) -> None:
    _nothing_is_lost(_kill_loop(shared_memory, "--writers", "8", "--kills", "60"), least_kills=60)


def test_one_writer_of_large_lines_leaves_named_pieces(tmp_path: Path) -> None:
    result = _kill_loop(tmp_path, "--writers", "1", "--kills", "80", "--largest-bytes", "1000000")
    _nothing_is_lost(result, least_kills=80)


def test_killed_writers_lose_no_acknowledged_line_of_an_encrypted_log(tmp_path: Path) -> None:
    result = _kill_loop(tmp_path, "--writers", "8", "--kills", "60", "--encrypted")
    _nothing_is_lost(result, least_kills=60)
    _all_is_decrypted(result)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "fsync"])
def test_a_thousand_kills_among_64_writers_lose_nothing(
    kind: str, tmp_path: Path, shared_memory: Path
) -> None:
    folder = shared_memory if kind == "tmpfs" else tmp_path
    result = _kill_loop(folder, *(["--fsync"] if kind == "fsync" else []))
    _nothing_is_lost(result, least_kills=1000)


@pytest.mark.slow
def test_a_thousand_kills_among_64_writers_lose_nothing_of_an_encrypted_log(tmp_path: Path) -> None:
    result = _kill_loop(tmp_path, "--encrypted", "--largest-bytes", "20000")
    _nothing_is_lost(result, least_kills=1000)
    _all_is_decrypted(result)


@pytest.mark.slow
def test_five_hundred_kills_of_one_writer_leave_torn_pieces_and_no_wrong_key(tmp_path: Path) -> None:
    arguments = ("--writers", "1", "--kills", "500", "--largest-bytes", "100000", "--encrypted")
    result = _kill_loop(tmp_path, *arguments)
    _nothing_is_lost(result, least_kills=500)
    _all_is_decrypted(result)
    assert result["pieces"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("largest_bytes", [100, 1_000, 100_000])
def test_five_hundred_kills_of_one_writer_lose_nothing(largest_bytes: int, tmp_path: Path) -> None:
    result = _kill_loop(tmp_path, "--writers", "1", "--kills", "500", "--largest-bytes", str(largest_bytes))
    _nothing_is_lost(result, least_kills=500)


def test_the_check_sees_a_lost_line_a_changed_line_and_an_unnamed_piece(tmp_path: Path) -> None:
    path, acks = tmp_path / "log.jsonl", tmp_path / "acks"
    acks.mkdir()
    log = LogFile(str(path))
    heads = [log.append(b'{"code":"%d"' % number) for number in range(3)]
    ack = b"".join(head.n.to_bytes(8, "little") + bytes.fromhex(head.hash) for head in heads)
    (acks / "1").write_bytes(ack)
    assert lost_lines(check_log(path), acks) == (0, 3)
    assert check_log(path).breaks == []
    lines = path.read_bytes().splitlines(keepends=True)

    path.write_bytes(lines[0] + lines[2])
    assert lost_lines(check_log(path), acks) == (1, 3)
    assert len(check_log(path).breaks) == 1

    path.write_bytes(lines[0] + lines[1].replace(b'"1"', b'"7"') + lines[2])
    assert lost_lines(check_log(path), acks) == (1, 3)
    assert len(check_log(path).breaks) == 2  # the line's place in the chain, and a piece that nobody named
