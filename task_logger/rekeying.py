"""Another key for a plan: the data keys in its headers are wrapped anew; logs and artifacts stay as they are.

    every header --> opened with the new key, or else the old one --> if all can be: replaced, one by one

Each header is replaced at once or not at all, so a run that was killed is finished by the next with the same
two keys. Sessions that run hold the data keys, and go on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock

from task_logger.errors import KeyMissing, LogUnavailable, WrongKey, log_error, read_error
from task_logger.key_header import DataKey, KeyHeader, open_header, replace_header, wrap
from task_logger.key_places import KEY_SETTING, header_names, headers_folder
from task_logger.keys import KeySource, PassphraseCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeyed:
    """What became of a plan's headers: how many were wrapped anew, how many had the new key already."""

    plan_folder: str
    wrapped: int
    already: int


def rekey(plan_folder: str, old: KeySource, new: KeySource) -> Rekeyed:
    """Wrap every data key of a plan with the new key.

    Raises `KeyMissing` where nothing is encrypted, `WrongKey` for a header that neither key opens (nothing
    was changed then), `LogUnavailable` where another run is at it or a header can't be written (those before
    it have the new key then; run it again), and what `KeySource.wrapping_key` raises.
    """
    folder = headers_folder(plan_folder)
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise KeyMissing(old.setting, f"nothing in {plan_folder!r} is encrypted", path=plan_folder) from exc
    except OSError as exc:
        raise log_error(folder, exc) from exc
    try:
        flock(lock, LOCK_EX | LOCK_NB)
        return _rekey(plan_folder, folder, old, new)
    except BlockingIOError as exc:
        raise LogUnavailable(folder, "another rekey is running", what="can't be changed") from exc
    except OSError as exc:
        raise log_error(folder, exc) from exc
    finally:
        os.close(lock)


def encrypted_plans(root: str) -> list[str]:
    """Return the folders below a root that have header files, sorted. Raises `KeyMissing` where none has."""
    try:
        folders = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
        found = [folder for folder in folders if header_names(headers_folder(folder))]
    except FileNotFoundError:
        found = []
    except OSError as exc:
        raise read_error(root, exc) from exc
    if not found:
        raise KeyMissing(KEY_SETTING, f"nothing below {root!r} is encrypted", path=root)
    return found


def _rekey(plan_folder: str, folder: str, old: KeySource, new: KeySource) -> Rekeyed:
    wrapped = already = 0
    cost: PassphraseCost | None = None
    while True:
        found = [_open_with_either(f"{folder}/{name}", old, new) for name in header_names(folder)]
        todo = [one for one in found if not one.is_done]
        if not wrapped:
            already = len(found) - len(todo)
            done = [one.header.cost for one in found if one.is_done]
            cost = done[0] if done else new.new_cost()
        if not todo:
            return Rekeyed(plan_folder=plan_folder, wrapped=wrapped, already=already)
        for one in todo:
            replace_header(one.path, wrap(one.data_key, new, cost))
        wrapped += len(todo)  # once more: a session may have begun another log meanwhile


@dataclass(frozen=True, slots=True)
class _Opened:
    path: str
    header: KeyHeader
    data_key: DataKey
    is_done: bool


def _open_with_either(path: str, old: KeySource, new: KeySource) -> _Opened:
    try:
        return _Opened(path, *open_header(path, new, again=True), is_done=True)
    except WrongKey:
        return _Opened(path, *open_header(path, old, again=True), is_done=False)
