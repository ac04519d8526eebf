"""Files that a caller wants kept with a session's log: `session.artifact(…)`.

file or bytes --> spool in the plan's folder, without secrets --> artifact --> event `artifact.stored`

The event is what refers to it: without one, nothing would tell it from what nobody needs any more.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from json_repl.errors import InvalidRequest
from task_logger.artifacts import artifact_path, new_spool, put
from task_logger.errors import ArtifactNotStored
from task_logger.record import Artifact, ExecutionOutcome

if TYPE_CHECKING:
    from task_logger.encryption import ArtifactCipher
    from task_logger.event_log import EventLog
    from task_logger.redaction import Redactor
    from task_logger.task import LogSettings

STORED_EVENT = "artifact.stored"

_COPY_BYTES = 1 << 20
_UNKNOWN_MIME = "application/octet-stream"


def keep_artifact(
    source: str | os.PathLike[str] | bytes,
    mime: str | None,
    *,
    plan_folder: str,
    settings: LogSettings,
    redactor: Redactor | None,
    events: EventLog,
    tags: Mapping[str, object],
) -> dict[str, object]:
    """Keep a file's content, or bytes, in a plan; returns the reference: `field`, `sha256`, `bytes`, `mime`.

    Raises `InvalidRequest` for what is neither, `OSError` where the file can't be read, `ArtifactNotStored`.
    """
    name, mime = _described(source, mime)
    cipher = _cipher(plan_folder, settings)
    with new_spool(plan_folder, cipher) as spool:
        digest, size_bytes = hashlib.sha256(), 0
        for piece in _pieces(source):
            digest.update(piece)
            size_bytes += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[_write(spool, rest, plan_folder) :]
        artifact = Artifact(field=name, sha256=digest.hexdigest(), bytes=size_bytes, mime=mime, content=spool)
        if redactor is not None:
            artifact = _redacted(artifact, redactor)
        put(plan_folder, artifact, fsync=settings.fsync, cipher=cipher)
        if artifact.content is not None and not isinstance(artifact.content, bytes):
            artifact.content.close()
    reference: dict[str, object] = {
        "field": artifact.field,
        "sha256": artifact.sha256,
        "bytes": artifact.bytes,
        "mime": artifact.mime,
    }
    fields: dict[str, object] = {"kind": "event", "name": STORED_EVENT, "value": reference}
    if not events.write({**fields, "tags": tags} if tags else fields):
        reason = "the event that refers to it can't be written, so that `task-log gc` would remove it"
        raise ArtifactNotStored(artifact_path(plan_folder, artifact.sha256, cipher), artifact.sha256, reason)
    return reference


def _described(source: object, mime: str | None) -> tuple[str, str]:
    """The name and MIME type of what is to be kept."""
    if mime is not None and (not isinstance(mime, str) or not mime.isprintable() or "/" not in mime):
        raise InvalidRequest("mime", f"must be like text/csv, not {mime!r}")
    if isinstance(source, bytes):
        return "bytes", mime or _UNKNOWN_MIME
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidRequest("artifact", f"must be a path or bytes, not a {type(source).__name__}")
    name = os.path.basename(os.path.abspath(os.fsdecode(source)))
    if mime is None:
        from mimetypes import guess_type

        mime = guess_type(name)[0]
    return name.encode("utf-8", "backslashreplace").decode(), mime or _UNKNOWN_MIME


def _pieces(source: str | os.PathLike[str] | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block
    except ValueError as exc:
        raise InvalidRequest("artifact", f"must be the path of a file, not {os.fspath(source)!r}") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidRequest("artifact", f"must be a regular file, which {os.fspath(source)!r} isn't")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while piece := file.read(_COPY_BYTES):
            yield piece


def _write(spool: IO[bytes], data: memoryview, plan_folder: str) -> int:
    try:
        return spool.write(data)
    except OSError as exc:
        folder = f"{plan_folder}/artifacts"
        raise ArtifactNotStored(folder, "of a file", exc.strerror or str(exc)) from exc


def _redacted(artifact: Artifact, redactor: Redactor) -> Artifact:
    outcome = ExecutionOutcome(
        status="ok", route="local", isolation="none", elapsed_ms=0, artifacts=(artifact,)
    )
    redacted = redactor.outcome(outcome).artifacts[0]
    return replace(redacted, field=redactor.text(artifact.field))


def _cipher(plan_folder: str, settings: LogSettings) -> ArtifactCipher | None:
    if settings.key is None:
        return None
    from task_logger.encryption import artifact_cipher

    return artifact_cipher(plan_folder, settings.key, create=True)
