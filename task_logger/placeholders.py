"""What stands in the log for a secret: ⟨secret:NAME:1f3a⟩.

secret, key of the plan --HMAC-SHA-256--> tag of 4 hex digits --> the same secret is the same placeholder
placeholder, environment --> a variable NAME whose value has this tag? --> its value again

The key is a random one of the plan's, in <plan>/keys/redaction.key: with it, the tag of a value that one has
can be told, and nothing else. In an encrypted plan it comes from the plan's data key, and no file is needed.
Four digits tell values apart, and are too few to confirm a guess.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from task_logger.errors import TaskLogError, log_error
from task_logger.opening import make_folder
from task_logger.secret_values import placeholder_name, values_within

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.keys import KeySource

KEY_BYTES = 32

WITHHELD = "⟨withheld: the redaction failed⟩"
"""Stands for a text of which nobody can say that nothing secret is in it."""

PLACEHOLDER = r"⟨secret:([A-Za-z0-9_]{1,64}):([0-9a-f]{4})⟩"
"""Matches one; its groups are name and tag."""


def placeholder_for(name: str, value: str, key: bytes) -> str:
    """Return what stands for a secret in the logs of the plan with that key."""
    return f"⟨secret:{placeholder_name(name)}:{_tag(value, key)}⟩"


def _tag(value: str, key: bytes) -> str:
    import hmac  # most sessions never come here

    return hmac.digest(key, value.encode("utf-8", "surrogateescape"), "sha256").hex()[:4]


def restore(text: str, environment: Mapping[str, str], key: bytes) -> tuple[str, list[str]]:
    """Put secrets back that the environment has: those whose name and tag are right.

    Returns the text, and the placeholders that are still in it.
    """
    names = {placeholder_name(name): name for name in sorted(environment, reverse=True)}
    missing: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        name = names.get(match[1])
        for value in [] if name is None else values_within(environment[name]):
            if _tag(value, key) == match[2]:
                return value
        missing.append(match[0])
        return match[0]

    return re.sub(PLACEHOLDER, value_of, text), list(dict.fromkeys(missing))


def plan_key(plan_folder: str, encryption: KeySource | None = None, *, fsync: bool = False) -> bytes:
    """Return the key of a plan's placeholders, made where there is none; whoever is first makes it for all.

    `encryption` is the key of an encrypted plan. Raises `TaskLogError` where it can't be read or made.
    """
    if encryption is not None:
        from task_logger.encryption import artifact_cipher

        return artifact_cipher(plan_folder, encryption, create=True).placeholder_key
    folder = f"{plan_folder}/keys"
    path = f"{folder}/redaction.key"
    try:
        key = _read(path)
        if key is None:
            make_folder(folder, fsync=fsync)
            _create(path, os.urandom(KEY_BYTES))
            key = _read(path)
    except OSError as exc:
        raise log_error(path, exc) from exc
    if key is None or len(key) != KEY_BYTES:
        raise TaskLogError(f"{path!r} is no key of {KEY_BYTES} bytes; move it away", path=path)
    return key


def stored_key(plan_folder: str) -> bytes | None:
    """Return the key of a plan's placeholders that isn't encrypted, `None` where there is none; makes none.

    Raises `TaskLogError` where it can't be read.
    """
    path = f"{plan_folder}/keys/redaction.key"
    try:
        key = _read(path)
    except OSError as exc:
        raise log_error(path, exc) from exc
    if key is not None and len(key) != KEY_BYTES:
        raise TaskLogError(f"{path!r} is no key of {KEY_BYTES} bytes; move it away", path=path)
    return key


def placeholders_in(text: str) -> list[tuple[str, str]]:
    """Return each placeholder of a text once, with the name in it."""
    if "⟨secret:" not in text:
        return []
    return list({match[0]: (match[0], match[1]) for match in re.finditer(PLACEHOLDER, text)}.values())


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)


def _create(path: str, key: bytes) -> None:
    """Whole or not at all: a file of another name gets this one, unless somebody was quicker."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, key)
        os.fsync(descriptor)
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)
        os.unlink(temporary)
