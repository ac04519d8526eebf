"""What is kept by its content is whole, or not there."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import signal
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_logger.artifacts import artifact_path, get, new_spool, put
from task_logger.errors import ArtifactNotStored, DamagedArtifact, MissingArtifact
from task_logger.record import Artifact


def artifact(data: bytes, **fields: object) -> Artifact:
    values: dict[str, object] = {
        "field": "stdout",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "mime": "text/plain",
        "content": data,
    }
    return Artifact(**(values | fields))  # type: ignore[arg-type]  # a test's own mixture


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def read(folder: Path, sha256: str) -> bytes:
    with get(str(folder), sha256) as file:
        return file.read()


@given(data=st.binary(max_size=200))
def test_what_is_put_comes_back(tmp_path: Path, data: bytes) -> None:
    stored = put(str(tmp_path), artifact(data))
    assert stored.content is None
    assert stored == artifact(data)
    assert read(tmp_path, stored.sha256) == data


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    for field in ("stdout", "stderr"):
        put(str(tmp_path), artifact(b"same", field=field))
    assert files(tmp_path) == [Path(artifact_path(str(tmp_path), artifact(b"same").sha256))]


def test_files_and_folders_are_for_the_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        put(str(tmp_path / "root" / "plan"), artifact(b"x"))
    finally:
        os.umask(before)
    for path in (tmp_path / "root").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("position", [0, 3, 10])
def test_an_open_file_is_kept_from_its_start_and_stays_open(tmp_path: Path, position: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    with source.open("r+b") as file:
        file.seek(position)
        stored = put(str(tmp_path / "plan"), artifact(b"0123456789", content=file))
        assert not file.closed
    assert read(tmp_path / "plan", stored.sha256) == b"0123456789"
    assert source.stat().st_nlink == 1


def test_a_spool_becomes_the_artifact_without_a_copy(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    with new_spool(str(tmp_path)) as spool:
        spool.write(data)
        number = os.fstat(spool.fileno()).st_ino
        stored = put(str(tmp_path), artifact(data, content=spool))
    assert Path(artifact_path(str(tmp_path), stored.sha256)).stat().st_ino == number
    assert read(tmp_path, stored.sha256) == data


def test_a_spool_with_known_content_changes_nothing(tmp_path: Path) -> None:
    put(str(tmp_path), artifact(b"known"))
    with new_spool(str(tmp_path)) as spool:
        spool.write(b"known")
        put(str(tmp_path), artifact(b"known", content=spool))
    assert len(files(tmp_path)) == 1


def test_a_spool_nobody_keeps_leaves_nothing(tmp_path: Path) -> None:
    with new_spool(str(tmp_path)) as spool:
        spool.write(b"x" * 1000)
        assert files(tmp_path) == []
    assert files(tmp_path) == []


def test_an_unnamed_file_of_another_file_system_is_copied(tmp_path: Path) -> None:
    descriptor = os.memfd_create("output")
    with os.fdopen(descriptor, "w+b") as file:
        file.write(b"in memory")
        stored = put(str(tmp_path), artifact(b"in memory", content=file))
    assert read(tmp_path, stored.sha256) == b"in memory"


def test_a_deleted_file_is_copied(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w+b") as file:
        file.write(b"deleted")
        (tmp_path / "gone").unlink()
        stored = put(str(tmp_path), artifact(b"deleted", content=file))
    assert read(tmp_path, stored.sha256) == b"deleted"


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"bytes": 3}])
def test_content_that_is_not_what_its_name_says_is_refused_and_nothing_stored(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(DamagedArtifact):
        put(str(tmp_path), artifact(b"content", **wrong))
    assert files(tmp_path) == []


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_a_name_that_is_no_sha256_is_refused(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(ArtifactNotStored):
        put(str(tmp_path), artifact(b"x", sha256=sha256))
    with pytest.raises(MissingArtifact):
        get(str(tmp_path), sha256)
    assert files(tmp_path) == []


def test_an_artifact_without_content_can_not_be_stored(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotStored, match="no content"):
        put(str(tmp_path), artifact(b"x", content=None))


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="isn't there") as caught:
        get(str(tmp_path), "0" * 64)
    assert caught.value.sha256 == "0" * 64


@pytest.mark.parametrize("damage", [b"", b"conten", b"Content", b"content and more"])
def test_a_damaged_artifact_is_never_given_and_is_made_whole_by_the_next_put_of_other_length(
    tmp_path: Path, damage: bytes
) -> None:
    stored = put(str(tmp_path), artifact(b"content"))
    path = Path(artifact_path(str(tmp_path), stored.sha256))
    path.write_bytes(damage)
    with pytest.raises(DamagedArtifact, match="SHA-256"):
        get(str(tmp_path), stored.sha256)
    assert path.read_bytes() == damage
    if len(damage) != 7:
        put(str(tmp_path), artifact(b"content"))
        assert read(tmp_path, stored.sha256) == b"content"
        assert files(tmp_path) == [path]


def test_something_else_in_an_artifacts_place_is_named_and_blocks_nobody(tmp_path: Path) -> None:
    path = Path(artifact_path(str(tmp_path), "0" * 64))
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(DamagedArtifact, match="regular"):
        get(str(tmp_path), "0" * 64)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(DamagedArtifact, match="symbolic link"):
        get(str(tmp_path), "0" * 64)


def test_a_full_disk_is_a_named_error_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(ArtifactNotStored, match="No space left"):
        put(str(small_disk), artifact(b"x" * (2 << 20)))
    assert files(small_disk) == []
    put(str(small_disk), artifact(b"small"))


def test_a_limit_on_file_size_is_a_named_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of which a part would be left for everybody
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ArtifactNotStored, match="too large"):
            put(str(tmp_path), artifact(b"x" * 2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(tmp_path) == []


def test_a_file_where_the_folder_should_be_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_bytes(b"")
    with pytest.raises(ArtifactNotStored):
        put(str(tmp_path), artifact(b"x"))
    with pytest.raises(ArtifactNotStored):
        new_spool(str(tmp_path))


def test_many_threads_may_store_the_same_content_at_once(tmp_path: Path) -> None:
    data = b"x" * 100_000
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: put(str(tmp_path), artifact(data)), range(200)))
    assert len(files(tmp_path)) == 1
    assert read(tmp_path, artifact(data).sha256) == data


def test_a_writer_killed_at_any_moment_leaves_whole_artifacts_or_none(tmp_path: Path) -> None:
    data = [bytes([number]) * 300_000 for number in range(40)]
    for wanted in (1, 5, 20):
        reader_end, writer_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for piece in data:
                    put(str(tmp_path / str(wanted)), artifact(piece))
                    os.write(writer_end, b".")
            finally:
                os._exit(0)
        os.close(writer_end)
        for _ in range(wanted):
            assert os.read(reader_end, 1) == b"."
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader_end)
        stored = files(tmp_path / str(wanted))
        assert len(stored) >= wanted
        for path in stored:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # of earlier tests: it must not close anything in between
    before = descriptors()
    for number in range(20):
        data = str(number).encode()
        put(str(tmp_path), artifact(data), fsync=True)
        read(tmp_path, artifact(data).sha256)
        with pytest.raises(DamagedArtifact):
            put(str(tmp_path), artifact(data, sha256="0" * 64))
        with new_spool(str(tmp_path)) as spool:
            spool.write(data + b"s")
            put(str(tmp_path), artifact(data + b"s", content=spool))
    assert descriptors() == before


def test_a_system_without_unnamed_files_stores_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    stored = put(str(tmp_path), artifact(b"content"))
    with new_spool(str(tmp_path)) as spool:
        spool.write(b"spooled")
        assert len(files(tmp_path)) == 1
        spooled = put(str(tmp_path), artifact(b"spooled", content=spool))
    with pytest.raises(DamagedArtifact):
        put(str(tmp_path), artifact(b"other", sha256="0" * 64))
    assert (read(tmp_path, stored.sha256), read(tmp_path, spooled.sha256)) == (b"content", b"spooled")
    assert len(files(tmp_path)) == 2
