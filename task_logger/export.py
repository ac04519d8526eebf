"""One archive of a plan, verified on its way out.

    each log, up to where it ends now --> its lines, checked --> archive     (one way through the file)
    each artifact                     --> its SHA-256         --> archive
    key headers, and last of all manifest.json: what is in it, with SHA-256 and head of each

Where a log ends is looked up under its lock, so that no line that is being written is in it in part. Logs are
in it from their first line on, whatever `since` says: only so can a chain be verified.
A log comes before the artifacts, which were stored before the lines that name them.
"""

from __future__ import annotations

import io
import os
import stat
import time
from dataclasses import dataclass
from fcntl import LOCK_UN, flock
from typing import IO, TYPE_CHECKING, cast

import orjson

from task_logger import artifacts
from task_logger.archive import Archive, CopiedFile, unwritable
from task_logger.codec import timestamp
from task_logger.compressed_file import open_compressed
from task_logger.errors import (
    ArtifactError,
    ExportRefused,
    KeyMissing,
    LogNotFound,
    LogUnreadable,
    read_error,
)
from task_logger.findings import Finding, FindingKind, Findings
from task_logger.folder_lock import file_lock
from task_logger.garbage import artifact_files, log_files, names_in
from task_logger.key_places import PLAN_HEADER, header_names, header_path, headers_folder, is_event_log
from task_logger.line_checks import ArtifactCheck, LineChecks
from task_logger.log_source import existing_path, is_compressed
from task_logger.pending_check import check_pending
from task_logger.reader import LogLine, LogReader, last_lines, read_lines, started
from task_logger.verification import verify_log

if TYPE_CHECKING:
    from task_logger.encryption import ArtifactCipher, Cipher
    from task_logger.keys import KeySource
    from task_logger.sealing import Sealer

MANIFEST = "manifest.json"
"""The archive's last file; it lies beside the plan's folder."""

MANIFEST_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is in an archive: how many logs (events too) and artifacts, its length in bytes.

    `findings` are what isn't proven of them, or is known and explained; `pending` are executions that have no
    line yet, and so aren't in it.
    """

    path: str
    logs: int
    artifacts: int
    bytes: int
    findings: tuple[Finding, ...]
    pending: tuple[Finding, ...]


def export_plan(
    plan_folder: str,
    path: str,
    *,
    since: str | None = None,
    key: KeySource | None = None,
    sealer: Sealer | None = None,
) -> Export:
    """Write a plan into a new archive, whole or not at all.

    With `since`, a timestamp, only logs whose last line isn't older, and what they name. With a `key` what is
    encrypted is checked, too: it stays encrypted, and without a key it goes along unseen. Raises
    `ExportRefused` where something isn't as it was written, `LogNotFound` where there is nothing,
    `LogUnreadable`, and `TaskLogError` where the archive can't be written; there is no archive then.
    """
    try:
        with Archive(path) as archive:
            export = _Export(os.path.abspath(plan_folder), archive, since, key, sealer)
            export.copy_all()
            return export.published()
    except FileExistsError as exc:
        raise LogUnreadable(f"{path!r} is there already; name another file", path=path) from exc
    except FileNotFoundError as exc:
        raise LogNotFound(str(exc.filename), f"there is no {exc.filename!r}") from exc
    except OSError as exc:
        if isinstance(exc.filename, str) and exc.filename.startswith(f"{os.path.abspath(plan_folder)}/"):
            raise read_error(plan_folder, exc, "; no archive was written") from exc
        raise unwritable(path, exc) from exc


class _NamedArtifacts(ArtifactCheck):
    """Takes the place of a check of artifacts: they are checked when they are copied."""

    def __init__(self, plan_folder: str) -> None:
        super().__init__(plan_folder)
        self.names: set[str] = set()

    def take(self, line: LogLine, plain: bytes, number: int, findings: Findings) -> None:
        self.names.update(names_in(plain))


class _Export:
    def __init__(
        self,
        plan_folder: str,
        archive: Archive,
        since: str | None,
        key: KeySource | None,
        sealer: Sealer | None,
    ) -> None:
        self._folder = plan_folder
        self._plan = os.path.basename(plan_folder)
        self._archive = archive
        self._since = since
        self._key, self._sealer = key, sealer
        self._is_encrypted = os.path.lexists(f"{headers_folder(plan_folder)}/{PLAN_HEADER}")
        self._named = _NamedArtifacts(plan_folder)
        self._manifest: list[dict[str, object]] = []
        self._findings: list[Finding] = []
        self._pending: tuple[Finding, ...] = ()
        self._logs = self._artifacts = 0

    def copy_all(self) -> None:
        """Copy logs, artifacts and headers; raises `ExportRefused`."""
        logs = [path for path in log_files(self._folder) if self._is_wanted(path)]
        if not logs:
            since = "" if self._since is None else f" with a line since {self._since}"
            raise LogNotFound(self._folder, f"there is no log{since} in {self._folder!r}")
        for path in logs:
            self._copy_log(path)
        self._copy_artifacts()
        folder = headers_folder(self._folder)
        for name in header_names(folder):
            self._copy(f"{folder}/{name}")
        self._pending = tuple(check_pending(self._folder, self._cipher_of, None))
        problems = [one for one in (*self._findings, *self._pending) if one.level == "problem"]
        if problems:
            raise ExportRefused(self._folder, problems)

    def published(self) -> Export:
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "plan": self._plan,
            "exported": timestamp(time.time_ns()),
            "since": self._since,
            "files": self._manifest,
            "pending": [one.reason for one in self._pending],
            "findings": [f"{_place(one)}: {one.reason}" for one in self._findings],
        }
        data = orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
        self._archive.begin(MANIFEST, len(data), modified_s=time.time())
        self._archive.write(data)
        self._archive.end(len(data))
        return Export(
            path=self._archive.path,
            bytes=self._archive.publish(),
            logs=self._logs,
            artifacts=self._artifacts,
            findings=tuple(self._findings),
            pending=self._pending,
        )

    def _is_wanted(self, path: str) -> bool:
        if self._since is None:
            return True
        if self._key is None and os.path.lexists(header_path(path)):
            raise KeyMissing("TASK_LOG_KEY", f"the times in {path!r} are encrypted; set it to use --since")
        newest = ""
        for line in last_lines(path, 1):
            if isinstance(line, LogLine):
                newest = started(line)
        return newest >= self._since

    def _copy_log(self, path: str) -> None:
        path = existing_path(path)  # compressed, or brought back, since it was listed
        descriptor, size_bytes = _cut(path)
        try:
            copied = CopiedFile(descriptor, size_bytes, self._archive)
            source = cast("IO[bytes]", io.BufferedReader(copied, 1 << 20))
            self._archive.begin(self._name(path), size_bytes, modified_s=os.fstat(descriptor).st_mtime)
            plain = open_compressed(source) if is_compressed(path) else source
            checks = LineChecks(
                path,
                sealer=self._sealer,
                cipher=self._cipher_of(path),
                has_key=self._key is not None,
                artifacts=self._named,
            )
            reader = LogReader(path, decrypts=False, source=plain)
            verdict = verify_log(path, checks=checks, reader=reader)
            sha256 = copied.finish()
            self._archive.end(size_bytes)
        finally:
            os.close(descriptor)
        head = {} if verdict.head is None else {"n": verdict.head[0], "hash": verdict.head[1]}
        self._manifest.append(
            {"path": self._name(path), "bytes": size_bytes, "sha256": sha256, "lines": verdict.lines, **head}
        )
        self._findings += [one for one in verdict.findings if one.kind != "completeness"]
        self._logs += 1
        if self._since is not None and not self._is_encrypted and is_event_log(path):
            for line in read_lines(path):
                if isinstance(line, LogLine):
                    self._named.names.update(names_in(line.data))

    def _copy_artifacts(self) -> None:
        cipher = self._artifact_cipher()
        contents = {} if cipher is None else {cipher.name(sha256): sha256 for sha256 in self._named.names}
        present = set()
        for path in artifact_files(self._folder):
            name = os.path.basename(path)
            if self._since is not None and not self._is_encrypted and name not in self._named.names:
                continue
            try:
                sha256 = self._copy(path)
            except FileNotFoundError:
                continue  # removed since: nothing refers to it, or it is named as missing below
            present.add(contents.get(name, name))
            self._artifacts += 1
            if sha256 != name and not self._is_encrypted:
                self._add_problem(
                    "artifact_damaged", path, "its bytes have another SHA-256 than its name says"
                )
            elif name in contents:
                self._check_encrypted(path, contents[name], cipher)
        for sha256 in sorted(self._named.names - present):
            path = artifacts.artifact_path(self._folder, sha256, cipher)
            self._add_problem("artifact_missing", path, f"artifact {sha256}, which a line names, isn't there")

    def _check_encrypted(self, path: str, sha256: str, cipher: ArtifactCipher | None) -> None:
        try:
            artifacts.get(self._folder, sha256, cipher).close()
        except ArtifactError as exc:
            self._add_problem("artifact_damaged", path, str(exc))

    def _add_problem(self, kind: FindingKind, path: str, reason: str) -> None:
        self._findings.append(Finding(kind=kind, level="problem", path=path, line=0, at=0, reason=reason))

    def _copy(self, path: str) -> str:
        """Copy a file as it is; returns its SHA-256. Raises `OSError`."""
        descriptor = _open(path)
        try:
            status = os.fstat(descriptor)
            self._archive.begin(self._name(path), status.st_size, modified_s=status.st_mtime)
            sha256 = CopiedFile(descriptor, status.st_size, self._archive).finish()
            self._archive.end(status.st_size)
        finally:
            os.close(descriptor)
        self._manifest.append({"path": self._name(path), "bytes": status.st_size, "sha256": sha256})
        return sha256

    def _name(self, path: str) -> str:
        return f"{self._plan}{path[len(self._folder) :]}"

    def _cipher_of(self, path: str) -> Cipher | None:
        if self._key is None or not os.path.lexists(header_path(path)):
            return None
        from task_logger.encryption import cipher_to_read

        return cipher_to_read(path, self._key)

    def _artifact_cipher(self) -> ArtifactCipher | None:
        if self._key is None or not self._is_encrypted:
            return None
        from task_logger.encryption import artifact_cipher

        return artifact_cipher(self._folder, self._key)


def _cut(path: str) -> tuple[int, int]:
    """Open a log; returns its descriptor, and its length while no append goes on."""
    descriptor = _open(path)
    try:
        file_lock(descriptor, path)
        size_bytes = os.fstat(descriptor).st_size
        flock(descriptor, LOCK_UN)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size_bytes


def _open(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LogUnreadable(f"{path!r} is no regular file", path=path)
    return descriptor


def _place(finding: Finding) -> str:
    return f"{finding.path}, byte {finding.at}"
