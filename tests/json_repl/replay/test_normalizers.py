"""What normalizers take for alike, and that a place in what they made leads back to the text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from json_repl.replay.comparison import common_length, place_of
from json_repl.replay.errors import UnknownNormalizer
from json_repl.replay.normalizers import BUILT_IN, Normalizer, choose, normalize


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("addresses", "<function f at 0x7f12ab34cd56>", "<function f at 0x55aa00112233>"),
        ("times", "at 2026-11-20T14:23:21.123Z.", "at 2027-01-02T03:04:05Z."),
        ("times", "Fri Nov 20 14:23:21 2026", "Sat Nov  1 04:03:01 2025"),
        ("times", "datetime.datetime(2026, 11, 20, 14, 23)", "datetime.datetime(2025, 1, 2, 3, 4, 5, 6)"),
        ("durations", "took 1.25 s, 3ms", "took 11 s, 40ms"),
        ("paths", "/home/ada/project/main.py", "/srv/x/main.py"),
        ("temp-names", "/tmp/tmpab12cd_x/f", "/tmp/tmpzz99yy_8/f"),
        ("set-order", "{'b', 'a', 'c'}", "{'a', 'c', 'b'}"),
        ("/job-\\d+/", "job-17 done", "job-4 done"),
        ("/(a|b)\\/x/same/", "a/x", "b/x"),
    ],
)
def test_a_normalizer_takes_these_for_alike_and_not_what_is_around_them(
    name: str, one: str, other: str
) -> None:
    chosen = choose([name])
    assert normalize(one, chosen).text == normalize(other, chosen).text
    assert normalize(f"{one} left", chosen).text != normalize(f"{other} right", chosen).text
    assert normalize(one, ()).text == one


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("addresses", "0x10", "0x11"),
        ("times", "version 3.11", "version 3.12"),
        ("durations", "3 apples", "4 apples"),
        ("paths", "a/b", "c/b"),
        ("paths", "/home/ada/a.py", "/home/ada/b.py"),
        ("set-order", "{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}"),
        ("set-order", "{1, 2}", "{1, 3}"),
    ],
)
def test_a_normalizer_leaves_other_differences(name: str, one: str, other: str) -> None:
    chosen = choose([name])
    assert normalize(one, chosen).text != normalize(other, chosen).text


@pytest.mark.parametrize(
    ("stands_for", "reason"), [(lambda match: 5, "gives a int"), (lambda match: 1 / 0, "ZeroDivisionError")]
)
def test_a_normalizer_of_ones_own_that_gives_no_text_is_named(stands_for: Any, reason: str) -> None:
    own = Normalizer(name="mine", pattern=re.compile("a"), stands_for=stands_for, hides="a")
    with pytest.raises(UnknownNormalizer, match=f"'mine': .*{reason}"):
        normalize("banana", [own])


@pytest.mark.parametrize("name", ["nothing", "/open", "/(/", "//", "/a/b/c/d/", "/a{99999999999}/"])
def test_a_normalizer_that_there_is_none_of_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownNormalizer, match="normalizer"):
        choose([name])


_PIECES = st.sampled_from(["0x7f0011223344", "12:30:11", "5 ms", "/a/b/c", "{1, 2}", "word", "\n", " ", "é"])


@given(st.lists(_PIECES, max_size=12), st.text("xyz", min_size=1, max_size=3))
def test_a_place_after_normalizing_leads_back_to_the_text(pieces: list[str], tail: str) -> None:
    text = "".join(pieces)
    normalized = normalize(f"{text}|{tail}", tuple(BUILT_IN.values()))
    at = normalized.text.rindex("|")
    assert normalized.origin(at) == len(text)


@given(st.text("ab\n", max_size=40), st.text("ab\n", max_size=40))
def test_texts_part_where_their_characters_do(one: str, other: str) -> None:
    at = common_length(one, other)
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1] or at == len(one) == len(other)
    line, column = place_of(one, at)
    assert sum(len(part) + 1 for part in one.split("\n")[: line - 1]) + column - 1 == at
