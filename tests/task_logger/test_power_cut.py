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

from task_logger.log_file import LogFile
from task_logger.settling import settle
from tests.task_logger.log_check import check_log

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: from then on the file system takes nothing, as if the power were gone."""

_WITHOUT_FLUSHING_THE_JOURNAL = (2).to_bytes(4, sys.byteorder)

_RUN_FOREVER = """
import os, sys
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.writer import new_session_id

task = TaskIds(plan_id="P", task_id="T-1", task_name="name")
outcome = ExecutionOutcome(status="ok", route="worker", isolation="process", elapsed_ms=1.5)
session_id = new_session_id()
log = SessionLog(root=sys.argv[1], task=task, session_id=session_id, fsync=True, strict=True)
for seq in range(1, 10_000):
    request = ExecutionRequest(code="x" * (seq % 5 * 2000), session_id=session_id, seq=seq, task=task,
                               timestamp="2026-11-20T10:00:00.000Z")
    log.begin(request)
    record = log.finish(request, outcome)
    print(record.head.n, record.head.hash, flush=True)
"""


class _Disk:
    """An ext4 file system in a file, whose power can be cut."""

    def __init__(self, image: Path, mounted: Path) -> None:
        self._image = image
        self.mounted = mounted
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)

    def mount(self) -> bool:
        command = ["mount", "-o", "loop", str(self._image), str(self.mounted)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def cut_power(self) -> None:
        descriptor = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_FLUSHING_THE_JOURNAL)
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.mounted)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[_Disk]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("making and mounting a file system needs root and mkfs.ext4")
    disk = _Disk(tmp_path / "image", tmp_path / "disk")
    if not disk.mount():
        pytest.skip("no file system can be mounted from a file here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.mounted)], check=False, capture_output=True)


def _lose_power_after(disk: _Disk, acknowledgements: int) -> None:
    """Run a session until it has acknowledged so many lines, cut the power, and compare."""
    root = disk.mounted / "logs"
    path = root / "P" / "1.name.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", _RUN_FOREVER, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as session:
        assert session.stdout is not None
        said = [session.stdout.readline() for _ in range(acknowledgements)]
        disk.cut_power()
        session.kill()
        said += session.stdout.readlines()
    disk.unmount()
    assert disk.mount()
    hashes = check_log(path).hashes
    for line in said:
        n, digest = line.split()
        assert hashes[int(n)] == digest
    log = LogFile(str(path), fsync=True)
    settle(str(path.parent), log, fsync=True)
    log.append(b'{"code":"after"')
    log.close()
    checked = check_log(path)
    assert (checked.breaks, checked.unnamed) == ([], [])
    assert len(checked.lines) in range(len(said) + 1, len(said) + 4)
    shutil.rmtree(root)


def test_the_first_acknowledged_line_of_a_new_log_survives_a_loss_of_power(disk: _Disk) -> None:
    _lose_power_after(disk, 1)


@pytest.mark.slow
def test_twenty_losses_of_power_lose_no_acknowledged_line(disk: _Disk) -> None:
    rng = random.Random(3)
    for _ in range(20):
        _lose_power_after(disk, rng.randrange(1, 200))
