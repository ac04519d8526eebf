"""Plain or encrypted: a log is one of them as a whole; its first line decides, before it its header.

key given, lines plain                 ConfigurationError
no key, lines or header encrypted      ConfigurationError
lines of another data key              WrongKey
"""

from __future__ import annotations

import os

from task_logger.errors import ConfigurationError, KeyMissing, WrongKey
from task_logger.key_places import KEY_SETTING, header_path
from task_logger.tail import LogTail


def check_kind(path: str, key_id: str | None, tail: LogTail) -> None:
    """Refuse to go on with a log of the other kind; `key_id` is the data key's, `None` for a plain writer."""
    if tail.link is None:
        if key_id is None and os.path.lexists(header_path(path)):
            raise encrypted_log(path)
    elif tail.key_id is None:
        if key_id is not None:
            raise plain_log(path)
    elif key_id is None:
        raise encrypted_log(path)
    elif tail.key_id != key_id:
        raise WrongKey(
            KEY_SETTING,
            f"{path!r} has lines of data key {tail.key_id or 'unknown'}, and its header has {key_id}; "
            "bring back the header that belongs to the log",
            path=path,
        )


def plain_log(path: str) -> ConfigurationError:
    """Return the error for a key where a log's lines are plain."""
    error = ConfigurationError(
        KEY_SETTING,
        f"is set, but the lines of {path!r} are plain, and a log is encrypted as a whole or not at all; "
        "unset it, or start another log (another task name or TASK_LOG_DIR)",
    )
    error.path = path
    return error


def encrypted_log(path: str) -> ConfigurationError:
    """Return the error for no key where a log is encrypted."""
    return KeyMissing(
        KEY_SETTING,
        f"is not set, but {path!r} is encrypted, and no plain line may come into it; "
        "set it to the log's key, or start another log (another task name or TASK_LOG_DIR)",
        path=path,
    )
