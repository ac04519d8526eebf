"""Artifacts without secrets: output of any length is searched in pieces that overlap.

bytes, or an open file --> pieces of 1 MiB, with what came before --> places hidden --> another file

Nothing is written where nothing is found. What a search may find is shorter than the overlap, so no secret is
missed because a piece ends in it.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

from task_logger.record import KEPT_TEXT_BYTES, Artifact, elide
from task_logger.secret_rules import MAX_SECRET_CHARACTERS
from task_logger.secret_search import Place, Secrets

_PIECE_BYTES = 1 << 20
_OVERLAP = 2 * MAX_SECRET_CHARACTERS
_CONTEXT = 1024  # what a rule may look back at
_MOST_CHARACTERS = 8 << 20
"""A place that is longer, which only an own pattern can find, is hidden in parts: memory is bounded."""

Hide = Callable[[Place], str]
"""Gives the placeholder for a place."""


def redacted_artifact(
    artifact: Artifact, secrets: Secrets, hide: Hide, open_spool: Callable[[], IO[bytes]]
) -> Artifact:
    """Return the artifact itself where nothing is to be hidden, else one of what is left; the file of the
    old one is closed then. Raises `OSError`."""
    content = artifact.content
    if content is None:
        return artifact
    if isinstance(content, bytes):
        data = b"".join(piece for piece, _ in _hidden_pieces([content], secrets, hide))
        if data == content:
            return artifact
        digest = hashlib.sha256(data).hexdigest()
        return replace(artifact, sha256=digest, bytes=len(data), content=data)
    if not any(is_changed for _, is_changed in _hidden_pieces(_read(content), secrets, hide)):
        return artifact
    spool = open_spool()
    try:
        hasher, size_bytes = hashlib.sha256(), 0
        for piece, _ in _hidden_pieces(_read(content), secrets, hide):
            hasher.update(piece)
            size_bytes += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[spool.write(rest) :]
        spool.flush()
    except BaseException:
        spool.close()
        raise
    return replace(artifact, sha256=hasher.hexdigest(), bytes=size_bytes, content=spool)


def elided_content(artifact: Artifact) -> str | None:
    """Return the text that a line has in place of this content, `None` for what isn't that long."""
    content = artifact.content
    if content is None or artifact.bytes <= 2 * KEPT_TEXT_BYTES:
        return None
    if isinstance(content, bytes):
        first, last = content[:KEPT_TEXT_BYTES], content[-KEPT_TEXT_BYTES:]
    else:
        content.seek(0)
        first = _read_exactly(content, KEPT_TEXT_BYTES)
        content.seek(artifact.bytes - KEPT_TEXT_BYTES)
        last = _read_exactly(content, KEPT_TEXT_BYTES)
    return elide(first, last, total_bytes=artifact.bytes)[0]


def _read_exactly(file: IO[bytes], size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes and (piece := file.read(size_bytes - len(data))):
        data += piece
    return data


def _read(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _hidden_pieces(
    pieces: Iterator[bytes] | list[bytes], secrets: Secrets, hide: Hide
) -> Iterator[tuple[bytes, bool]]:
    """Yield what is to be kept, in pieces, and whether anything in each is hidden."""
    # Bytes that aren't UTF-8 come back as they were.
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    before, text = "", ""
    for piece in pieces:
        text += decode(piece)
        kept, is_changed, taken = _hidden(before, text, secrets, hide, is_end=False)
        before, text = (before + text[:taken])[-_CONTEXT:], text[taken:]
        yield kept, is_changed
    kept, is_changed, _ = _hidden(before, text + decode(b"", True), secrets, hide, is_end=True)
    yield kept, is_changed


def _hidden(before: str, text: str, secrets: Secrets, hide: Hide, *, is_end: bool) -> tuple[bytes, bool, int]:
    """Hide what is in the part of a text that nothing that follows can change.

    Returns that part, whether anything in it is hidden, and how many characters it was.
    """
    whole, skip = before + text, len(before)
    limit = len(whole) if is_end else max(skip, len(whole) - _OVERLAP)
    places: list[Place] = []
    if secrets.may_be_in(whole.encode("utf-8", "surrogateescape")):
        places = [place for place in secrets.find(whole) if place.end > skip]
    for place in places:
        if place.start < limit < place.end:
            limit = max(skip, place.start) if len(text) < _MOST_CHARACTERS else place.end
    out, at = "", skip
    for place in places:
        if place.start >= limit:
            break
        out += whole[at : max(at, place.start)] + hide(place)
        at = place.end
    out += whole[at:limit]
    return out.encode("utf-8", "surrogateescape"), at > skip, limit - skip
