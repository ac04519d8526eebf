"""What `complete` and `inspect` answer, in Jupyter's form; and the one thing that both are asked right."""

from __future__ import annotations

from repl_kernel.errors import RequestRefused

MAX_MATCHES = 10_000
"""More can't be chosen from; `metadata` says how many were left out."""


def check_cursor(code: str, cursor: int) -> None:
    """Raise `RequestRefused` for a cursor that isn't in the code."""
    if not 0 <= cursor <= len(code):
        raise RequestRefused(
            f"cursor is {cursor}, the code has {len(code)} code points: give a number from 0 to {len(code)}"
        )


def completion_reply(matches: list[str], start: int, end: int) -> dict[str, object]:
    """The content of a `complete_reply`: matches for the code between two code points."""
    left_out = len(matches) - MAX_MATCHES
    return {
        "status": "ok",
        "matches": matches[:MAX_MATCHES],
        "cursor_start": start,
        "cursor_end": end,
        "metadata": {"left_out": left_out} if left_out > 0 else {},
    }


def inspection_reply(text: str | None) -> dict[str, object]:
    """The content of an `inspect_reply`: a text about an object, `None` where none was found."""
    data = {} if text is None else {"text/plain": text.encode("utf-8", "backslashreplace").decode()}
    return {"status": "ok", "found": text is not None, "data": data, "metadata": {}}
