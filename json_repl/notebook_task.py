"""Which plan and task a notebook's executions belong to.

FLOW_* of the environment, each by itself, else metadata.flow of the notebook, else its name as the task's
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from task_logger.record import TaskIds
from task_logger.task import task_ids

NOTEBOOK_VARIABLE = "JPY_SESSION_NAME"
"""Where Jupyter says which notebook a kernel was started for."""

_MAX_NOTEBOOK_BYTES = 256 << 20
"""A larger file isn't read for three ids."""


def notebook_task() -> TaskIds:
    """The ids of the notebook that this kernel was started for; without one as `task_ids()` says."""
    path = os.environ.get(NOTEBOOK_VARIABLE)
    return task_ids() if not path else task_of_notebook(path)


def task_of_notebook(path: str, metadata: Mapping[str, object] | None = None) -> TaskIds:
    """The ids of a notebook: the environment wins, then its metadata, then its name is the task's name.

    `metadata` is the notebook's, `None` where it is to be read; a file that can't be read, or is no notebook,
    has none.
    """
    flow = (_read_metadata(path) if metadata is None else metadata).get("flow")
    given = flow if isinstance(flow, Mapping) else {}
    name = os.path.basename(path).removesuffix(".ipynb")
    return task_ids(
        plan_id=_chosen("FLOW_PLAN_ID", given.get("plan_id")),
        task_id=_chosen("FLOW_TASK_ID", given.get("task_id")),
        task_name=_chosen("FLOW_TASK_NAME", given.get("task_name")) or name or None,
    )


def _chosen(variable: str, given: object) -> str | None:
    return os.environ.get(variable) or (given if isinstance(given, str) and given else None)


def _read_metadata(path: str) -> Mapping[str, object]:
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _MAX_NOTEBOOK_BYTES:
            return {}
        with open(path, encoding="utf-8") as file:
            metadata = json.load(file)["metadata"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return metadata if isinstance(metadata, Mapping) else {}
