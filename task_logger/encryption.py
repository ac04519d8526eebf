"""Encryption at rest: what becomes of a line's body between the codec and the chain, and back.

    body --> {"schema":1,"enc":"A256GCM","key_id":…,"data":<base64> --> chained, hashed, appended
             data: nonce, AES-256-GCM of the body with its last brace; bound to the file's id and the line's n
    line --> data decrypted, the line's chain fields behind it: a plain line, but for its hash

The chain runs over what is stored, so whoever has no key can check it. Nonces are random: a counter would
repeat, because the number of a line that was torn is given again. With 96 random bits, 2**32 lines under one
key keep the chance of any repetition below 2**-32 (NIST SP 800-38D, 8.3); each log has its own key.
"""

from __future__ import annotations

import os
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from hmac import digest

from task_logger.codec import stored_key_id
from task_logger.errors import BadLine, EncryptedLine, KeyMissing, WrongKey, log_error
from task_logger.fitting import MAX_BODY_BYTES
from task_logger.key_header import DataKey, aes_gcm, create_header, open_header
from task_logger.key_places import (
    KEY_SETTING,
    PLAN_HEADER,
    header_names,
    header_path,
    headers_folder,
    is_event_log,
    log_name,
)
from task_logger.keys import KeySource, PassphraseCost, key_needed
from task_logger.kinds import plain_log
from task_logger.tail import read_tail

MAX_SEALED_BODY_BYTES = (MAX_BODY_BYTES - 1024) // 4 * 3
"""Longest body that, encrypted and in base64, still is one: what is larger goes to artifacts."""

_NONCE_BYTES = 12
_DATA, _DATA_END = b',"data":"', b'"'
_LOOKED_AT_BYTES = 200
"""More than what stands before the data ever takes."""


class Cipher:
    """Encrypts and decrypts the lines and pending entries of one file, with the key of its header."""

    max_body_bytes = MAX_SEALED_BODY_BYTES

    def __init__(self, path: str, data_key: DataKey, artifacts: ArtifactCipher | None = None) -> None:
        """Of the log or event log at `path`; `artifacts` are for those who write there."""
        from cryptography.exceptions import InvalidTag

        self.path = path
        self.key_id = data_key.key_id
        """The id of the data key, which every line names."""
        self.artifacts = artifacts
        file_id = data_key.file_id
        if is_event_log(path):  # one key, several files
            file_id += f"/{log_name(path)}"
        self._bound = file_id.encode()
        self._lines = aes_gcm(data_key.derived(b"lines " + self._bound))
        self._entries = aes_gcm(data_key.derived(b"pending " + self._bound))
        self._before_data = b'{"schema":1,"enc":"A256GCM","key_id":"%b","data":"' % self.key_id.encode()
        self._invalid = InvalidTag

    def seal_body(self, body: bytes, n: int) -> bytes:
        """Encrypt the body of line `n`; returns that of the encrypted line, both without their last brace."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._lines.encrypt(nonce, body + b"}", b"%b %d" % (self._bound, n))
        return b'%b%b"' % (self._before_data, b2a_base64(nonce + sealed, newline=False))

    def open_line(self, line: bytes, n: int) -> bytes:
        """Decrypt line `n`, given without its LF; returns the plain line with the chain fields of the stored.

        Raises `WrongKey` for a line of another key, `EncryptedLine` for one of another way to encrypt, and
        `BadLine` for one that the key's owner did not write as line `n` of this file.
        """
        key_id = stored_key_id(line)
        if key_id is None:
            raise BadLine(self.path, "it is plain, in an encrypted log")
        if key_id == "":
            raise EncryptedLine(self.path)
        if key_id != self.key_id:
            raise WrongKey(
                KEY_SETTING,
                f"a line of {self.path!r} has data key {key_id}, not {self.key_id}",
                path=self.path,
            )
        start = line.find(_DATA, 0, _LOOKED_AT_BYTES) + len(_DATA)
        end = line.find(_DATA_END, start)
        try:
            data = a2b_base64(memoryview(line)[start:end], strict_mode=True)
            plain: bytes = self._lines.decrypt(
                data[:_NONCE_BYTES], data[_NONCE_BYTES:], b"%b %d" % (self._bound, n)
            )
        except (Base64Error, ValueError, self._invalid) as exc:
            reason = (
                f"it was not encrypted as line {n} of this log by who has its key: forged, altered or moved"
            )
            raise BadLine(self.path, reason) from exc
        return plain[:-1] + line[end + 1 :]

    def seal_entry(self, payload: bytes, seq: int) -> bytes:
        """Encrypt what a pending file says of execution `seq`; returns base64."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._entries.encrypt(nonce, payload, b"%b %d" % (self._bound, seq))
        return b2a_base64(nonce + sealed, newline=False)

    def open_entry(self, sealed: bytes, seq: int) -> bytes:
        """Decrypt what `seal_entry` made; raises `BadLine`."""
        try:
            data = a2b_base64(sealed, strict_mode=True)
            plain: bytes = self._entries.decrypt(
                data[:_NONCE_BYTES], data[_NONCE_BYTES:], b"%b %d" % (self._bound, seq)
            )
        except (Base64Error, ValueError, self._invalid) as exc:
            raise BadLine(self.path, "a pending entry was not encrypted by who has this log's key") from exc
        return plain


class ArtifactCipher:
    """The keys of a plan's artifacts: how they are named, and what each is encrypted with."""

    def __init__(self, data_key: DataKey) -> None:
        self.key_id = data_key.key_id
        """The id of the plan's data key."""
        self._names = data_key.derived(b"artifact names")
        self._contents = data_key.derived(b"artifacts")
        self.placeholder_key = data_key.derived(b"placeholders")
        """The key of the plan's placeholders for secrets."""

    def name(self, sha256: str) -> str:
        """Return the name of the stored artifact whose content has this SHA-256: an HMAC of it."""
        return digest(self._names, sha256.encode(), "sha256").hex()

    def file_key(self, start: bytes) -> bytes:
        """Return the key of the one file that begins with these random bytes."""
        return digest(self._contents, start, "sha256")


class LogKeys:
    """The cipher of one log that is written to: opened when it is first needed, created where nothing is."""

    max_body_bytes = MAX_SEALED_BODY_BYTES

    def __init__(self, path: str, key: KeySource) -> None:
        self._path = path
        self._key = key
        self._cipher: Cipher | None = None

    def cipher(self) -> Cipher:
        """Return it; raises as `cipher_to_write`, also at a later call where it could not be had before."""
        if self._cipher is None:
            self._cipher = cipher_to_write(self._path, self._key)
        return self._cipher


def cipher_to_write(path: str, key: KeySource) -> Cipher:
    """Return the cipher of the log or event log at `path`, making its header where the log has no line yet.

    Raises `ConfigurationError` where its lines are plain, `KeyMissing` where its header is gone, `WrongKey`
    and others of `KeyRefused`; nothing was changed then. Raises `LogUnavailable` where the header can't be
    read or written now.
    """
    wanted = header_path(path)
    is_new = not (is_event_log(path) or os.path.lexists(wanted))
    cost, plan_key = _plan_key(os.path.dirname(wanted), key, path, again=is_new)
    data_key = plan_key
    if is_new:
        _require_no_lines(path, wanted)
        data_key = create_header(wanted, key, cost)
    elif not is_event_log(path):
        data_key = open_header(wanted, key)[1]
    return Cipher(path, data_key, ArtifactCipher(plan_key))


def cipher_to_read(path: str, key: KeySource | None = None) -> Cipher:
    """Return the cipher of an encrypted log; a key of `None` is the environment's. Raises `KeyRefused`."""
    key = key or key_needed(path)
    return Cipher(path, open_header(header_path(path), key)[1])


def artifact_cipher(
    plan_folder: str, key: KeySource | None = None, *, create: bool = False
) -> ArtifactCipher:
    """Return the cipher of a plan's artifacts; a key of `None` is the environment's.

    Raises `KeyRefused`, and with `create`, which makes the header where there is none, as `cipher_to_write`.
    """
    folder = headers_folder(plan_folder)
    path = f"{folder}/{PLAN_HEADER}"
    key = key or key_needed(path)
    return ArtifactCipher(_plan_key(folder, key)[1] if create else open_header(path, key)[1])


def _plan_key(
    folder: str, key: KeySource, path: str = "", *, again: bool = False
) -> tuple[PassphraseCost | None, DataKey]:
    """Open the plan's header, or make it; all headers of a plan share its salt: one derivation a session.

    With `again` its data key is unwrapped now, so that the key is still the plan's. It is made neither for a
    log at `path` that has lines, nor where there are others' headers already.
    """
    plan_header = f"{folder}/{PLAN_HEADER}"
    try:
        is_new = not header_names(folder) and not os.path.lexists(plan_header)
    except OSError as exc:
        raise log_error(folder, exc) from exc
    if is_new:
        if path:
            _require_no_lines(path, plan_header)
        create_header(plan_header, key, key.new_cost())
    header, data_key = open_header(plan_header, key, again=again)
    return header.cost, data_key


def _require_no_lines(path: str, header: str) -> None:
    """Refuse to make a header for a log that has lines; another writer may have made it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if not os.path.lexists(f"{path}.zst"):
            return
        from task_logger.compression import restore_log

        restore_log(path, fsync=False)  # as whoever opens it would do next
        _require_no_lines(path, header)
        return
    except OSError as exc:
        raise log_error(path, exc) from exc
    try:
        tail = read_tail(descriptor, os.fstat(descriptor).st_size, path)
    except OSError as exc:
        raise log_error(path, exc) from exc
    finally:
        os.close(descriptor)
    if tail.link is not None and tail.key_id is None:
        raise plain_log(path)
    if tail.link is not None and not os.path.lexists(header):  # it is made before the first line
        raise KeyMissing(
            KEY_SETTING,
            f"the header {header!r} with the data key of the encrypted log {path!r} is gone; "
            "bring it back from where the log came",
            path=path,
        )
