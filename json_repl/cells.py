"""A Python file as cells, in the form editors know: each begins at a line `# %%`, with a title after it.

path or "-" -> read_source() -> text -> split_cells() -> Cells, in order
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import IO

from json_repl.errors import UnreadableCode

_MARKER = re.compile(r"#\s*%%(?P<title>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One piece of a file to execute; `first_line` is where its code begins in the file, 1-based.

    In a notebook `first_line` is 0 and the title the cell's id; a cell that may fail doesn't end the run, and
    one may look as if only IPython understood it.
    """

    title: str
    code: str
    first_line: int
    may_fail: bool = False
    looks_magic: bool = False


def read_source(path: str) -> str:
    """Read a Python file, `-` for standard input, in the encoding that it declares, with LF as line ends.

    Raises `UnreadableCode` for what is no text, and `OSError` for what can't be read.
    """
    import io
    import tokenize

    data = _read_bytes(path)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as exc:
        raise UnreadableCode("standard input" if path == "-" else path, str(exc)) from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    file: IO[bytes]
    with open(path, "rb") as file:
        return file.read()


def split_cells(text: str) -> list[Cell]:
    """Split text at its `# %%` lines; text without any is one cell, even if empty.

    Cells of nothing but comments and blank lines, and those marked `[markdown]`, are no code and left out.
    """
    cells: list[Cell] = []
    title, lines, first_line, is_code = "", list[str](), 1, True

    def end_cell() -> None:
        code = "\n".join(lines).rstrip()
        if is_code and any(line.strip() and not line.lstrip().startswith("#") for line in lines):
            cells.append(Cell(title=title, code=code + "\n", first_line=first_line))

    for number, line in enumerate(text.split("\n"), start=1):
        marker = _MARKER.match(line)
        if marker is None:
            lines.append(line)
            continue
        end_cell()
        title = marker["title"].strip()
        is_code = not title.startswith(("[markdown]", "[md]", "[raw]"))
        lines, first_line = [], number + 1
    if first_line == 1:
        return [Cell(title="", code=text, first_line=1)]
    end_cell()
    return cells
