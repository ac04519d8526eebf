"""The keyed seal: a code in each line that only the holder of a key can make.

    body of a line -> SHA-256 --+
    recovered, n, prev ---------+-> HMAC-SHA-256 with the key -> "seal":"<key id>.<code>", last in the body

The chain alone can be made anew by whoever can write the file. A seal binds a line's content, its number and,
through `prev`, all lines before it. It hides nothing. The key comes from TASK_LOG_SEAL_KEY (`file:PATH` or
`keyring:NAME`), and never reaches a worker.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SEAL_KEY_SETTING = "TASK_LOG_SEAL_KEY"
"""The environment variable that names the key."""

_FIELD = b',"seal":"'
_KEY_ID_DIGITS = 16
_CODE_DIGITS = 64
_FIELD_BYTES = len(_FIELD) + _KEY_ID_DIGITS + 1 + _CODE_DIGITS + 1

_HASH_TAIL_BYTES = 75
_PREV_TAIL_BYTES = 74
_NUMBER_TAIL_BYTES = 32
_RECOVERED = b',"recovered":['

_BLOCK_BYTES = 64  # of SHA-256
_INNER = bytes(value ^ 0x36 for value in range(256))
_OUTER = bytes(value ^ 0x5C for value in range(256))


@dataclass(frozen=True, slots=True)
class Seal:
    """What a line's seal says, and what it is about: the body, and the chain fields before the hash."""

    key_id: bytes
    code: bytes
    body: memoryview
    chain: bytes


class Sealer:
    """Makes and checks seals with one key."""

    __slots__ = ("_inner", "_outer", "_prefix", "key_id")

    def __init__(self, key: bytes) -> None:
        """`key`: at least 32 random bytes."""
        import hmac

        own = hmac.digest(key, b"task-log seal of lines, version 1", "sha256")  # the key may serve others too
        # HMAC (RFC 2104) by hand: the two halves are begun once, which takes half the time of `hmac.digest`.
        padded = own.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(padded.translate(_INNER))
        self._outer = hashlib.sha256(padded.translate(_OUTER))
        self.key_id = hmac.digest(own, b"key id", "sha256").hex()[:_KEY_ID_DIGITS]
        """Tells keys apart; says nothing about the key."""
        self._prefix = _FIELD + self.key_id.encode() + b"."

    def __repr__(self) -> str:
        return f"<Sealer {self.key_id}>"

    def field(self, body_digest: bytes, chain: bytes) -> bytes:
        """Return the field that ends a body with that SHA-256; `chain` is what stands behind it."""
        inner = self._inner.copy()
        inner.update(body_digest)
        inner.update(chain)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return b'%b%b"' % (self._prefix, outer.hexdigest().encode())

    def is_right(self, seal: Seal) -> bool:
        """Whether a seal is one of this key, for this line."""
        import hmac

        expected = self.field(hashlib.sha256(seal.body).digest(), seal.chain)
        return hmac.compare_digest(expected[len(_FIELD) : -1], seal.key_id + b"." + seal.code)


def seal_of(line: bytes) -> Seal | None:
    """Return the seal of a line, which is without LF and whose hash is right; `None` where it has none."""
    number_at = line.rfind(b',"n":', -_HASH_TAIL_BYTES - _PREV_TAIL_BYTES - _NUMBER_TAIL_BYTES)
    end = number_at
    if line.endswith(b"}]", 0, end):
        recovered_at = line.rfind(_RECOVERED, 0, end)
        end = recovered_at if recovered_at >= 0 else end
    field = line[max(0, end - _FIELD_BYTES) : end]
    if len(field) != _FIELD_BYTES or not field.startswith(_FIELD) or not field.endswith(b'"'):
        return None
    key_id, _, code = field[len(_FIELD) : -1].partition(b".")
    if len(key_id) != _KEY_ID_DIGITS:
        return None
    return Seal(key_id, code, memoryview(line)[: end - _FIELD_BYTES], line[end:-_HASH_TAIL_BYTES])


def sealer_from_environment() -> Sealer | None:
    """Return the sealer with the environment's key, `None` where it names none.

    Raises `KeyMalformed` for a passphrase too, and what else `KeySource.wrapping_key` does.
    """
    import os

    if not os.environ.get(SEAL_KEY_SETTING):
        return None
    from task_logger.errors import KeyMalformed
    from task_logger.keys import key_from_environment

    source = key_from_environment(SEAL_KEY_SETTING)
    assert source is not None
    if source.is_passphrase:
        raise KeyMalformed(
            SEAL_KEY_SETTING, "must be file:PATH or keyring:NAME; passphrases make no good seals"
        )
    return Sealer(source.wrapping_key(None))
