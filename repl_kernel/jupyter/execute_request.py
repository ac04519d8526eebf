"""What an `execute_request` says besides its code; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def malformation(parent: Mapping[str, Any]) -> str | None:
    """Why a message can't be run, `None` where it can."""
    content = parent["content"]
    if not isinstance(content, dict):
        return f"the content of an execute_request must be an object, not {type(content).__name__}"
    if not isinstance(content.get("code"), str):
        return "an execute_request must have a text `code`"
    if not isinstance(parent.get("metadata"), dict):
        return "the metadata of an execute_request must be an object"
    if not isinstance(content.get("user_expressions") or {}, dict):
        return "the `user_expressions` of an execute_request must be an object"
    if not isinstance(content.get("allow_stdin", False), bool):
        return "`allow_stdin` of an execute_request must be true or false"
    return None


def request_tags(parent: Mapping[str, Any], refused: Mapping[str, int]) -> dict[str, object]:
    """The tags of a request's line: who asked, and how; `refused` are messages refused since the last."""
    header, content, metadata = parent["header"], parent["content"], parent["metadata"]
    tags: dict[str, object] = {"msg_id": header["msg_id"], "client_session_id": header.get("session")}
    silent = content.get("silent", False)
    if silent:
        tags["silent"] = True
    elif not content.get("store_history", True):
        tags["store_history"] = False
    if content.get("user_expressions"):
        tags["user_expressions"] = content["user_expressions"]
    if metadata.get("cellId") is not None:
        tags["cell_id"] = metadata["cellId"]
    if refused:
        tags["refused_messages"] = dict(refused)
    return tags
