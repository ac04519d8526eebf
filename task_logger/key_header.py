"""The small file beside an encrypted log that holds its data key, wrapped by the key of TASK_LOG_KEY.

    <plan>/keys/<name of the log>.key   the data key of that log: its lines, its pending entries
    <plan>/keys/plan.key                that of the plan's artifacts and events

    new data key --> wrapped --> temporary file, synced --> link(2): the first writer's counts, all use that
    rekey:  unwrapped by the old key, wrapped by the new one --> temporary file, synced --> rename(2)

It is one JSON object: `schema`, `key_id` (of the data key), `file_id`, `wrap`, `wrapped`, `by` (the id of the
wrapping key) and `kdf` (how a passphrase becomes that key, or null).
"""

from __future__ import annotations

import os
import stat
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass, replace
from hmac import digest
from typing import Any

import orjson

from task_logger.errors import (
    ConfigurationError,
    KeyMalformed,
    KeyMissing,
    KeyPermissions,
    WrongKey,
    log_error,
)
from task_logger.keys import KEY_BYTES, KeySource, PassphraseCost
from task_logger.opening import make_folder, sync_folder

_SCHEMA = 1
_WRAP = "A256GCM"
_NONCE_BYTES = 12
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHeader:
    """What a header file holds; `cost` is `None` where the wrapping key is no passphrase."""

    key_id: str
    file_id: str
    wrapped: bytes
    by: str
    cost: PassphraseCost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKey:
    """An unwrapped data key; `file_id` is bound into all that is encrypted with it."""

    key_id: str
    file_id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<DataKey {self.key_id}>"

    def derived(self, purpose: bytes) -> bytes:
        """Return a key for one purpose (HKDF-Expand of RFC 5869, of one block)."""
        return digest(self.secret, b"task-log " + purpose + b"\1", "sha256")


def open_header(path: str, key: KeySource, *, again: bool = False) -> tuple[KeyHeader, DataKey]:
    """Read a header file and unwrap its data key; one that `key` has opened before only `again`.

    Raises `KeyMissing` where there is no such file, `KeyMalformed` where it makes no sense, `WrongKey`, and
    what `KeySource.wrapping_key` raises.
    """
    header = read_header(path, key)
    name = (header.key_id, header.file_id)
    if again or name not in key.data_keys:
        key.data_keys[name] = unwrap(header, path, key).secret
    return header, DataKey(key_id=header.key_id, file_id=header.file_id, secret=key.data_keys[name])


def create_header(path: str, key: KeySource, cost: PassphraseCost | None) -> DataKey:
    """Make a header file with a new data key, on the disk on return; where one is there, that counts.

    Raises `LogUnavailable` and `LogPathRefused` where it can't be written, and as `open_header`.
    """
    data_key = DataKey(key_id=os.urandom(8).hex(), file_id=os.urandom(16).hex(), secret=os.urandom(KEY_BYTES))
    header = wrap(data_key, key, cost)
    folder = os.path.dirname(path)
    make_folder(folder, fsync=True)
    try:
        if not _publish(path, header, may_replace=False):
            return open_header(path, key)[1]
    except OSError as exc:
        raise log_error(path, exc) from exc
    key.data_keys[data_key.key_id, data_key.file_id] = data_key.secret
    return data_key


def replace_header(path: str, header: KeyHeader) -> None:
    """Put another header in the place of one, at once or not at all, on the disk on return.

    Raises `LogUnavailable` and `LogPathRefused` where it can't be written; the old one is still there then.
    """
    try:
        _publish(path, header, may_replace=True)
    except OSError as exc:
        raise log_error(path, exc) from exc


def wrap(data_key: DataKey, key: KeySource, cost: PassphraseCost | None) -> KeyHeader:
    """Wrap a data key; raises what `KeySource.wrapping_key` raises."""
    wrapping_key = key.wrapping_key(cost)
    header = KeyHeader(
        key_id=data_key.key_id, file_id=data_key.file_id, wrapped=b"", by=_id_of(wrapping_key), cost=cost
    )
    nonce = os.urandom(_NONCE_BYTES)
    sealed = aes_gcm(wrapping_key, key.setting).encrypt(nonce, data_key.secret, _bound(header))
    return replace(header, wrapped=nonce + sealed)


def unwrap(header: KeyHeader, path: str, key: KeySource) -> DataKey:
    """Unwrap the data key of the header at `path`; raises as `open_header`."""
    from cryptography.exceptions import InvalidTag

    wrapping_key = b"" if key.is_passphrase and header.cost is None else key.wrapping_key(header.cost)
    if key.is_passphrase is not (header.cost is not None):
        used = "a passphrase" if header.cost is not None else "a key of 32 bytes (`file:` or `keyring:`)"
        raise WrongKey(
            key.setting, f"the data key in {path!r} is wrapped by {used}, which this is not", path=path
        )
    if _id_of(wrapping_key) != header.by:
        raise WrongKey(
            key.setting,
            f"is another key than the one that {path!r} is wrapped by, whose id is {header.by} "
            f"(this one's is {_id_of(wrapping_key)}); set it to that one",
            path=path,
        )
    nonce, sealed = header.wrapped[:_NONCE_BYTES], header.wrapped[_NONCE_BYTES:]
    try:
        secret = aes_gcm(wrapping_key, key.setting).decrypt(nonce, sealed, _bound(header))
    except InvalidTag as exc:
        raise KeyMalformed(key.setting, f"the data key in {path!r} was altered", path=path) from exc
    return DataKey(key_id=header.key_id, file_id=header.file_id, secret=secret)


def read_header(path: str, key: KeySource) -> KeyHeader:
    """Read a header file, without unwrapping its key; `key` is for the errors, which are `open_header`'s."""
    require_crypto(key.setting)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        message = (
            f"the header {path!r} with the wrapped data key is gone; bring it back from where the log came"
        )
        raise KeyMissing(key.setting, message, path=path) from exc
    except OSError as exc:
        message = f"the header {path!r} with the wrapped data key can't be opened: {exc.strerror}"
        raise KeyPermissions(key.setting, message, path=path) from exc
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise KeyMalformed(key.setting, f"the header {path!r} is no regular file", path=path)
        return _parsed(orjson.loads(os.read(descriptor, _MOST_BYTES)))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise KeyMalformed(
            key.setting,
            f"the header {path!r} with the wrapped data key makes no sense; bring back a copy",
            path=path,
        ) from exc
    finally:
        os.close(descriptor)


def aes_gcm(secret: bytes, setting: str = "TASK_LOG_KEY") -> Any:
    """Return AES-256-GCM with that key; raises `ConfigurationError` where the package isn't installed."""
    require_crypto(setting)
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(secret)


def require_crypto(setting: str) -> None:
    """Raise `ConfigurationError` where the package that encrypts isn't installed."""
    try:
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401  # whether it is there
    except ImportError as exc:
        raise ConfigurationError(setting, "encryption needs: pip install 'json-repl[crypto]'") from exc


def _id_of(wrapping_key: bytes) -> str:
    return digest(wrapping_key, b"task-log id of a wrapping key", "sha256")[:8].hex()


def _bound(header: KeyHeader) -> bytes:
    return f"task-log header {_SCHEMA} {header.key_id} {header.file_id} {header.by}".encode()


def _parsed(fields: dict[str, Any]) -> KeyHeader:
    if fields["schema"] != _SCHEMA or fields["wrap"] != _WRAP:
        raise ValueError("another version")
    kdf, cost = fields["kdf"], None
    if kdf is not None:
        if kdf["name"] != "scrypt":
            raise ValueError("another derivation")
        cost = PassphraseCost(bytes.fromhex(kdf["salt"]), n=kdf["n"], r=kdf["r"], p=kdf["p"])
        if not cost.is_bearable:
            raise ValueError("numbers that scrypt doesn't take")
    bytes.fromhex(fields["key_id"] + fields["file_id"] + fields["by"])
    return KeyHeader(
        key_id=fields["key_id"],
        file_id=fields["file_id"],
        wrapped=a2b_base64(fields["wrapped"], strict_mode=True),
        by=fields["by"],
        cost=cost,
    )


def _rendered(header: KeyHeader) -> bytes:
    cost = header.cost
    kdf = None
    if cost is not None:
        kdf = {"name": "scrypt", "salt": cost.salt.hex(), "n": cost.n, "r": cost.r, "p": cost.p}
    fields = {
        "schema": _SCHEMA,
        "key_id": header.key_id,
        "file_id": header.file_id,
        "wrap": _WRAP,
        "wrapped": b2a_base64(header.wrapped, newline=False).decode(),
        "by": header.by,
        "kdf": kdf,
    }
    return orjson.dumps(fields) + b"\n"


def _publish(path: str, header: KeyHeader, *, may_replace: bool) -> bool:
    """Give a whole, synced file its name; false where another has it already. Raises `OSError`."""
    folder = os.path.dirname(path)
    temporary = f"{folder}/.{os.urandom(8).hex()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, _rendered(header))  # far less than a block: all or nothing
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if may_replace:
            os.rename(temporary, path)
            temporary = ""
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True
    finally:
        if temporary:
            os.unlink(temporary)
        sync_folder(folder)
