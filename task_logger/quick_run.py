"""Many lines checked at once, where each follows the one before: what makes verifying a long log quick.

No object is made for a line: whoever wants to know more than that they follow reads them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from task_logger.codec import ChainLink

_HASH_TAIL_BYTES = 75


@dataclass(frozen=True, slots=True)
class QuickRun:
    """So many lines, and bytes with their LFs; the last of them, and its offset behind the first."""

    lines: int
    bytes: int
    last: ChainLink
    last_at: int


def quick_run(data: bytes, after: ChainLink, *, before_n: int, unless: Sequence[bytes]) -> QuickRun | None:
    """Find how many of the first lines in `data` follow `after`, each with LF and right hash.

    No line from number `before_n` on is taken, none where any of `unless` is in the data; `None` for none.
    """
    end = data.rfind(b"\n")
    if end < 0 or any(word in data for word in unless):
        return None
    n, prev, prev_before, at, last_at = after.n, after.hash.encode(), b"", 0, 0
    for line in data[:end].split(b"\n"):
        n += 1
        digest = sha256(line[:-_HASH_TAIL_BYTES]).hexdigest().encode()
        is_next = line.endswith(b',"n":%d,"prev":"%b","hash":"%b"}' % (n, prev, digest))
        if not is_next or n >= before_n or not line.startswith(b"{"):
            n -= 1
            break
        prev_before, prev = prev, digest
        last_at, at = at, at + len(line) + 1
    if n == after.n:
        return None
    return QuickRun(n - after.n, at, ChainLink(n, prev_before.decode(), prev.decode()), last_at)
