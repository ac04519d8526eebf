"""Encrypted artifacts: what was written comes back, and what was done to the file is found out."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_logger.artifacts import artifact_path, get, new_spool, put
from task_logger.encryption import ArtifactCipher, artifact_cipher
from task_logger.errors import DamagedArtifact, MissingArtifact
from task_logger.framed_file import FRAME_BYTES, FramedFile, stored_bytes
from task_logger.key_header import DataKey
from task_logger.keys import KeySource
from task_logger.record import Artifact
from task_logger.spools import EncryptedSpools, open_ephemeral_spool

_START_BYTES = 40
_SIZES = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES, 3 * FRAME_BYTES + 7]


def _cipher() -> ArtifactCipher:
    return ArtifactCipher(DataKey(key_id="0" * 16, file_id="", secret=os.urandom(32)))


def _artifact(content: bytes) -> Artifact:
    digest = hashlib.sha256(content).hexdigest()
    return Artifact(field="stdout", sha256=digest, bytes=len(content), mime="text/plain", content=content)


def _content(size: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


@pytest.mark.parametrize("size", _SIZES)
def test_an_artifact_comes_back_and_is_as_long_as_foretold(tmp_path: Path, size: int) -> None:
    cipher, content = _cipher(), _content(size)
    artifact = put(str(tmp_path), _artifact(content), cipher=cipher)
    path = Path(artifact_path(str(tmp_path), artifact.sha256, cipher))
    assert path.stat().st_size == stored_bytes(size)
    assert path.stat().st_mode & 0o777 == 0o600
    with get(str(tmp_path), artifact.sha256, cipher) as file:
        assert file.read() == content
    assert artifact.sha256 not in str(path)
    if size:
        assert content[:100] not in path.read_bytes() or size < 10


def test_the_same_content_is_kept_once_and_named_by_the_key(tmp_path: Path) -> None:
    ciphers = [_cipher(), _cipher()]
    for cipher in (*ciphers, *ciphers):
        put(str(tmp_path), _artifact(b"content"), cipher=cipher)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert hashlib.sha256(b"content").hexdigest() not in {path.name for path in files}


def test_equal_contents_look_different_under_equal_keys(tmp_path: Path) -> None:
    cipher = _cipher()
    stored = []
    for folder in ("a", "b"):
        artifact = put(str(tmp_path / folder), _artifact(b"content"), cipher=cipher)
        stored.append(Path(artifact_path(str(tmp_path / folder), artifact.sha256, cipher)).read_bytes())
    assert stored[0] != stored[1]


def _damages(content: bytes) -> dict[str, bytes]:
    frame = FRAME_BYTES + 16
    first, rest = content[: _START_BYTES + frame], content[_START_BYTES + frame :]
    return {
        "the last frame cut off": content[: _START_BYTES + 2 * frame],
        "a byte cut off": content[:-1],
        "all frames cut off": content[:_START_BYTES],
        "the start cut off": content[: _START_BYTES - 1],
        "nothing left": b"",
        "two frames swapped": content[:_START_BYTES] + rest[:frame] + first[_START_BYTES:] + rest[frame:],
        "a frame twice": first + first[_START_BYTES:] + rest,
        "a frame left out": content[:_START_BYTES] + rest,
        "a bit changed": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "another start": b"task-log" + bytes(32) + content[_START_BYTES:],
        "something behind it": content + b"x",
        "something else": b"x" * 100,
    }


@pytest.mark.parametrize("kind", list(_damages(bytes(100))))
def test_whatever_was_done_to_a_stored_artifact_is_found(tmp_path: Path, kind: str) -> None:
    cipher = _cipher()
    artifact = put(str(tmp_path), _artifact(_content(2 * FRAME_BYTES + 9)), cipher=cipher)
    path = Path(artifact_path(str(tmp_path), artifact.sha256, cipher))
    path.write_bytes(_damages(path.read_bytes())[kind])
    with pytest.raises(DamagedArtifact) as caught:
        get(str(tmp_path), artifact.sha256, cipher)
    assert caught.value.sha256 == artifact.sha256


def test_another_artifact_under_its_name_is_found(tmp_path: Path) -> None:
    cipher = _cipher()
    one, other = (put(str(tmp_path), _artifact(content), cipher=cipher) for content in (b"one", b"other"))
    path = artifact_path(str(tmp_path), one.sha256, cipher)
    os.replace(artifact_path(str(tmp_path), other.sha256, cipher), path)
    with pytest.raises(DamagedArtifact, match="another SHA-256"):
        get(str(tmp_path), one.sha256, cipher)
    with pytest.raises(MissingArtifact):
        get(str(tmp_path), other.sha256, cipher)


def test_a_spool_becomes_the_artifact_without_a_copy(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(os.urandom(32))
    key_file.chmod(0o600)
    key, plan = KeySource(f"file:{key_file}"), str(tmp_path / "plan")
    content = _content(2 * FRAME_BYTES + 5)
    with EncryptedSpools(plan, key).open() as spool:
        inode = os.fstat(spool.fileno()).st_ino
        _write_all(spool, content)
        cipher = artifact_cipher(plan, key)  # another object, with the same key
        artifact = put(plan, _artifact_of(spool, content), cipher=cipher)
    assert Path(artifact_path(plan, artifact.sha256, cipher)).stat().st_ino == inode
    with get(plan, artifact.sha256, cipher) as file:
        assert file.read() == content


def _artifact_of(spool: object, content: bytes) -> Artifact:
    artifact = _artifact(content)
    object.__setattr__(artifact, "content", spool)
    return artifact


def _write_all(file: object, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]  # type: ignore[attr-defined]  # any file has it


def test_a_spool_with_a_key_of_its_own_is_copied_into_the_plan(tmp_path: Path) -> None:
    cipher, content = _cipher(), _content(2 * FRAME_BYTES + 5)
    for make in (open_ephemeral_spool, io.BytesIO):
        with make() as spool:
            _write_all(spool, content)
            artifact = put(str(tmp_path / make.__name__), _artifact_of(spool, content), cipher=cipher)
        with get(str(tmp_path / make.__name__), artifact.sha256, cipher) as file:
            assert file.read() == content


def test_where_the_plans_key_cannot_be_had_output_is_still_encrypted(tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("in the way")
    with EncryptedSpools(str(tmp_path / "plan"), KeySource(f"file:{tmp_path}/missing")).open() as spool:
        _write_all(spool, b"needle" * FRAME_BYTES)
        assert b"needle" not in os.pread(spool.fileno(), 1 << 20, 0)
        spool.seek(0)
        assert spool.read() == b"needle" * FRAME_BYTES


def test_no_more_than_a_frame_waits_in_memory(tmp_path: Path) -> None:
    with new_spool(str(tmp_path), _cipher()) as spool:
        for number in range(8):
            _write_all(spool, bytes(FRAME_BYTES))
            assert os.fstat(spool.fileno()).st_size >= number * FRAME_BYTES


def test_a_full_disk_costs_nothing_that_was_taken(small_disk: Path) -> None:
    content = _content(FRAME_BYTES)
    with new_spool(str(small_disk), _cipher()) as spool:
        filler = small_disk / "filler"
        filler.write_bytes(bytes(500_000))
        assert spool.write(content) == FRAME_BYTES
        with pytest.raises(OSError, match="No space"):
            spool.write(b"more")
        filler.unlink()
        (small_disk / "artifacts").rename(small_disk / "moved")
        with pytest.raises(OSError, match="No space"):  # a frame needs a little more than the whole disk
            spool.seek(0)


def test_a_descriptor_is_closed_once_whatever_is_in_the_file(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"nothing of ours")
    for _ in range(3):
        with pytest.raises(DamagedArtifact):
            FramedFile(os.open(path, os.O_RDONLY), _cipher(), is_new=False)


@settings(max_examples=60)
@given(
    pieces=st.lists(st.integers(0, 3 * FRAME_BYTES // 2), max_size=5),
    reads=st.lists(st.tuples(st.integers(0, 4 * FRAME_BYTES), st.integers(0, FRAME_BYTES)), max_size=8),
)
def test_any_range_reads_as_it_was_written(
    tmp_path: Path, pieces: list[int], reads: list[tuple[int, int]]
) -> None:
    content = _content(sum(pieces))
    with new_spool(str(tmp_path), _cipher()) as spool:
        at = 0
        for piece in pieces:
            _write_all(spool, content[at : at + piece])
            at += piece
        for start, count in reads:
            spool.seek(start)
            found = b""
            while len(found) < count and (more := spool.read(count - len(found))):
                found += more
            assert found == content[start : start + count]
