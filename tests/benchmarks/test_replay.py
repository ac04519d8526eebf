"""The doctests of the standard library, recorded and replayed."""

from __future__ import annotations

import pytest

from benchmarks.doctests import QUICK
from benchmarks.replay import measure_doctests, measure_dry_run

SAMPLE = (*QUICK, "decimal", "fractions", "ipaddress", "more_itertools.more", "statistics", "string")


@pytest.mark.slow
def test_a_sample_of_the_doctests_replays_to_match_or_names_what_differs_at_random() -> None:
    found = measure_doctests(SAMPLE)
    counts = found["counts"]
    assert found["ended"] == []
    assert counts["DIFF"] == 0, found["not_matching"]
    assert counts["random"] <= 0.01 * (counts["MATCH"] + counts["random"]), found["not_matching"]
    assert "no cause is to be seen" not in found["causes"]
    assert counts["MATCH"] > 500


def test_a_long_log_is_checked_whole() -> None:
    assert measure_dry_run(3_000)["lines"] == 3_000
