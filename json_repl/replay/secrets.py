"""Secrets of a recording: put back into the code that runs, and taken out of what comes of it.

recorded code --placeholders, the environment--> code that runs
outcome of a replay --the same key--> placeholders again, so that both sides compare and reports hold none

Nothing is written: a plan without a key stays without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from json_repl.replay.recording import RecordedLine, Recording
from repl_kernel.capture import open_temporary_spool
from task_logger.codec import encode
from task_logger.encryption import artifact_cipher
from task_logger.key_places import header_path
from task_logger.placeholders import KEY_BYTES, WITHHELD, placeholders_in, restore, stored_key
from task_logger.record import ExecutionOutcome, ExecutionRequest
from task_logger.redaction import Redactor
from task_logger.secret_search import Secrets
from task_logger.secret_values import names_a_secret

MAX_VALUES = 16
"""Of one secret in one recording. The tags are short: who names all of them would be given the secret."""


class ReplaySecrets:
    """What a replay knows of the secrets of one recording."""

    def __init__(self, recording: Recording, environment: Mapping[str, str]) -> None:
        """Raises `KeyRefused` where an encrypted plan needs another key, `TaskLogError` for a damaged one."""
        self._environment = environment
        self._key = _key_of(recording)
        self._values: dict[str, set[str]] = {}
        """The placeholders in the code so far, by name."""
        own = dict(self._unsuspected(recording.lines))
        key = self._key or os.urandom(KEY_BYTES)
        self._redactor = Redactor(Secrets(environment, own), lambda: key, open_temporary_spool)

    def restored(self, code: str) -> str:
        """Return code with the secrets that the environment has in their places again."""
        if self._key is None or not placeholders_in(code):
            return code
        return restore(code, self._environment, self._key)[0]

    def why_not_whole(self, code: str) -> str | None:
        """Why code can't be run as it was, `None` where it can."""
        if WITHHELD in code:
            return "its code was withheld from the log: its redaction had failed"
        found = placeholders_in(code)
        if not found:
            return None
        if self._key is None:
            return "a secret was in its code, and keys/redaction.key of its plan, which tells it, isn't there"
        for placeholder, name in found:
            self._values.setdefault(name, set()).add(placeholder)
            if len(self._values[name]) > MAX_VALUES:
                return f"the recording names more than {MAX_VALUES} values of {name}, as if to guess it"
        missing = restore(code, self._environment, self._key)[1]
        if not missing:
            return None
        names = ", ".join(dict.fromkeys(name for placeholder, name in found if placeholder in missing))
        return f"a secret was in its code, and the environment has it not, or another one: {names}"

    def kept(self, request: ExecutionRequest, outcome: ExecutionOutcome) -> ExecutionOutcome:
        """Return an outcome as a line would hold it, without secrets."""
        return self._redactor.kept(request, outcome, encode(request, outcome), None).outcome

    def redacted(self, outcome: ExecutionOutcome) -> ExecutionOutcome:
        """Return a recorded outcome without secrets: its session may have been told to keep them."""
        return self._redactor.outcome(outcome)

    def _unsuspected(self, lines: Iterable[RecordedLine]) -> Iterator[tuple[str, str]]:
        """The secrets of the environment that the recorded session knew as such, and whose name tells not."""
        if self._key is None:
            return
        found = {one for line in lines for text in _texts_of(line) for one in placeholders_in(text)}
        for placeholder, name in sorted(found):
            value, missing = restore(placeholder, self._environment, self._key)
            if not missing and not names_a_secret(name):
                yield name, value


def _key_of(recording: Recording) -> bytes | None:
    """The key of the placeholders of a recording, `None` where there is none."""
    if os.path.lexists(header_path(recording.path)):
        return artifact_cipher(recording.folder).placeholder_key
    return stored_key(recording.folder)


def _texts_of(line: RecordedLine) -> Iterator[str]:
    request, outcome = line.record.request, line.record.outcome
    yield request.code
    yield outcome.stdout
    yield outcome.stderr
    for bundle in (outcome.result or {}, *outcome.displays):
        yield from (part for part in bundle.values() if isinstance(part, str))
