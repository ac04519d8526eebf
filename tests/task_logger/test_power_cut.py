"""With every line synced, the loss of power loses no acknowledged line, on a real file system."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_logger.encryption import cipher_to_write
from task_logger.keys import KeySource
from task_logger.log_file import LogFile
from task_logger.reader import LogLine, read_lines
from task_logger.settling import settle
from tests.task_logger.log_check import check_log

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: the file system takes nothing any more, as if the power were gone."""

_WITHOUT_FLUSHING_THE_JOURNAL = (2).to_bytes(4, sys.byteorder)

_RUN_FOREVER = """
import os, sys
from task_logger.keys import KeySource
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.writer import new_session_id

task = TaskIds(plan_id="P", task_id="T-1", task_name="name")
outcome = ExecutionOutcome(status="ok", route="worker", isolation="process", elapsed_ms=1.5)
session_id = new_session_id()
key = KeySource("file:" + sys.argv[2]) if len(sys.argv) > 2 else None
log = SessionLog(root=sys.argv[1], task=task, session_id=session_id, fsync=True, strict=True, key=key)
for seq in range(1, 10_000):
    request = ExecutionRequest(code="x" * (seq % 5 * 2000), session_id=session_id, seq=seq, task=task,
                               timestamp="2026-11-20T10:00:00.000Z")
    log.begin(request)
    record = log.finish(request, outcome)
    print(record.head.n, record.head.hash, flush=True)
"""


_KINDS = {"ext4": (32 << 20, "mkfs.ext4", "loop"), "xfs": (320 << 20, "mkfs.xfs", "loop,nouuid")}
"""How large an image of each kind is, what makes its file system, and how a copy is mounted beside it."""


class _Disk:
    """A file system in a file, whose power can be cut."""

    def __init__(self, image: Path, mounted: Path, kind: str) -> None:
        self._image = image
        self.mounted = mounted
        mounted.mkdir()
        self._size_bytes, command, self._options = _KINDS[kind]
        self._allocate(image)
        subprocess.run([command, "-q", str(image)], check=True)

    def _allocate(self, image: Path) -> None:
        """Have room for all of an image: a full disk must not look like lost power."""
        with image.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, self._size_bytes)

    def mount(self) -> bool:
        command = ["mount", "-o", self._options, str(self._image), str(self.mounted)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def cut_power(self) -> None:
        descriptor = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_FLUSHING_THE_JOURNAL)
        finally:
            os.close(descriptor)

    def restart(self) -> bool:
        """Mount what is on the disk, by a copy of it.

        A sandbox that another test starts meanwhile has this mount too, among all others. As long as it runs,
        the dead file system lives on, and whoever mounts the same image gets it instead of its recovery.
        """
        subprocess.run(["umount", str(self.mounted)], check=True)
        copy = self._image.with_name("copy")
        subprocess.run(["cp", "--sparse=always", str(self._image), str(copy)], check=True)
        self._allocate(copy)
        copy.replace(self._image)
        return self.mount()


@pytest.fixture(params=_KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Disk]:
    kind: str = request.param
    if os.geteuid() != 0 or shutil.which(_KINDS[kind][1]) is None:
        pytest.skip(f"making and mounting a file system needs root and {_KINDS[kind][1]}")
    disk = _Disk(tmp_path / "image", tmp_path / "disk", kind)
    if not disk.mount():
        pytest.skip("no file system can be mounted from a file here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.mounted)], check=False, capture_output=True)


def _key_file(disk: _Disk) -> Path:
    """A key beside the disk."""
    path = disk.mounted.with_name("key")
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(os.urandom(32))
    return path


def _lose_power_after(disk: _Disk, acknowledgements: int, key: KeySource | None = None) -> None:
    """Run a session until it has acknowledged so many lines, cut the power, and compare."""
    root = disk.mounted / "logs"
    path = root / "P" / "1.name.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", _RUN_FOREVER, str(root), *([] if key is None else [str(_key_file(disk))])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as session:
        assert session.stdout is not None
        heard = b""
        while heard.count(b"\n") < acknowledgements:
            piece = session.stdout.read(1 << 16)
            assert piece, "the session ended by itself"
            heard += piece
        os.set_blocking(session.stdout.fileno(), False)
        heard += session.stdout.read() or b""
        disk.cut_power()
        session.kill()
        # Said while the power went. A real loss silences the session with it; this file system lives on, and
        # a sync that it meets half-way may return well (jbd2 asks no more about a transaction that is neither
        # running nor committing, aborted or not). So these lines may be missing, but never be others.
        os.set_blocking(session.stdout.fileno(), True)
        said, _, begun = heard.decode().rpartition("\n")
        said_too_late = begun + session.stdout.read().decode()
    assert disk.restart()
    hashes = check_log(path).hashes
    for line in said.splitlines():
        n, digest = line.split()
        assert hashes[int(n)] == digest
    for line in said_too_late.splitlines():
        n, digest = line.split()
        assert hashes.get(int(n), digest) == digest
    log = LogFile(str(path), fsync=True, cipher=None if key is None else cipher_to_write(str(path), key))
    settle(str(path.parent), log, fsync=True)
    log.append(b'{"code":"after"')
    log.close()
    checked = check_log(path)
    assert (checked.breaks, checked.unnamed) == ([], [])
    all_said = len((said + said_too_late).split()) // 2
    assert len(checked.lines) in range(len(said.splitlines()) + 1, all_said + 4)
    if key is not None:
        opened = [line for line in read_lines(str(path), key) if isinstance(line, LogLine)]
        assert len(opened) == len(checked.lines)
        assert all(line.data.startswith((b'{"plan_id":"P"', b'{"code":"after"')) for line in opened)
    shutil.rmtree(root)


def test_the_first_acknowledged_line_of_a_new_log_survives_a_loss_of_power(disk: _Disk) -> None:
    _lose_power_after(disk, 1)


def test_the_first_line_of_an_encrypted_log_survives_with_its_key(disk: _Disk) -> None:
    _lose_power_after(disk, 1, KeySource(f"file:{_key_file(disk)}"))


@pytest.mark.slow
def test_twenty_losses_of_power_lose_no_acknowledged_line(disk: _Disk) -> None:
    rng = random.Random(3)
    for _ in range(20):
        _lose_power_after(disk, rng.randrange(1, 200))


@pytest.mark.slow
def test_twenty_losses_of_power_lose_no_line_of_an_encrypted_log(disk: _Disk) -> None:
    rng = random.Random(4)
    for _ in range(20):
        _lose_power_after(disk, rng.randrange(1, 200), KeySource(f"file:{_key_file(disk)}"))
