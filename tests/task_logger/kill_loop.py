"""Writers on one log, killed at random moments and replaced; then the log is compared with what they said.

    python kill_loop.py FOLDER --writers 64 --kills 1000 [--fsync] [--encrypted] [--largest-bytes 40000]

Prints one JSON object: kills, acknowledged and lost lines, chain breaks, pieces, and of an encrypted log how
many lines were decrypted and what is said of the pieces. Each writer acknowledges a
line, after `append` returned, by appending its number and hash to a file of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from task_logger.encryption import Cipher, cipher_to_write
from task_logger.keys import KeySource
from task_logger.log_file import LogFile
from task_logger.reader import Damage, read_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.task_logger.log_check import CheckedLog, check_log

_ACK = struct.Struct("<Q32s")
_MOST_LOG_BYTES = 1 << 30
"""From there on lines are short and rare: on a slow machine the kills go on, and no disk gets full."""
_MOST_SECONDS = 900.0
"""After this the loop is taken for stuck."""
_SMALLEST_BYTES = 50


def make_bodies(largest_bytes: int) -> list[bytes]:
    """Make bodies of lines of log-uniform length; they are made once, since a writer's life is short."""
    lengths = [int(_SMALLEST_BYTES * (largest_bytes / _SMALLEST_BYTES) ** (step / 63)) for step in range(64)]
    return [b'{"code":"%b"' % (b"x" * length) for length in lengths]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How the writers of a run write."""

    fsync: bool
    bodies: list[bytes]
    cipher: Cipher | None
    most_log_bytes: int


def write_until_killed(path: Path, acks: Path, seed: int, writing: Writing) -> None:
    """Append lines and acknowledge each, forever."""
    rng = random.Random(seed)
    bodies = writing.bodies
    ack_file = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    log = LogFile(str(path), fsync=writing.fsync, lock_wait_s=60, cipher=writing.cipher)
    while True:
        if log.known_bytes < writing.most_log_bytes:
            head = log.append(rng.choice(bodies))
        else:
            time.sleep(0.01)
            head = log.append(bodies[0])
        os.write(ack_file, _ACK.pack(head.n, bytes.fromhex(head.hash)))


def start_writer(path: Path, acks: Path, seed: int, writing: Writing) -> int:
    """Fork one writer; returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            write_until_killed(path, acks, seed, writing)
        except BaseException as exc:  # noqa: BLE001  # whatever it was, the parent must hear of it
            (acks.parent / "failed").write_text(f"{type(exc).__name__}: {exc}")
        os._exit(1)
    return pid


def run(
    folder: Path, *, writers: int, kills: int, fsync: bool, encrypted: bool, largest_bytes: int, seed: int
) -> dict[str, object]:
    """Kill `kills` writers; returns what the log and the acknowledgements say."""
    rng = random.Random(seed)
    path, ack_folder = folder / "log.jsonl", folder / "acks"
    ack_folder.mkdir()
    key = _make_key(folder / "key") if encrypted else None
    cipher = None if key is None else cipher_to_write(str(path), key)
    most_log_bytes = min(_MOST_LOG_BYTES, shutil.disk_usage(folder).free // 4)
    writing = Writing(
        fsync=fsync, bodies=make_bodies(largest_bytes), cipher=cipher, most_log_bytes=most_log_bytes
    )
    gc.freeze()
    ends_at_s = time.monotonic() + _MOST_SECONDS
    count = 0

    def start() -> int:
        nonlocal count
        count += 1
        return start_writer(path, ack_folder / str(count), seed + count, writing)

    running = [start() for _ in range(writers)]
    killed = 0
    try:
        while killed < kills and time.monotonic() < ends_at_s:
            if killed % 2:  # the others are killed as they start, or wherever they are by then
                _let_grow(path, rng.randrange(2 * largest_bytes), most_log_bytes, ends_at_s)
            time.sleep(rng.uniform(0, 0.004))
            victim = rng.randrange(writers)
            os.kill(running[victim], signal.SIGKILL)
            os.waitpid(running[victim], 0)
            killed += 1
            running[victim] = start()
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    with_rest = killed + writers
    LogFile(str(path), cipher=cipher).append(b'{"code":"the last line names what the last kills left"')
    found = compare(path, ack_folder, with_rest)
    return found if key is None else found | _decrypted(path, key)


def _let_grow(path: Path, by_bytes: int, most_log_bytes: int, ends_at_s: float) -> None:
    """Wait until the log has grown so much: a writer may need long to start, and none would ever write."""
    failed = path.with_name("acks") / "failed"
    wanted_bytes = min(_size(path) + by_bytes, most_log_bytes)
    while _size(path) < wanted_bytes and not failed.exists() and time.monotonic() < ends_at_s:
        time.sleep(0.0002)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _make_key(path: Path) -> KeySource:
    path.touch(0o600)
    path.write_bytes(os.urandom(32))
    return KeySource(f"file:{path}")


def _decrypted(path: Path, key: KeySource) -> dict[str, object]:
    """Read the log with its key: how many lines that gives, and what is said of the rest."""
    decrypted, said = 0, set()
    for line in read_lines(str(path), key):
        if isinstance(line, Damage):
            said.add(line.reason)
        else:
            decrypted += line.data.startswith(b'{"code":"')
    return {"decrypted": decrypted, "said": sorted(said)}


def compare(path: Path, ack_folder: Path, kills: int) -> dict[str, object]:
    """Compare the log with what was acknowledged."""
    failed = ack_folder / "failed"
    checked = check_log(path)
    lost, acknowledged = lost_lines(checked, ack_folder)
    return {
        "kills": kills,
        "failed": failed.read_text() if failed.exists() else None,
        "lines": len(checked.lines),
        "acknowledged": acknowledged,
        "lost": lost,
        "breaks": checked.breaks[:10],
        "pieces": len(checked.pieces),
        "line_ends": checked.line_ends,
        "bytes": path.stat().st_size,
    }


def lost_lines(checked: CheckedLog, ack_folder: Path) -> tuple[int, int]:
    """Count acknowledged lines that are not in the log, and acknowledged lines."""
    hashes = checked.hashes
    lost = acknowledged = 0
    for ack_file in ack_folder.iterdir():
        if ack_file.name == "failed":
            continue
        data = ack_file.read_bytes()
        for at in range(0, len(data) - _ACK.size + 1, _ACK.size):
            n, digest = _ACK.unpack_from(data, at)
            acknowledged += 1
            lost += hashes.get(n) != digest.hex()
    return lost, acknowledged


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--largest-bytes", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fsync", action="store_true")
    parser.add_argument("--encrypted", action="store_true")
    arguments = vars(parser.parse_args())
    print(json.dumps(run(arguments.pop("folder"), **arguments)))


if __name__ == "__main__":
    main()
