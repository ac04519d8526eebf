"""The measurement of floods of output judges by the bytes that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth_output
from benchmarks.forking import call_in_fork


@pytest.mark.parametrize("route", ["local", "worker"])
@pytest.mark.parametrize("size_bytes", [1 << 10, 1 << 20, 1 << 22])
def test_all_that_was_written_is_kept_and_found_right(route: str, size_bytes: int, log_root: Path) -> None:
    found: Any = call_in_fork(lambda: growth_output.measure_output(route, size_bytes), 60)
    assert found["verdict"] == "yes"
    assert found["bytes"] == size_bytes


def test_output_that_is_not_what_was_expected_is_told(
    log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth_output, "_WRITE", growth_output._WRITE.replace("{{number", "{{1 + number"))
    for size_bytes in (1 << 10, 1 << 22):
        found = call_in_fork(lambda size=size_bytes: growth_output.measure_output("local", size), 60)  # type: ignore[misc]  # bound at once
        assert found["verdict"].startswith("no: other")


def test_memory_that_the_code_takes_is_seen_in_its_process(
    log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth_output, "_WRITE", "x = bytearray({size}); del x  # {block}")
    found: Any = call_in_fork(lambda: growth_output.measure_output("worker", 50_000_000), 60)
    assert 45 < found["worker_mb"] < 60
    assert found["session_mb"] < 5
