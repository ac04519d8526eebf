"""What `task-log verify` is to look at: its argument -> plan folders, with their logs and event logs."""

from __future__ import annotations

import os
import re

import click

from task_logger.errors import LogNotFound, LogUnreadable
from task_logger.log_source import LOG_ENDINGS, plain_path
from task_logger.reader import find_logs
from task_logger.task import plan_folder
from task_logger.verification import Head

Plans = list[tuple[str, list[str]]]
"""Plan folders, each with the paths of logs in it."""

_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})\Z")


def head_of(text: str) -> Head:
    """Read `N:HASH`; raises `click.UsageError`."""
    match = _HEAD.match(text)
    if match is None:
        raise click.UsageError(f"--head must be N:HASH, with the 64 digits of the hash, not {text!r}")
    return int(match[1]), match[2]


def targets_of(target: str | None, root: str, plan_id: str | None) -> tuple[Plans, bool]:
    """Return what is meant by a file, a folder, or a plan id, and whether it is whole plans.

    Without a target it is the plan of that id, else all below the root. Raises `LogNotFound` where nothing is
    there, and `LogUnreadable`.
    """
    if target is None:
        target = root if plan_id is None else plan_folder(root, plan_id)
    elif not os.path.exists(target) and "/" not in target and os.path.isdir(plan_folder(root, target)):
        target = plan_folder(root, target)
    if not os.path.isdir(target):
        return [(_plan_folder_of(target), [target])], False
    target = os.path.abspath(target)
    plans = _plan_in(target) or _plans_below(target)
    if not plans:
        raise LogNotFound(target, f"there are no task logs in {target!r}")
    return plans, True


def _plans_below(root: str) -> Plans:
    plans: dict[str, list[str]] = {}
    for log in find_logs(root):
        plans.setdefault(os.path.dirname(log), []).append(log)
    return [(folder, logs + _event_logs(folder)) for folder, logs in plans.items()]


def _plan_in(folder: str) -> Plans:
    try:
        names = {name for name in os.listdir(folder) if name.endswith(LOG_ENDINGS)}
    except OSError as exc:
        raise LogUnreadable(f"folder {folder!r} can't be read: {exc.strerror}", path=folder) from exc
    logs = sorted(
        f"{folder}/{name}" for name in names if plain_path(name) == name or plain_path(name) not in names
    )
    return [(folder, logs + _event_logs(folder))] if logs else []


def _plan_folder_of(log: str) -> str:
    folder = os.path.dirname(os.path.abspath(log))
    return os.path.dirname(folder) if os.path.basename(folder) == "events" else folder


def _event_logs(folder: str) -> list[str]:
    events = f"{folder}/events"
    try:
        return sorted(f"{events}/{name}" for name in os.listdir(events) if name.endswith(LOG_ENDINGS))
    except FileNotFoundError:
        return []
