"""Where the key comes from that wraps the data keys of encrypted logs.

TASK_LOG_KEY --> KeySource --> wrapping_key(): 32 bytes
    a passphrase      scrypt, with the salt and cost that a log's key file names
    file:PATH         32 bytes, or their hex or base64 form, in a file that only its owner can read
    keyring:NAME      their hex or base64 form, in the system's keyring

Nothing here writes the key anywhere: not into messages, nor into `repr`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from task_logger.errors import ConfigurationError, KeyMalformed, KeyMissing, KeyPermissions
from task_logger.key_places import KEY_SETTING

KEY_BYTES = 32

KEYRING_SERVICE = "json-repl"
"""Under this service the system's keyring keeps the keys of `keyring:NAME`."""

_MOST_KEY_FILE_BYTES = 1024

_SCRYPT_MEMORY_BYTES = 256 << 20
"""More than a key file of a log may ask for: a forged one must not exhaust the machine."""


@dataclass(frozen=True, slots=True)
class PassphraseCost:
    """How a passphrase becomes a key: the parameters of scrypt (RFC 7914)."""

    salt: bytes
    n: int = 1 << 15
    r: int = 8
    p: int = 3
    # OWASP's Password Storage Cheat Sheet rates (2**15, 8, 3) as strong as its first choice, in 32 MiB.

    @property
    def is_bearable(self) -> bool:
        """Whether scrypt takes these numbers, and the machine can be asked for that much."""
        is_power = self.n > 1 and self.n & (self.n - 1) == 0
        return (
            is_power
            and 0 < self.r <= 32
            and 0 < self.p <= 16
            and 128 * self.n * self.r < _SCRYPT_MEMORY_BYTES
        )


class KeySource:
    """One key, as the environment names it; read or derived when it is first needed, and then remembered."""

    __slots__ = ("_derived", "_kind", "_text", "data_keys", "setting")

    def __init__(self, text: str, setting: str = KEY_SETTING) -> None:
        """Of the value of `setting`, which errors name. Raises `KeyMalformed` for one that names nothing."""
        kind, colon, rest = text.partition(":")
        self._kind = kind if colon and kind in ("file", "keyring") else "passphrase"
        self._text = text if self._kind == "passphrase" else rest
        self._derived: dict[PassphraseCost | None, bytes] = {}
        self.data_keys: dict[tuple[str, str], bytes] = {}
        """The data keys that it has opened: whoever holds them needs no key when they are wrapped anew."""
        self.setting = setting
        if not self._text:
            raise KeyMalformed(setting, "is empty, or names no file or key behind its colon")

    def __repr__(self) -> str:
        return f"<KeySource {self._kind}>"

    @property
    def is_passphrase(self) -> bool:
        """Whether the key is derived, which takes a moment, rather than read."""
        return self._kind == "passphrase"

    def new_cost(self) -> PassphraseCost | None:
        """How to derive the key for a new plan; `None` for one that is read."""
        return PassphraseCost(os.urandom(16)) if self.is_passphrase else None

    def wrapping_key(self, cost: PassphraseCost | None) -> bytes:
        """Return the 32 bytes.

        Raises `KeyMissing`, `KeyMalformed`, `KeyPermissions`, and `ConfigurationError` where the keyring's
        package isn't installed.
        """
        if cost not in self._derived:
            if self._kind == "file":
                self._derived[cost] = self._from_file()
            elif self._kind == "keyring":
                self._derived[cost] = self._from_keyring()
            else:
                self._derived[cost] = self._from_passphrase(cost)
        return self._derived[cost]

    def _from_passphrase(self, cost: PassphraseCost | None) -> bytes:
        from hashlib import scrypt

        assert cost is not None
        return scrypt(
            os.fsencode(self._text),
            salt=cost.salt,
            n=cost.n,
            r=cost.r,
            p=cost.p,
            maxmem=2 * _SCRYPT_MEMORY_BYTES,
            dklen=KEY_BYTES,
        )

    def _from_file(self) -> bytes:
        path = os.path.abspath(os.path.expanduser(self._text)) if "\0" not in self._text else self._text
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise KeyMissing(
                self.setting, f"there is no key file {path!r}; put it there, or name another", path=path
            ) from exc
        except PermissionError as exc:
            raise KeyPermissions(
                self.setting, f"key file {path!r} can't be read by user {os.geteuid()}", path=path
            ) from exc
        except (OSError, ValueError) as exc:
            raise KeyMissing(self.setting, f"key file {path!r} can't be opened: {exc}", path=path) from exc
        try:
            self._check_file(path, os.fstat(descriptor))
            data = os.read(descriptor, _MOST_KEY_FILE_BYTES)
        except OSError as exc:
            raise KeyMissing(
                self.setting, f"key file {path!r} can't be read: {exc.strerror}", path=path
            ) from exc
        finally:
            os.close(descriptor)
        key = _key_in(data)
        if key is None:
            raise KeyMalformed(
                self.setting,
                f"key file {path!r} holds no key: 32 random bytes are expected, or their hex or base64 form; "
                f"make one with: (umask 077; head -c 32 /dev/urandom > NEW_FILE)",
                path=path,
            )
        return key

    def _check_file(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise KeyMalformed(self.setting, f"{path!r} is no regular file", path=path)
        if status.st_mode & 0o077:
            raise KeyPermissions(
                self.setting,
                f"key file {path!r} has mode {stat.S_IMODE(status.st_mode):04o}, so that others can use it; "
                f"run: chmod 600 {path!r}, and think of a new key",
                path=path,
            )
        if status.st_uid not in (0, os.geteuid()):
            raise KeyPermissions(
                self.setting,
                f"key file {path!r} belongs to user {status.st_uid}, who can change it",
                path=path,
            )

    def _from_keyring(self) -> bytes:
        text = _keyring_text(self.setting, self._text)
        key = None if text is None else _key_in(text.encode("utf-8", "replace"), may_be_raw=False)
        if text is None:
            raise KeyMissing(
                self.setting,
                f"the keyring has no key {self._text!r} of service {KEYRING_SERVICE!r}; put one there with: "
                f"head -c 32 /dev/urandom | base64 | keyring set {KEYRING_SERVICE} {self._text}",
            )
        if key is None:
            raise KeyMalformed(
                self.setting, f"what the keyring has as {self._text!r} isn't 32 bytes in hex or base64"
            )
        return key


def _keyring_text(setting: str, name: str) -> str | None:
    try:
        import keyring  # type: ignore[import-not-found,unused-ignore]  # not every machine has a keyring
        import keyring.errors  # type: ignore[import-not-found,unused-ignore]
    except ImportError as exc:
        raise ConfigurationError(
            setting, "the system's keyring is reached through another package: pip install keyring"
        ) from exc
    try:
        text: str | None = keyring.get_password(KEYRING_SERVICE, name)
    except keyring.errors.KeyringError as exc:
        raise KeyMissing(setting, f"the system's keyring can't be asked for {name!r}: {exc}") from exc
    return text


def _key_in(data: bytes, *, may_be_raw: bool = True) -> bytes | None:
    """Return the key that some bytes hold; text that is merely 32 characters long isn't one."""
    if may_be_raw and len(data) == KEY_BYTES and not all(0x20 <= byte < 0x7F for byte in data):
        return data
    text = data.strip()
    if len(text) == 2 * KEY_BYTES:
        try:
            return bytes.fromhex(text.decode("ascii"))
        except ValueError:
            return None
    if len(text) in (43, 44):
        import binascii

        try:
            key = binascii.a2b_base64(text.rstrip(b"=").translate(_FROM_URLSAFE) + b"=", strict_mode=True)
        except binascii.Error:
            return None
        return key if len(key) == KEY_BYTES else None
    return None


_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")


def key_from_environment(setting: str = KEY_SETTING) -> KeySource | None:
    """Return the key that the environment names, `None` where it names none. Raises `KeyMalformed`."""
    text = os.environ.get(setting)
    return KeySource(text, setting) if text else None


def key_needed(path: str) -> KeySource:
    """Return the environment's key, to read the encrypted file at `path`. Raises `KeyMissing`."""
    key = key_from_environment()
    if key is None:
        raise KeyMissing(KEY_SETTING, f"{path!r} is encrypted; set {KEY_SETTING} to its key", path=path)
    return key
