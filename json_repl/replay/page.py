"""A report as one HTML file: no library, nothing loaded, and all of a recording's text as text only.

Report -> JSON in the page, every `<` escaped -> a script that makes elements, by textContent alone
"""

from __future__ import annotations

import json
import os

from json_repl.replay.report import Report, as_json
from json_repl.replay.text import advice, excerpt, left_out_lines

_PAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "replay.html")

_MAX_TEXT = 20_000
"""Characters of each text of a difference that the page holds; the recording has all."""


def as_html(report: Report) -> str:
    """Render the report as a page of its own."""
    found = as_json(report)
    for step in found["steps"]:
        step["is_random"] = bool(step["differences"]) and all(
            each["is_random"] for each in step["differences"]
        )
        for difference in step["differences"]:
            for name in ("recorded", "replayed"):
                text = difference[name]
                shown, at, column = excerpt(text, difference["line"], difference["column"])
                difference[f"{name}_excerpt"] = {"lines": shown, "at": at, "column": column}
                difference[name] = text[:_MAX_TEXT] + ("…" if len(text) > _MAX_TEXT else "")
    found["advice"] = [*left_out_lines(report), *advice(report)]
    data = json.dumps(found, ensure_ascii=True).replace("<", "\\u003c")
    with open(_PAGE, encoding="utf-8") as file:
        return file.read().replace("@DATA@", data)
