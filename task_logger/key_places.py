"""Where keys are: the environment variable that names one, and the header files beside encrypted logs.

<plan>/<n>.<name>.jsonl                  --> <plan>/keys/<n>.<name>.key
<plan>/events/<n>.<name>.events.jsonl    --> <plan>/keys/plan.key, which is that of the artifacts too
"""

from __future__ import annotations

import os

KEY_SETTING = "TASK_LOG_KEY"
"""The environment variable that names the key."""

PLAN_HEADER = "plan.key"
"""No log's header has this name: theirs have a full stop more."""


def headers_folder(plan_folder: str) -> str:
    """Return the folder of a plan's header files."""
    return f"{plan_folder}/keys"


def header_path(path: str) -> str:
    """Return where the header of a log, or of an event log, is; neither need exist."""
    folder, name = os.path.split(os.path.abspath(path))
    if is_event_log(path):
        return f"{headers_folder(os.path.dirname(folder))}/{PLAN_HEADER}"
    return f"{headers_folder(folder)}/{log_name(name)}.key"


def log_name(path: str) -> str:
    """Return the name of a log without folder and suffixes."""
    return os.path.basename(path).removesuffix(".zst").removesuffix(".jsonl")


def is_event_log(path: str) -> bool:
    """Whether this is `<n>.<name>.events.jsonl`; no part of a log's own name has a full stop."""
    name = log_name(path)
    return name.endswith(".events") and name.count(".") == 2


def header_names(folder: str) -> list[str]:
    """Return the names of the header files in a folder, sorted, that of the plan last. Raises `OSError`."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    logs = (name for name in names if _is_log_header(name))
    return sorted(logs) + [PLAN_HEADER] * (PLAN_HEADER in names)


def _is_log_header(name: str) -> bool:
    return name.endswith(".key") and name.count(".") == 2 and not name.startswith(".")
