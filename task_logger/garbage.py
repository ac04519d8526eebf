"""Artifacts that nothing refers to any more: found first, shown, and only then removed.

    files in <plan>/artifacts --> without those that a line, an event or a pending file names
                              --> without those that are young, or may be a running session's
                              --> what is left is garbage, if every log could be read whole
    remove: under the folder's lock --> still as old as it was? --> gone

Whoever keeps an artifact stores it before the line that names it, and storing makes it young again, also
where it is there already (`artifacts.put`). So what is old under the lock isn't about to be named.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from task_logger.abandoned import UNREADABLE_SUFFIX, content_at, pending_names
from task_logger.codec import stored_key_id
from task_logger.errors import LogNotFound, LogUnreadable, log_error, read_error
from task_logger.folder_lock import folder_lock
from task_logger.log_source import LOG_ENDINGS, plain_path
from task_logger.pending import entries_in, log_name_in
from task_logger.reader import Damage, LogLine, LogReader
from task_logger.summary import DamageTally

if TYPE_CHECKING:
    from task_logger.encryption import ArtifactCipher
    from task_logger.keys import KeySource

YOUNG_S = 3600
"""What was stored since then is kept: a line takes milliseconds to follow its artifact, unless its log can't
be written; then its session is alive, or its line in a pending file."""

_NAMED = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_ARTIFACT = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreferenced:
    """A file that nothing refers to: its path, its length, and when it was stored last (in ns)."""

    path: str
    bytes: int
    stored_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What may be removed of a plan, and how much stays: `referenced` artifacts, and `young` ones."""

    plan_folder: str
    files: tuple[Unreferenced, ...]
    referenced: int
    young: int

    @property
    def bytes(self) -> int:
        """How many bytes the files have together."""
        return sum(file.bytes for file in self.files)


def find_garbage(plan_folder: str, *, key: KeySource | None = None) -> Garbage:
    """Find what no line, event or pending file of a plan refers to; changes nothing.

    Unfinished temporary files of programs that died count too. A key of `None` is that of TASK_LOG_KEY.
    Raises `LogUnreadable` where something can't be read that may refer to an artifact, and `KeyRefused` where
    it is encrypted; `LogNotFound` where there is no such plan.
    """
    if not os.path.isdir(plan_folder):
        raise LogNotFound(
            plan_folder, f"there is no plan {plan_folder!r}; `task-log ls` shows those there are"
        )
    try:
        candidates = {os.path.basename(file.path): file for file in _stored(plan_folder)}
        leftovers = list(_leftovers(plan_folder))
        keep_from_ns = _keep_from_ns(plan_folder)
        unnamed = dict(candidates)
        cipher = _artifact_cipher(plan_folder, key)
        for sha256 in _references(plan_folder, key):
            unnamed.pop(sha256, None)
            if cipher is not None:
                unnamed.pop(cipher.name(sha256), None)
    except OSError as exc:
        raise read_error(plan_folder, exc, "; nothing was removed") from exc
    old = [file for file in [*unnamed.values(), *leftovers] if file.stored_ns < keep_from_ns]
    return Garbage(
        plan_folder=plan_folder,
        files=tuple(sorted(old, key=lambda file: file.path)),
        referenced=len(candidates) - len(unnamed),
        young=len(unnamed) + len(leftovers) - len(old),
    )


def remove_garbage(garbage: Garbage) -> list[Unreferenced]:
    """Remove what was found, but for what was stored anew since; returns what is gone.

    Raises `LogUnavailable` where the folder's lock, or a file, isn't to be had.
    """
    removed = []
    for file in garbage.files:
        folder = f"{garbage.plan_folder}/artifacts"
        try:
            with folder_lock(folder if file.path.startswith(f"{folder}/") else garbage.plan_folder):
                if os.lstat(file.path).st_mtime_ns != file.stored_ns:
                    continue
                os.unlink(file.path)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise log_error(file.path, exc) from exc
        removed.append(file)
    return removed


def log_files(plan_folder: str) -> list[str]:
    """Return the paths of a plan's logs and event logs, sorted. Raises `OSError`."""
    found = []
    for folder in (plan_folder, f"{plan_folder}/events"):
        try:
            names = set(os.listdir(folder))
        except FileNotFoundError:
            if folder == plan_folder:
                raise
            continue
        found += [
            f"{folder}/{name}"
            for name in sorted(names)
            if name.endswith(LOG_ENDINGS) and (plain_path(name) == name or plain_path(name) not in names)
        ]
    return found


def names_in(data: bytes) -> Iterator[str]:
    """Yield the SHA-256 of each artifact that a line, an event or a request names."""
    for match in _NAMED.finditer(data):
        yield match[1].decode()


def artifact_files(plan_folder: str) -> Iterator[str]:
    """Yield the paths of a plan's stored artifacts. Raises `OSError`."""
    root = f"{plan_folder}/artifacts"
    for folder in sorted(filter(_FOLDER.fullmatch, _names(root))):
        for name in sorted(_names(f"{root}/{folder}")):
            if _ARTIFACT.fullmatch(name) and name.startswith(folder):
                yield f"{root}/{folder}/{name}"


def _stored(plan_folder: str) -> Iterator[Unreferenced]:
    for path in artifact_files(plan_folder):
        yield from _looked_at(path)


def _leftovers(plan_folder: str) -> Iterator[Unreferenced]:
    """Files that were to become a log or an artifact, of programs that died meanwhile."""
    root = f"{plan_folder}/artifacts"
    for folder in (
        plan_folder,
        root,
        *(f"{root}/{name}" for name in _names(root) if _FOLDER.fullmatch(name)),
    ):
        for name in _names(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                yield from _looked_at(f"{folder}/{name}")


def _looked_at(path: str) -> Iterator[Unreferenced]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode):
        yield Unreferenced(path=path, bytes=status.st_size, stored_ns=status.st_mtime_ns)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _keep_from_ns(plan_folder: str) -> int:
    """From when on everything is kept: an hour ago, or the start of the oldest session that runs."""
    keep_from_ns = time.time_ns() - YOUNG_S * 10**9
    for name in pending_names(f"{plan_folder}/pending"):
        try:
            _, is_alive = content_at(f"{plan_folder}/pending/{name}")
        except FileNotFoundError:
            continue
        if is_alive:
            keep_from_ns = min(keep_from_ns, _started_ns(name))
    return keep_from_ns


def _started_ns(session_id: str) -> int:
    """When a session began, by its id, a UUIDv7; 0 where it is another id."""
    digits = session_id.split(".", maxsplit=1)[0].replace("-", "")
    if len(digits) != 32 or digits[12] != "7":
        return 0
    return int(digits[:12], 16) * 1_000_000


def _artifact_cipher(plan_folder: str, key: KeySource | None) -> ArtifactCipher | None:
    if not os.path.lexists(f"{plan_folder}/keys/plan.key"):
        return None
    from task_logger.encryption import artifact_cipher

    return artifact_cipher(plan_folder, key)


def _references(plan_folder: str, key: KeySource | None) -> Iterator[str]:
    folder = f"{plan_folder}/pending"
    for name in pending_names(folder):
        yield from _pending_references(plan_folder, f"{folder}/{name}", key)
    for name in _names(folder):  # after them: one of them may just have been put aside
        if name.endswith(UNREADABLE_SUFFIX):
            raise _uncertain(
                f"{folder}/{name}", "it is a pending file that makes no sense; look at it, and remove it"
            )
    # Only then the logs: what is settled meanwhile is in its log before its pending file is gone.
    with folder_lock(plan_folder):  # else a log that is just compressed could be seen in neither form
        logs = log_files(plan_folder)
    for path in logs:
        for line in _all_lines(path, key):
            yield from names_in(line.data)


def _all_lines(path: str, key: KeySource | None) -> Iterator[LogLine]:
    """Yield every line; raises `LogUnreadable` at the end where there was more than lines."""
    tally = DamageTally()
    with LogReader(path, key=key) as reader:
        for line in reader.lines():
            tally.add(line)
            if isinstance(line, Damage):
                continue
            if stored_key_id(line.data) is not None:
                raise _uncertain(path, "it has a line that this version can't decrypt")
            yield line
    damage = tally.alarming()
    if damage:
        raise _uncertain(path, f"it is damaged at byte {damage[0].at} ({damage[0].reason})")


def _pending_references(plan_folder: str, path: str, key: KeySource | None) -> Iterator[str]:
    try:
        content, is_alive = content_at(path)
    except FileNotFoundError:
        return  # settled meanwhile
    yield from names_in(content)
    entries = entries_in(content)
    if entries is None and not is_alive:  # what a session stored that is alive is kept anyway
        raise _uncertain(path, "it is a pending file that makes no sense")
    for entry in entries or ():
        if entry.sealed is not None:
            from task_logger.encryption import cipher_to_read

            cipher = cipher_to_read(f"{plan_folder}/{log_name_in(content)}", key)
            yield from names_in(cipher.open_entry(entry.sealed, entry.seq))


def _uncertain(path: str, reason: str) -> LogUnreadable:
    return LogUnreadable(
        f"what nothing refers to can't be told, since {path!r} can't be read whole: {reason}; "
        "nothing was removed",
        path=path,
    )
