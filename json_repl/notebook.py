"""A notebook file as cells to run.

path -> JSON -> checked, format 4 -> Notebook: code cells in order, and what it says of itself
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from json_repl.cells import Cell
from json_repl.errors import UnreadableNotebook

MAY_FAIL_TAG = "raises-exception"
SKIP_TAG = "skip-execution"
"""Tags of cells that those who run notebooks agree on."""

_MAGIC = re.compile(r"^\s*[%!]|\?\s*$", re.MULTILINE)
"""How lines look that only IPython understands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """Its code cells, those that are blank or marked to be skipped left out; and its metadata."""

    cells: tuple[Cell, ...]
    metadata: Mapping[str, Any]


def read_notebook(path: str, *, any_language: bool = False) -> Notebook:
    """Read a notebook of format 4, in Python unless `any_language` will do.

    Raises `UnreadableNotebook` for what is none, and OSError.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        notebook = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise UnreadableNotebook(path, f"is not a notebook: not JSON: {exc}") from exc
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise UnreadableNotebook(path, "is not a notebook: it names no nbformat")
    _check_format(path, notebook["nbformat"])
    metadata, cells = notebook.get("metadata", {}), notebook.get("cells")
    if not isinstance(metadata, dict) or not isinstance(cells, list):
        raise UnreadableNotebook(path, "is not a notebook: its cells must be a list, its metadata an object")
    if not any_language:
        _check_language(path, metadata)
    found = [_cell(path, number, cell) for number, cell in enumerate(cells, start=1)]
    return Notebook(cells=tuple(cell for cell in found if cell is not None), metadata=metadata)


def _check_format(path: str, version: int) -> None:
    if version < 4:
        raise UnreadableNotebook(
            path,
            f"is a notebook of format {version}; convert it first: "
            f"jupyter nbconvert --to notebook --nbformat 4 {path}",
        )
    if version > 4:
        raise UnreadableNotebook(path, f"is a notebook of format {version}; this version reads format 4")


def _check_language(path: str, metadata: Mapping[str, Any]) -> None:
    for part, name in (("language_info", "name"), ("kernelspec", "language")):
        about = metadata.get(part)
        language = about.get(name) if isinstance(about, dict) else None
        if isinstance(language, str):
            if language.lower() not in ("python", "ipython"):
                raise UnreadableNotebook(
                    path, f"is a notebook in {language}; give --kernel a kernel for that"
                )
            return


def _cell(path: str, number: int, cell: object) -> Cell | None:
    """One cell, `None` where there is nothing to run."""
    source = cell.get("source") if isinstance(cell, dict) else None
    code = "".join(source) if isinstance(source, list) and _are_texts(source) else source
    if not isinstance(cell, dict) or not isinstance(code, str):
        raise UnreadableNotebook(path, f"is not a notebook: cell {number} must be an object with a source")
    about = cell.get("metadata")
    tags = about.get("tags") if isinstance(about, dict) else None
    tags = tags if isinstance(tags, list) else []
    if cell.get("cell_type") != "code" or not code.strip() or SKIP_TAG in tags:
        return None
    title = cell.get("id")
    return Cell(
        title=title if isinstance(title, str) else "",
        code=code,
        first_line=0,
        may_fail=MAY_FAIL_TAG in tags,
        looks_magic=_MAGIC.search(code) is not None,
    )


def _are_texts(lines: list[Any]) -> bool:
    return all(isinstance(line, str) for line in lines)
