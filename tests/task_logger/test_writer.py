"""One line, whole, chained and where it belongs, or one clear error that says what is there now."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_logger.errors import (
    ConfigurationError,
    InvalidField,
    LogClosed,
    LogDiskFull,
    LogLocked,
    LogMoved,
    LogPathRefused,
)
from task_logger.log_file import LogFile
from task_logger.opening import make_folder
from task_logger.reader import read_records
from task_logger.record import ExecutionRecord
from task_logger.writer import EnhancedTaskLogger, TaskLogger, new_session_id
from tests.conftest import WaitUntil
from tests.task_logger.log_check import check_log

_BODY = b'{"code":"x = 1"'


def _append(path: Path, body: bytes = _BODY) -> int:
    log = LogFile(str(path))
    try:
        return log.append(body).n
    finally:
        log.close()


def _is_whole(path: Path) -> None:
    """Every line end of a log belongs to a line of its chain, or to a piece that a line names."""
    checked = check_log(path)
    assert checked.breaks == []
    assert checked.unnamed == []
    assert checked.line_ends == checked.lines[-1]["n"] + len(checked.pieces)


def _python(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


# The chain


def test_several_writers_of_one_process_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    logs = [LogFile(str(path)) for _ in range(5)]
    heads = [logs[turn % 5].append(_BODY) for turn in range(100)]
    assert [head.n for head in heads] == list(range(1, 101))
    assert LogFile(str(path)).head == heads[-1]
    _is_whole(path)


@pytest.mark.parametrize(
    ("tail", "pieces"),
    [
        (b"garbage", [7]),
        (b"garbage\n", [7]),
        (b"\n", [0]),
        (b"\n\n", [0, 0]),
        (b"a\n\nbc", [1, 0, 2]),
        (b"\0" * 5000 + b"\n", [5000]),
        (b'{"code":1,"n":2,"prev":"' + b"0" * 64 + b'","hash":"' + b"0" * 64 + b'"}\n', [164]),
    ],
)
def test_what_cannot_be_read_is_named_in_the_next_line(
    tmp_path: Path, tail: bytes, pieces: list[int]
) -> None:
    path = tmp_path / "log.jsonl"
    _append(path)
    with path.open("ab") as file:
        file.write(tail)
    before = path.read_bytes()
    assert _append(path) == 2
    assert path.read_bytes().startswith(before)
    assert [length for _, length in check_log(path).pieces] == pieces
    _is_whole(path)


def test_a_last_line_without_its_line_end_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    _append(path)
    os.truncate(path, path.stat().st_size - 1)
    assert _append(path) == 2
    _is_whole(path)
    assert check_log(path).pieces == []


def test_a_log_cut_at_any_byte_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(3):
        _append(path)
    whole = path.read_bytes()
    line_end = [at for at, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        readable = sum(cut >= end for end in line_end)
        assert _append(path) == readable + 1
        assert path.read_bytes().startswith(whole[:cut])
        _is_whole(path)


def test_a_log_that_others_damage_while_it_is_open_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path))
    for turn in range(20):
        log.append(_BODY)
        with path.open("ab") as file:
            file.write((b"x" * turn, b"y\n" * turn)[turn % 2])
    log.append(_BODY)
    _is_whole(path)


@settings(max_examples=150)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.just(b"\n")), max_size=12))
def test_whatever_is_between_the_lines_the_chain_goes_on(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes | None]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    for part in parts:
        if part is None:
            _append(path)
        else:
            with path.open("ab") as file:
                file.write(part)
    _append(path)
    checked = check_log(path)
    assert checked.breaks == []
    assert len(checked.lines) == parts.count(None) + 1
    _is_whole(path)


def test_the_longest_line_is_read_back_and_followed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    _append(path, b'{"code":"' + b"x" * (15 << 20) + b'"')
    with path.open("ab") as file:
        file.write(b"y" * (17 << 20))
    assert _append(path) == 2
    _is_whole(path)


def test_opening_and_appending_read_only_the_end_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path))
    for _ in range(40):
        log.append(b'{"code":"' + b"x" * 500_000 + b'"')
    log.append(_BODY)

    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read_bytes()
    LogFile(str(path)).append(_BODY)
    assert read_bytes() - before < 32_000
    before = read_bytes()
    for _ in range(100):
        LogFile.append(log, _BODY)
    assert read_bytes() - before < 32_000


def test_fifty_processes_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = (
        "import os, sys\n"
        "from task_logger.log_file import LogFile\n"
        "go, ready = os.pipe()\n"
        "for number in range(50):\n"
        "    if os.fork() == 0:\n"
        "        os.close(ready)\n"
        "        os.read(go, 1)\n"
        "        log = LogFile(sys.argv[1], lock_wait_s=60)\n"
        "        for turn in range(100):\n"
        '            log.append(b\'{"code":"%d %d"\' % (number, turn))\n'
        "        os._exit(0)\n"
        "os.close(ready)\n"
        "print(sum(os.wait()[1] for _ in range(50)))\n"
    )
    run = _python(script, str(path))
    assert (run.stdout, run.stderr) == ("0\n", "")
    assert len({line["code"] for line in check_log(path).lines}) == 5000
    _is_whole(path)


# Where a log may be


def _make_refused(kind: str, folder: Path) -> tuple[str, str]:  # noqa: PLR0911  # a table of kinds
    """Make a path of some kind; returns it and what the error says."""
    path = folder / "log.jsonl"
    if kind == "symlink":
        (folder / "target").write_text("")
        path.symlink_to("target")
        return str(path), "symbolic link"
    if kind == "dangling symlink":
        path.symlink_to("nowhere")
        return str(path), "symbolic link"
    if kind == "fifo":
        os.mkfifo(path)
        return str(path), "FIFO"
    if kind == "directory":
        path.mkdir()
        return str(path), "directory"
    if kind == "read-only":
        path.write_text("")
        path.chmod(0o444)
        return str(path), "0444"
    if kind == "another's":
        path.write_text("")
        os.chown(path, 12345, 12345)
        return str(path), "12345"
    return {
        "device": ("/dev/null", "device"),
        "full device": ("/dev/full", "device"),
        "no folder": (str(folder / "missing" / "log.jsonl"), "no folder"),
        "folder is a file": (str(Path(__file__) / "log.jsonl"), "Not a directory"),
        "long name": (str(folder / ("x" * 256)), "too long"),
        "NUL": (str(folder / "a\0b"), "NUL"),
        "dots": (str(folder / ".." / "log.jsonl"), "'..'"),
        "relative": ("log.jsonl", "absolute"),
    }[kind]


_REFUSED = [
    "symlink", "dangling symlink", "fifo", "directory", "read-only", "device", "full device", "no folder",
    "folder is a file", "long name", "NUL", "dots", "relative",
    pytest.param("another's", marks=pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")),
]  # fmt: skip


@pytest.mark.parametrize("kind", _REFUSED)
def test_a_path_that_cannot_be_a_log_is_refused_with_its_reason_and_nothing_is_created(
    kind: str, tmp_path: Path
) -> None:
    path, reason = _make_refused(kind, tmp_path)
    there = {entry.name: entry.lstat().st_mtime_ns for entry in tmp_path.iterdir()}
    gc.collect()  # of earlier tests: it must not close anything in between
    descriptors = len(os.listdir("/proc/self/fd"))  # counted, not used
    with pytest.raises(LogPathRefused) as refused:
        LogFile(path)
    assert reason in str(refused.value)
    assert refused.value.path == path
    assert {entry.name: entry.lstat().st_mtime_ns for entry in tmp_path.iterdir()} == there
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("log.jsonl")
        with pytest.raises(LogPathRefused, match="socket"):
            LogFile(str(tmp_path / "log.jsonl"))


def test_a_file_that_is_no_task_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"line\n" * 20_000)
    with pytest.raises(LogPathRefused, match="no task log"):
        LogFile(str(path))
    assert path.read_bytes() == b"line\n" * 20_000


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_folders_and_files_are_ours_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        make_folder(str(tmp_path / "a" / "b"), fsync=True)
        LogFile(str(tmp_path / "a" / "b" / "log.jsonl"), fsync=True).append(_BODY)
    finally:
        os.umask(before)
    modes = [
        entry.stat().st_mode & 0o7777
        for entry in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/log.jsonl")
    ]
    assert modes == [0o700, 0o700, 0o600]


# Space


def _append_often(log: LogFile, body: bytes, times: int) -> None:
    for _ in range(times):
        log.append(body)


def test_a_full_disk_is_named_and_the_log_goes_on_when_there_is_space(small_disk: Path) -> None:
    path = small_disk / "log.jsonl"
    body = b'{"code":"' + b"x" * 300_000 + b'"'
    log = LogFile(str(path))
    with pytest.raises(LogDiskFull) as full:
        _append_often(log, body, 10)
    assert full.value.path == str(path)
    assert full.value.free_bytes == 0
    assert 0 < full.value.written_bytes < full.value.line_bytes
    assert not full.value.has_space_now()
    checked = check_log(path)
    assert (len(checked.lines), len(checked.unnamed), checked.breaks) == (3, 1, [])
    assert checked.unnamed[0][1] == full.value.written_bytes

    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert full.value.has_space_now()
    assert LogFile(str(path)).append(body).n == 4
    assert log.append(body).n == 5
    _is_whole(path)
    assert len(check_log(path).pieces) == 1


def test_the_largest_file_size_allowed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = (
        "import resource, sys\n"
        "from task_logger.log_file import LogFile\n"
        "from task_logger.errors import LogDiskFull\n"
        "sys.dont_write_bytecode = True  # of which a part would be left for everybody\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))\n"
        "log = LogFile(sys.argv[1])\n"
        "try:\n"
        "    while True: log.append(b'{\"code\":\"%b\"' % (b'x' * 1000))\n"
        "except LogDiskFull as exc:\n"
        "    print(exc.written_bytes, exc)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, resource.RLIM_INFINITY))\n"
        "print(log.append(b'{\"code\":1').n)\n"
    )
    run = _python(script, str(path))
    assert run.stderr == ""
    written, n = run.stdout.splitlines()
    assert "File too large" in written
    assert int(n) == len(check_log(path).lines)
    _is_whole(path)


def test_a_write_that_takes_only_a_part_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path))
    whole_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda number, data: whole_write(number, data[: max(1, len(data) // 2)]))
        assert [log.append(_BODY).n for _ in range(3)] == [1, 2, 3]
    _is_whole(path)
    assert check_log(path).pieces == []


def test_no_free_descriptor_is_named(tmp_path: Path) -> None:
    script = (
        "import os, resource, sys\n"
        "from task_logger.log_file import LogFile\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "opened = []\n"
        "try:\n"
        "    while True: opened.append(LogFile(sys.argv[1]))\n"
        "except Exception as exc:\n"
        "    print(type(exc).__name__)\n"
        "opened[0].append(b'{\"code\":1')\n"
        "opened.pop().close()\n"
        "print(LogFile(sys.argv[1]).append(b'{\"code\":1').n)\n"
    )
    run = _python(script, str(tmp_path / "log.jsonl"))
    assert (run.stdout.split(), run.stderr) == (["TooManyOpenFiles", "2"], "")


# The path, the lock, the fork


@pytest.mark.parametrize("what", ["removed", "renamed", "replaced", "folder gone"])
def test_a_log_that_is_no_longer_at_its_path_takes_no_line(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    path = folder / "log.jsonl"
    log = LogFile(str(path))
    log.append(_BODY)
    moved = tmp_path / "moved"
    if what == "removed":
        path.unlink()
    elif what == "folder gone":
        folder.rename(moved)
        moved = moved / "log.jsonl"
    else:
        path.rename(moved)
        if what == "replaced":
            path.write_bytes(b"")
    with pytest.raises(LogMoved):
        log.check()
    with pytest.raises(LogMoved) as error:
        log.append(_BODY)
    assert error.value.path == str(path)
    assert not path.exists() or path.read_bytes() == b""
    if what != "removed":
        assert len(check_log(moved).lines) == 1


def test_a_stopped_process_that_holds_the_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path), lock_wait_s=0.2)
    log.append(_BODY)
    script = (
        "import fcntl, os, signal, sys\n"
        "file = open(sys.argv[1])\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            for _ in range(3):
                with pytest.raises(LogLocked) as error:
                    log.append(_BODY)
                assert error.value.holder_pid == holder.pid
                assert str(holder.pid) in str(error.value)
        finally:
            holder.send_signal(signal.SIGCONT)
        holder.wait()
    assert log.append(_BODY).n == 2
    _is_whole(path)


def test_waits_that_were_given_up_leave_no_lock_thread_or_descriptor(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    path = tmp_path / "log.jsonl"
    holder = LogFile(str(path))
    log = LogFile(str(path), lock_wait_s=0.001)
    gc.collect()  # of earlier tests: it must not close anything in between
    descriptors = len(os.listdir("/proc/self/fd"))  # counted, not used
    threads = len(os.listdir("/proc/self/task"))
    assert holder._descriptor.try_lock()
    for _ in range(20):
        with pytest.raises(LogLocked):
            log.append(_BODY)
    holder.append(_BODY)  # its end lets go of the lock
    log.lock_wait_s = 60.0
    assert log.append(_BODY).n == 2
    wait_until(lambda: len(os.listdir("/proc/self/task")) <= threads)  # each got its lock and ends now
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the one kept for waits
    assert LogFile(str(path)).append(_BODY).n == 3


def test_a_forked_child_keeps_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = (
        "import os, signal, sys\n"
        "from task_logger.log_file import LogFile\n"
        "from task_logger.errors import LogClosed\n"
        "log = LogFile(sys.argv[1])\n"
        "assert log._descriptor.try_lock()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        '    try: log.append(b\'{"code":"of the child"\')\n'
        "    except LogClosed: print('closed', os.getpid(), flush=True)\n"
        "    signal.pause()\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        said, child = parent.stdout.readline().split()
        assert said == "closed"
        parent.kill()
        parent.wait()
        try:
            assert LogFile(str(path), lock_wait_s=1.0).append(_BODY).n == 1
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_closed_log_says_so(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log.jsonl"))
    log.close()
    log.close()
    with pytest.raises(LogClosed):
        log.append(_BODY)
    with pytest.raises(LogClosed):
        log.check()


class _Interrupt(Exception):
    pass


def test_an_interrupt_at_any_moment_leaves_the_lock_free_and_the_chain_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path), lock_wait_s=2.0)
    body = b'{"code":"' + b"x" * 20_000 + b'"'
    rng = random.Random(7)

    def interrupt(number: int, frame: object) -> None:
        raise _Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    gc.disable()  # an interrupt that comes within a callback of the collector is lost
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 3e-4))
                while True:
                    log.append(body)
            except _Interrupt:
                interrupted += 1
            assert LogFile(str(path), lock_wait_s=2.0).append(_BODY).n > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert interrupted == 300
    _is_whole(path)


# What the kernel may say


@pytest.fixture
def strace(tmp_path: Path) -> Any:
    """Run a script with a fault injected into one system call on one path; returns the run and the calls."""
    probe = (
        subprocess.run(["strace", "-qq", "true"], capture_output=True, check=False)
        if _has("strace")
        else None
    )
    if probe is None or probe.returncode != 0:
        pytest.skip("strace is missing, or may not trace here")

    def run(call: str, fault: str, script: str, path: Path) -> tuple[str, list[str]]:
        calls = tmp_path / "calls"
        traced = subprocess.run(
            ["strace", "-f", "-qq", "-o", str(calls), "-P", str(path), "-e", f"trace={call}",
             "-e", f"inject={call}:{fault}", sys.executable, "-c", script, str(path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert traced.stderr == ""
        return traced.stdout, [line for line in calls.read_text().splitlines() if f"{call}(" in line]

    return run


def _has(program: str) -> bool:
    return any(os.access(f"{folder}/{program}", os.X_OK) for folder in os.environ["PATH"].split(":"))


_APPEND_FIVE = (
    "import sys\n"
    "from task_logger.log_file import LogFile\n"
    "from task_logger.errors import TaskLogError\n"
    "try:\n"
    "    log = LogFile(sys.argv[1], fsync=len(sys.argv) > 2 or {fsync})\n"
    "except TaskLogError as exc:\n"
    "    sys.exit(print(type(exc).__name__))\n"
    "for turn in range(5):\n"
    "    try:\n"
    "        print(log.append(b'{{\"code\":1').n)\n"
    "    except TaskLogError as exc:\n"
    "        print(type(exc).__name__)\n"
)


def test_an_interrupted_write_writes_its_line_once(strace: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch(0o600)
    said, _ = strace("write", "error=EINTR:when=2", _APPEND_FIVE.format(fsync=False), path)
    assert said.split() == ["1", "2", "3", "4", "5"]
    _is_whole(path)
    assert len(check_log(path).lines) == 5


def test_an_injected_full_disk_loses_no_other_line(strace: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch(0o600)
    said, _ = strace("write", "error=ENOSPC:when=3", _APPEND_FIVE.format(fsync=False), path)
    assert said.split() == ["1", "2", "LogDiskFull", "3", "4"]
    _is_whole(path)


@pytest.mark.parametrize("when", [1, 3, 5])
def test_a_failed_sync_is_never_tried_again(when: int, strace: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch(0o600)
    said, calls = strace("fdatasync", f"error=EIO:when={when}", _APPEND_FIVE.format(fsync=True), path)
    assert said.split() == [str(n) for n in range(1, when)] + ["LogSyncFailed"] * (6 - when)
    assert len(calls) == when


def test_a_file_system_without_locks_is_refused(strace: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch(0o600)
    said, _ = strace("flock", "error=ENOLCK", _APPEND_FIVE.format(fsync=False), path)
    assert said.split() == ["UnsupportedFilesystem"]


# The loss of power


def _crash_image(rng: random.Random, lines: list[bytes], synced: int) -> bytes:
    """Make what a disk may hold: synced lines, then each later write kept, dropped or garbage."""
    image = bytearray(b"".join(lines[:synced]))
    for line in lines[synced:]:
        fate = rng.choice(("kept", "dropped", "zeros", "garbage", "short"))
        if fate == "dropped":
            break  # the file's length was never written
        if fate == "kept":
            image += line
        elif fate == "zeros":
            image += bytes(len(line))
        elif fate == "garbage":
            image += rng.randbytes(len(line))
        else:
            image += line[: rng.randrange(len(line))]
            break
    return bytes(image)


def _survives_loss_of_power(path: Path, seeds: range) -> None:
    log = LogFile(str(path))
    for number in range(12):
        log.append(b'{"code":"%b"' % (b"x" * (number * 37)))
    lines = path.read_bytes().splitlines(keepends=True)
    for seed in seeds:
        rng = random.Random(seed)
        synced = rng.randrange(len(lines) + 1)
        image = _crash_image(rng, lines, synced)
        path.write_bytes(image)
        _append(path)
        assert path.read_bytes().startswith(image)
        checked = check_log(path)
        hashes = [line["hash"] for line in checked.lines]
        assert hashes[:synced] == [json.loads(line)["hash"] for line in lines[:synced]]
        if checked.breaks:  # a line whose predecessor the disk never got: still told, never taken for whole
            assert all("follows" in text or "names" in text for text in checked.breaks)
        assert checked.unnamed == []


def test_synced_lines_survive_whatever_a_loss_of_power_does_to_the_rest(shared_memory: Path) -> None:
    _survives_loss_of_power(shared_memory / "log.jsonl", range(600))


@pytest.mark.slow
def test_synced_lines_survive_ten_thousand_losses_of_power(shared_memory: Path) -> None:
    _survives_loss_of_power(shared_memory / "log.jsonl", range(10_000))


# TaskLogger


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment of a task, with its logs in a folder of the test."""
    for name in ("TASK_LOG_FSYNC", "TASK_LOG_STRICT", "TASK_LOG_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TASK_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("FLOW_PLAN_ID", "plan of the environment")
    monkeypatch.setenv("FLOW_TASK_ID", "T-12")
    monkeypatch.setenv("FLOW_TASK_NAME", "its name")
    return tmp_path / "logs"


def _lines_valid_by_schema(path: str) -> list[dict[str, Any]]:
    schema = json.loads((Path(__file__).parents[1] / "execution.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for line in lines:
        validator.validate(line)
    return lines


def test_a_task_logger_fills_in_what_a_mapping_leaves_out(flow: Path) -> None:
    with TaskLogger("P-1", 7, "user login") as logger:
        logger.write({"code": "x = 1", "stdout": "hi\n"})
        head = logger.write({"mine": [1, 2]})
    assert logger.path == head.path == str(flow / "P-1" / "7.user_login.jsonl")
    first, second = _lines_valid_by_schema(logger.path)
    assert (first["code"], first["stdout"], first["plan_id"], first["task_id"]) == (
        "x = 1",
        "hi\n",
        "P-1",
        "T-7",
    )
    assert (first["seq"], second["seq"], second["mine"]) == (1, 2, [1, 2])
    assert first["session_id"] == second["session_id"]
    _is_whole(Path(logger.path))


def test_number_zero_takes_the_task_from_the_environment(flow: Path) -> None:
    with EnhancedTaskLogger() as logger:
        logger.write({})
    assert logger.path == str(flow / "plan_of_the_environment" / "12.its_name.jsonl")
    assert _lines_valid_by_schema(logger.path)[0]["task_id"] == "T-12"


def test_a_field_that_no_line_can_have_is_refused_and_uses_no_number(flow: Path) -> None:
    with TaskLogger("P", 1, "n") as logger:
        with pytest.raises(InvalidField, match="elapsed_ms"):
            logger.write({"elapsed_ms": "long"})
        assert logger.write({}).n == 1
    assert _lines_valid_by_schema(logger.path)[0]["seq"] == 1


@pytest.mark.parametrize("number", [-1, True, "7", 1.5])
def test_a_task_number_that_is_none_is_refused(flow: Path, number: Any) -> None:
    with pytest.raises(ConfigurationError, match="task_number"):
        TaskLogger("P", number, "n")
    assert not flow.exists()


def test_threads_share_a_task_logger(flow: Path) -> None:
    logger = TaskLogger("P", 1, "n")
    threads = [threading.Thread(target=lambda: [logger.write({}) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logger.close()
    lines = _lines_valid_by_schema(logger.path)
    assert [line["seq"] for line in lines] == list(range(1, 401))
    _is_whole(Path(logger.path))


def test_fifty_loggers_in_one_process_leak_no_descriptor(flow: Path) -> None:
    gc.collect()  # of earlier tests: it must not close anything in between
    descriptors = len(os.listdir("/proc/self/fd"))  # counted, not used
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for logger in [stack.enter_context(TaskLogger("P", 1, "n")) for _ in range(50)]:
                logger.write({})
    assert len(os.listdir("/proc/self/fd")) == descriptors
    _is_whole(flow / "P" / "1.n.jsonl")


def test_session_ids_are_version_7_uuids_that_sort_by_time() -> None:
    from uuid import UUID

    ids = [UUID(new_session_id()) for _ in range(1000)]
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == 1000
    assert [one.int >> 80 for one in ids] == sorted(one.int >> 80 for one in ids)


@pytest.mark.parametrize("wrong", [None, 1, "code", [("code", "1")], {5: "x", 6: "y"}, {"a\ud800": 1}])
def test_what_is_no_mapping_from_names_is_refused_and_uses_no_number(tmp_path: Path, wrong: Any) -> None:
    with TaskLogger("P", 1, "x", log_dir=tmp_path) as log:
        with pytest.raises(InvalidField):
            log.write(wrong)
        assert log.write({"code": "1"}).n == 1


def test_a_programs_own_field_does_not_make_a_line_look_encrypted(tmp_path: Path) -> None:
    own = {"enc": "A256GCM", "key_id": "0123456789abcdef", "data": "AAAA"}
    with TaskLogger("P", 1, "x", log_dir=tmp_path) as log:
        log.write(own)
    assert [isinstance(seen, ExecutionRecord) and seen.extra for seen in read_records(log.path)] == [own]
