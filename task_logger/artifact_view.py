"""An artifact as people and programs get it: chosen by the line that names it, all of it or a range.

line, field or digits of the SHA-256 --> Artifact --> its bytes, checked --> (base64 decoded) --> out
"""

from __future__ import annotations

import os
import sys
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterator
from typing import IO

from task_logger import artifacts, display
from task_logger.errors import ConfigurationError, DamagedArtifact, MissingArtifact
from task_logger.garbage import artifact_files
from task_logger.record import Artifact

_PIECE_BYTES = 1 << 20
_SHORTEST_DIGITS = 6
_MOST_CONTINUATION_BYTES = 3
_BASE64 = ";base64"
_SETTING = "--artifact"


def choose(known: tuple[Artifact, ...], wanted: str) -> Artifact:
    """Return the one artifact of a line that is meant: by field, or by 6 or more digits of its SHA-256.

    Empty text means the only one. Raises `ConfigurationError`, which names those there are.
    """
    found = [one for one in known if wanted in ("", one.field)]
    if not found and len(wanted) >= _SHORTEST_DIGITS:
        found = [one for one in known if one.sha256.startswith(wanted)]
    if len({one.sha256 for one in found}) == 1:
        return found[0]
    names = ", ".join(f"{one.field} ({one.mime}, {one.bytes} bytes, {one.sha256[:12]})" for one in known)
    which = f"these, name one: {names}" if known else "none"
    raise ConfigurationError(
        _SETTING, f"{f'{wanted!r} names no single one; ' if wanted else ''}there are {which}"
    )


def stored(plan_folder: str, wanted: str) -> str:
    """Return the SHA-256 of the one stored artifact that begins with these digits.

    In an encrypted plan, where names are others, all 64 are needed. Raises `MissingArtifact`.
    """
    if len(wanted) == 64:
        return wanted
    names = [os.path.basename(path) for path in artifact_files(plan_folder)]
    found = [name for name in names if len(wanted) >= _SHORTEST_DIGITS and name.startswith(wanted)]
    if len(found) != 1:
        raise MissingArtifact(f"{plan_folder}/artifacts", f"{wanted}…")
    return found[0]


def read_range(file: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of the characters that begin at `start` or behind it, and before `end`.

    An `end` of `None` is that of the file. So ranges that meet fit together, and no character of UTF-8 is
    split, or there twice.
    """
    file.seek(0, os.SEEK_END)
    size_bytes = file.tell()
    at = _character_at(file, min(start, size_bytes))
    end = size_bytes if end is None else _character_at(file, min(end, size_bytes))
    file.seek(at)
    while at < end and (piece := file.read(min(_PIECE_BYTES, end - at))):
        at += len(piece)
        yield piece


def _character_at(file: IO[bytes], at: int) -> int:
    file.seek(at)
    ahead = file.read(_MOST_CONTINUATION_BYTES)
    inside = 0
    while at and inside < len(ahead) and ahead[inside] & 0xC0 == 0x80:
        inside += 1
    return at + inside


def write_out(plan_folder: str, artifact: Artifact, byte_range: tuple[int, int | None] | None) -> None:
    """Write an artifact to stdout: exactly its bytes; what a line held in base64 is decoded.

    A terminal gets text without control characters, and nothing else. Raises `ArtifactError`, `KeyRefused`,
    and `ConfigurationError` for what a terminal doesn't get, and a range of what isn't text.
    """
    is_base64 = artifact.mime.endswith(_BASE64)
    if byte_range is not None and is_base64:
        raise ConfigurationError("--range", f"is for text, and this is {artifact.mime.removesuffix(_BASE64)}")
    with artifacts.get(plan_folder, artifact.sha256) as file:
        is_terminal = sys.stdout.isatty()
        if is_terminal and (is_base64 or not _looks_like_text(file, artifact.mime)):
            raise ConfigurationError(
                _SETTING,
                f"{artifact.mime} isn't for a terminal; put `> FILE` or `| PROGRAM` behind the command",
            )
        pieces = read_range(file, *(byte_range or (0, None)))
        if is_base64:
            pieces = _decoded(file, artifact)
        if is_terminal:
            _print(pieces)
            return
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.buffer.write(piece)


def _looks_like_text(file: IO[bytes], mime: str) -> bool:
    if mime.startswith("text/") or mime.endswith(("json", "xml", "javascript")):
        return True
    file.seek(0)
    return b"\0" not in file.read(_PIECE_BYTES)


def _decoded(file: IO[bytes], artifact: Artifact) -> Iterator[bytes]:
    file.seek(0)
    rest = b""
    while piece := file.read(_PIECE_BYTES):
        digits = rest + b"".join(piece.split())
        whole = len(digits) // 4 * 4
        rest = digits[whole:]
        try:
            yield a2b_base64(digits[:whole], strict_mode=True)
        except Base64Error as exc:
            raise DamagedArtifact("", artifact.sha256, f"it is said to be base64, and isn't ({exc})") from exc
    if rest:
        raise DamagedArtifact("", artifact.sha256, "it is said to be base64, and ends too early")


def _print(pieces: Iterator[bytes]) -> None:
    from codecs import getincrementaldecoder

    decoder = getincrementaldecoder("utf-8")("backslashreplace")
    for piece in pieces:
        sys.stdout.write(display.printable(decoder.decode(piece)))
    sys.stdout.write(display.printable(decoder.decode(b"", final=True)))
    sys.stdout.write("\n")
