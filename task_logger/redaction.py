"""Keeps secrets out of what is kept: the line, the pending file, artifacts, events.

    encoded line --pre-filter--> nothing there: it is kept as it is       (almost always, in microseconds)
                      +--> request and outcome --> each text searched --> placeholders --> encoded anew

The reply and the stream have the original. Where the redaction itself fails, the text is withheld: neither
does the execution suffer, nor is a text kept of which nobody knows what is in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import IO, Any

import orjson

from task_logger.artifacts import new_spool
from task_logger.codec import EncodedRecord, encode
from task_logger.errors import TaskLogError
from task_logger.fields import JSON_OPTIONS
from task_logger.placeholders import KEY_BYTES, WITHHELD, placeholder_for, plan_key
from task_logger.record import KEPT_TEXT_BYTES, Artifact, ExecutionOutcome, ExecutionRequest
from task_logger.schema import REQUIRED
from task_logger.secret_search import Place, Secrets

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.task import LogSettings

_AS_THEY_ARE = frozenset(
    ("status", "route", "isolation", "elapsed_ms", "parent", "snapshot", "rolled_back", "cpu_ms",
     "peak_rss_bytes", "lossy", "notices", "artifacts")
)  # fmt: skip
"""Fields of an outcome that hold no text of the user's; what is not named here is searched."""

_IDS = frozenset(
    ("plan_id", "task_id", "task_name", "session_id", "timestamp", "seq", "schema", "artifacts", "kind",
     "level", "status", "route", "isolation", "parent", "snapshot", "success")
)  # fmt: skip
"""Fields of lines and events that name things, files among them."""

_NAMES = frozenset(REQUIRED) | frozenset(
    ("name", "value", "dimensions", "source", "message", "model", "correlation_id", "latency_ms",
     "input_tokens", "output_tokens", "cost_usd", "actor", "late_output", "displays", "lossy")
)  # fmt: skip
"""Names of fields that are ours; a program's own may hold anything."""

_LEFT_OUT = r"[^\s…]{0,4096}(\n… \d+ bytes left out; all \d+ are in the artifact …\n)[^\s…]{0,4096}"
_LEFT_OUT_MARK = b" bytes left out; all "


class Redactor:
    """Redacts what is kept in one plan; any thread may use it."""

    def __init__(
        self, secrets: Secrets, key: Callable[[], bytes], open_spool: Callable[[], IO[bytes]]
    ) -> None:
        """`key` gives the plan's key of placeholders, when it is first needed; `open_spool` an empty file for
        output without its secrets."""
        self.secrets = secrets
        self.failures: list[str] = []
        """Why texts were withheld; whoever tells it empties it."""
        self._key_source = key
        self._key: bytes | None = None
        self._open_spool = open_spool

    def text(self, text: str) -> str:
        """Return a text with a placeholder for each secret, all of it withheld where that fails."""
        try:
            if not self.secrets.may_be_in(text.encode("utf-8", "surrogatepass")):
                return text
            out, at = "", 0
            for place in self.secrets.find(text):
                out += text[at : place.start] + self._hide(place)
                at = place.end
            return out + text[at:] if at else text
        except Exception as exc:  # noqa: BLE001  # whatever it is: the work goes on, the text isn't kept
            return self._withheld(exc)

    def json(self, value: object) -> object:
        """Return a JSON value whose texts, names included, are redacted; itself where nothing is."""
        try:
            data = orjson.dumps(value, option=JSON_OPTIONS)
        except TypeError:
            data = None
        try:
            if data is not None and not self.secrets.may_be_in(data):
                return value
            return self._walk(value, {})
        except Exception as exc:  # noqa: BLE001  # as in `text`
            return self._withheld(exc)

    def fields(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return the fields of a line or an event, redacted, but for those that name things; themselves where
        nothing is."""
        try:
            if not self.secrets.may_be_in(orjson.dumps(given, option=JSON_OPTIONS)):
                return given
        except TypeError:
            pass  # not JSON yet: a closer look
        kept: dict[str, object] = {}
        for name, value in given.items():
            if name in _IDS:
                kept[name] = value
                continue
            item = self.json(value)
            is_theirs = isinstance(name, str) and name not in _NAMES  # what is no text is refused later
            kept[self.text(name) if is_theirs else name] = (
                _of_its_type(value, item) if item == WITHHELD else item
            )
        return kept

    def request(self, request: ExecutionRequest) -> ExecutionRequest:
        """Return the request with its code, tags and actor redacted; itself where nothing is."""
        code, tags = self.text(request.code), self.json(request.tags)
        actor = None if request.actor is None else self.text(request.actor)
        if code is request.code and tags is request.tags and actor is request.actor:
            return request
        if not isinstance(tags, Mapping):
            tags = {"withheld": WITHHELD}
        return replace(request, code=code, tags=tags, actor=actor)

    def outcome(self, outcome: ExecutionOutcome) -> ExecutionOutcome:
        """Return the outcome with its texts and artifacts redacted; itself where nothing is."""
        elided: dict[str, str] = {}
        artifacts = tuple(self._artifact(artifact, elided) for artifact in outcome.artifacts)
        changes: dict[str, Any] = {}
        for field in fields(outcome):
            if field.name not in _AS_THEY_ARE:
                value = getattr(outcome, field.name)
                kept = self._kept_value(value, elided)
                if kept is not value:
                    changes[field.name] = kept
        if artifacts != outcome.artifacts:
            changes["artifacts"] = artifacts
            changes["notices"] = _renamed(outcome, artifacts)
        return replace(outcome, **changes) if changes else outcome

    def kept(
        self,
        request: ExecutionRequest,
        outcome: ExecutionOutcome,
        encoded: EncodedRecord,
        max_body_bytes: int | None,
    ) -> EncodedRecord:
        """Return what is to be kept of a record that `encode` has made `encoded` of; itself where that is it.

        Raises as `encode` does.
        """
        body = encoded.body
        is_short = not encoded.outcome.artifacts and (
            len(body) < KEPT_TEXT_BYTES or _LEFT_OUT_MARK not in body
        )
        if is_short and not self.secrets.may_be_in(body):
            return encoded
        safe_request, safe_outcome = self.request(request), self.outcome(outcome)
        if safe_request is request and safe_outcome is outcome:
            return encoded
        return encode(safe_request, safe_outcome, max_body_bytes=max_body_bytes)

    def _kept_value(self, value: Any, elided: dict[str, str]) -> Any:
        """Redact one field of an outcome; itself where nothing is, withheld where that fails."""
        try:
            kept = self._walk(value, elided)
            is_same = kept == value
        except Exception as exc:  # noqa: BLE001  # as in `text`
            return _of_its_type(value, self._withheld(exc))
        return value if is_same else kept

    def _walk(self, value: Any, elided: dict[str, str]) -> Any:
        if isinstance(value, str):
            text = elided.get(value)
            return self._without_torn_ends(self.text(value)) if text is None else text
        if is_dataclass(value) and not isinstance(value, type):
            walked = {field.name: self._walk(getattr(value, field.name), elided) for field in fields(value)}
            return replace(value, **walked)
        if isinstance(value, tuple) and any(map(is_dataclass, value)):
            return tuple(self._walk(item, elided) for item in value)
        if value is None or isinstance(value, (bool, int, float)) or not value:
            return value
        from task_logger.fitting import as_json  # most sessions never come here

        return self._walk_json(as_json(value), elided)

    def _walk_json(self, value: object, elided: dict[str, str]) -> object:
        if isinstance(value, str):
            return self._walk(value, elided)
        if isinstance(value, dict):
            return {self.text(name): self._walk_json(item, elided) for name, item in value.items()}
        if isinstance(value, list):
            return [self._walk_json(item, elided) for item in value]
        return value

    def _without_torn_ends(self, text: str) -> str:
        """Hide the words on both sides of what is left out, where no artifact says what they were."""
        if len(text) < KEPT_TEXT_BYTES or _LEFT_OUT_MARK.decode() not in text:
            return text
        return re.sub(_LEFT_OUT, r"⟨withheld⟩\1⟨withheld⟩", text)

    def _artifact(self, artifact: Artifact, elided: dict[str, str]) -> Artifact:
        """Redact an artifact; `elided` gets what a line has in its place, before and after."""
        from task_logger.redacted_content import elided_content, redacted_artifact

        try:
            redacted = redacted_artifact(artifact, self.secrets, self._hide, self._open_spool)
            before, after = elided_content(artifact), elided_content(redacted)
            if before is not None and artifact.content is not None:
                elided[before] = before if redacted is artifact else after or self.text(before)
        except Exception as exc:  # noqa: BLE001  # as in `text`
            from hashlib import sha256

            data = self._withheld(exc).encode()
            redacted = replace(artifact, sha256=sha256(data).hexdigest(), bytes=len(data), content=data)
        if (
            redacted is not artifact
            and artifact.content is not None
            and not isinstance(artifact.content, bytes)
        ):
            artifact.content.close()
        return redacted

    def _hide(self, place: Place) -> str:
        if self._key is None:
            try:
                self._key = self._key_source()
            except (TaskLogError, OSError):  # the log can't be written either, and says so
                self._key = os.urandom(KEY_BYTES)
        return placeholder_for(place.name, place.value, self._key)

    def _withheld(self, exc: Exception) -> str:
        self.failures.append(type(exc).__name__)  # its text may hold what is to be hidden
        return WITHHELD


def redactor_of(settings: LogSettings, plan_folder: str) -> Redactor:
    """Return what redacts for a program without a session: the environment's secrets, well-known tokens."""
    return Redactor(
        Secrets(os.environ),
        lambda: plan_key(plan_folder, settings.key, fsync=settings.fsync),
        _spools_of(settings, plan_folder),
    )


def _spools_of(settings: LogSettings, plan_folder: str) -> Callable[[], IO[bytes]]:
    if settings.key is None:
        return lambda: new_spool(plan_folder)
    from task_logger.spools import EncryptedSpools

    return EncryptedSpools(plan_folder, settings.key).open


def _of_its_type(value: Any, text: str) -> Any:
    """What stands for a value that is withheld, in a type that its field may have."""
    if isinstance(value, Mapping):
        return {"text/plain": text}
    if isinstance(value, (list, tuple)):
        return type(value)()
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: _of_its_type(part, text) for name, part in parts.items()})
    return value if value is None or isinstance(value, (bool, int, float)) else text


def _renamed(outcome: ExecutionOutcome, artifacts: tuple[Artifact, ...]) -> tuple[str, ...]:
    """The notices, naming the artifacts that are kept."""
    notices = outcome.notices
    for old, new in zip(outcome.artifacts, artifacts, strict=True):
        if old != new:
            named = f"all {old.bytes} bytes are artifact {old.sha256}"
            kept = f"without its secrets it is artifact {new.sha256}, of {new.bytes} bytes"
            notices = tuple(notice.replace(named, kept) for notice in notices)
    return notices
