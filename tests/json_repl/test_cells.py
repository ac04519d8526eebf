"""A file and its cells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from json_repl.cells import Cell, split_cells

LINES = st.sampled_from(
    ["# %%", "# %% title", "#%%", "x = 1", "", "# comment", "  # %% inside", "y = '''", "'''"]
)


def test_cells_have_their_titles_and_first_lines() -> None:
    assert split_cells("# %% One\na = 1\n\n#%%\nb = 2\n") == [
        Cell(title="One", code="a = 1\n", first_line=2),
        Cell(title="", code="b = 2\n", first_line=5),
    ]


def test_text_without_markers_is_one_cell_as_it_is() -> None:
    assert split_cells("a = 1\n\n") == [Cell(title="", code="a = 1\n\n", first_line=1)]
    assert split_cells("") == [Cell(title="", code="", first_line=1)]


def test_what_is_before_the_first_marker_is_a_cell_if_it_is_code() -> None:
    assert [cell.first_line for cell in split_cells("import os\n# %%\n1\n")] == [1, 3]
    assert [cell.first_line for cell in split_cells("# just\n# comments\n# %%\n1\n")] == [4]


def test_markdown_and_empty_cells_are_left_out() -> None:
    assert [cell.code for cell in split_cells("# %% [markdown]\n# text\n# %%\n\n# %%\n1\n")] == ["1\n"]


def test_an_indented_marker_is_a_comment() -> None:
    assert len(split_cells("# %%\nif True:\n    # %% no\n    pass\n")) == 1


@given(st.lists(LINES, max_size=12))
def test_every_line_of_code_is_in_exactly_one_cell_at_its_place(lines: list[str]) -> None:
    text = "\n".join(lines)
    placed = {}
    for cell in split_cells(text):
        for offset, line in enumerate(cell.code.split("\n")):
            if line.strip():
                assert cell.first_line + offset not in placed
                placed[cell.first_line + offset] = line
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            assert placed[number] == line
