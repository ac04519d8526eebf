"""The session's side of snapshots: which copies there are, and which of them are let go.

    worker's announcements --> SnapshotRing --wake--> a live worker in that state
                                   +-- thinned: old states stay reachable at growing distances
                                   +-- bounded: in number, and in the memory that the copies keep alone

The memory is counted in page faults: a page that a worker writes while a copy sleeps is one page more. That
counts new memory too, so it is never less than what the copies hold.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from repl_kernel.errors import CannotFork, SnapshotGone, SnapshotLost
from repl_kernel.spawn import WorkerEnds

MAX_SNAPSHOTS = 64

_NEWEST_KEPT = 16
"""So many of the newest states are all kept; beyond them every power of two keeps as many as half of that."""

_MEMORY_SHARE = 0.10
"""Of the machine's memory: what the copies may hold that no living worker shares."""

_LAST_SHARE = 2.5
"""Times as much the last one may hold: without it a crash would lose everything."""

_WAKE_LIMIT_S = 10.0
_MEASURE_LIMIT_S = 0.5
_PAGE_BYTES = 4096
_PACKET_BYTES = 1 << 16
_MSG_CMSG_CLOEXEC = 0x40000000


@dataclass(slots=True, eq=False)
class Snapshot:
    """One sleeping copy, which equals no other; `faults` is the ring's count of page faults when it was made.

    `line` are the executions that led to its state, from the empty namespace on.
    """

    seq: int
    line: tuple[range, ...]
    socket: _socket.socket
    taken_at: float
    faults: int
    descriptors: tuple[str, ...]

    def release(self) -> None:
        """Let the copy go: it ends when its socket closes."""
        self.socket.close()

    def wake(
        self, ends: WorkerEnds, *, beside: bool, seq: int, reseed: bool = False, due: bool = False
    ) -> None:
        """Have the copy fork a live worker on these ends; raises `SnapshotLost` where the copy is gone.

        `beside` others, the worker writes to pipes of its own; else to those that the copy was made with. Its
        state counts as that after execution `seq`; `reseed` renews its random generators; where it is `due`
        it makes a copy of its own as soon as it idles.
        """
        fds = ends.fds if beside else ends.fds[:2]
        message = orjson.dumps({"op": "wake", "seq": seq, "reseed": reseed, "due": due})
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        try:
            self.socket.sendmsg([message], rights)
        except OSError as exc:
            raise SnapshotLost(self.seq) from exc

    def wait_until_live(self, channel: _socket.socket) -> tuple[int, int, list[str]]:
        """The pid, a pidfd, and in words what isn't as it was, of the worker that the copy makes.

        Our copies of the worker's ends must be closed by now. Raises `CannotFork` where the system has no
        process left (the copy sleeps on), and `SnapshotLost`.
        """
        deadline = time.monotonic() + _WAKE_LIMIT_S
        while (remaining := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([channel.fileno(), self.socket.fileno()], [], [], remaining)
            if channel.fileno() in ready and (packet := _receive(channel)) is not None:
                message, fd = packet
                if "live" in message:
                    return message["live"], fd, _in_words(message["lost"], message["shared"])
            elif ready:
                self._raise_why_not()
        raise SnapshotLost(self.seq)

    def _raise_why_not(self) -> None:
        packet = _receive(self.socket)
        if packet is None:
            raise SnapshotLost(self.seq)
        if "failed" in packet[0]:  # else it is a measurement that came too late
            error = os.strerror(packet[0]["failed"] or 0)
            raise CannotFork(f"the system refuses a new worker process: {error}")

    def measure(self) -> int | None:
        """What the copy holds that no other process shares, in bytes; `None` where it doesn't tell."""
        try:
            self.socket.send(b'{"op":"measure"}')
        except OSError:
            return 0
        if not select.select([self.socket.fileno()], [], [], _MEASURE_LIMIT_S)[0]:
            return None
        packet = _receive(self.socket)
        return 0 if packet is None else packet[0].get("private_bytes")


class SnapshotRing:
    """The snapshots of one namespace, in the order in which they were made; not thread-safe."""

    def __init__(self) -> None:
        self._kept: list[Snapshot] = []
        self._thinned: list[Snapshot] = []
        self._head: int | None = None
        """The state that a crash would go back to: the live one came from it, or was copied to it."""
        self.refused: str | None = None
        """Why the newest state has no snapshot, `None` where nothing stood against it."""
        self.max_bytes = int(_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES)
        """What the copies may hold that no living worker shares."""
        self._base = self._faults = 0
        self._measure_at = 0

    def share_limit(self, memory_bytes: float) -> None:
        """Hold no more than the workers may: the last copy as much as one of them, all others less."""
        self.max_bytes = min(self.max_bytes, int(memory_bytes / _LAST_SHARE))

    def __len__(self) -> int:
        return len(self._kept)

    def seqs(self) -> list[int]:
        """The executions whose states are kept, oldest first."""
        return [snapshot.seq for snapshot in self._kept]

    def describe(self) -> list[dict[str, object]]:
        """What is kept, oldest first.

        `seq`, `age_s`, `extra_bytes` (what it holds for itself, at most), and `descriptors` that were open.
        """
        now = time.time()
        until = [*(kept.faults for kept in self._kept[1:]), self._faults]
        return [
            {
                "seq": kept.seq,
                "age_s": round(max(0.0, now - kept.taken_at), 3),
                "extra_bytes": max(0, end - kept.faults) * _PAGE_BYTES,
                "descriptors": list(kept.descriptors),
            }
            for kept, end in zip(self._kept, until, strict=False)  # none is kept: one end all the same
        ]

    def newest(self) -> Snapshot | None:
        """The one that a crash would go back to, `None` where there is none."""
        return next((kept for kept in self._kept if kept.seq == self._head), None)

    def get(self, seq: int) -> Snapshot:
        """The snapshot of the state after an execution; raises `SnapshotGone`, naming the nearest kept."""
        for snapshot in self._kept:
            if snapshot.seq == seq:
                return snapshot
        raise SnapshotGone(seq, min(self.seqs(), key=lambda kept: abs(kept - seq), default=None))

    def begin_life(self, head: int | None) -> None:
        """Another worker is live, in the state of snapshot `head`; `None`: with an empty namespace."""
        self._head = head if head in self.seqs() else None
        self._base = self._faults = max((kept.faults for kept in self._kept), default=0)
        self._measure_at = 0

    def take_announcements(
        self, channel: _socket.socket, line: Sequence[range] = (), *, ends_thinned: bool = True
    ) -> None:
        """Take in what a worker has announced of its copies; `line`: what was executed up to its state.

        Without `ends_thinned` those that are too many for it sleep on, out of the books, until `end_thinned`.
        """
        is_more, minor_faults = False, 0
        while (packet := _receive(channel)) is not None:
            message, fd = packet
            if not _is_announcement(message, fd):
                if fd >= 0:
                    os.close(fd)
                self.refused = "executed code wrote to the worker's connection"
                continue
            if "made" in message:
                self._add(message, fd, line)
                is_more = True
            elif fd >= 0:
                os.close(fd)
            if "refused" in message:
                self.refused = message["refused"]
            minor_faults = max(minor_faults, message["minflt"])
        if minor_faults:
            self.bound_memory(minor_faults)
        if is_more and self._kept:
            self._thin()
        if ends_thinned:
            self.end_thinned()

    def end_thinned(self) -> None:
        """Let those go that were taken out of the books: each ends, which takes a processor for a moment."""
        while self._thinned:
            self._thinned.pop().release()

    def _add(self, message: dict[str, Any], fd: int, line: Sequence[range]) -> None:
        seq: int = message["seq"]
        self.refused = None
        self.drop(seq)
        self._faults = self._base + message["minflt"]
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        until = tuple(range(part.start, min(part.stop, seq + 1)) for part in line if part.start <= seq)
        made = Snapshot(seq, until, socket, message["at"], self._faults, tuple(message["descriptors"]))
        self._kept.append(made)
        self._head = seq

    def drop(self, seq: int) -> None:
        """Let go of the snapshot of that state, if there is one."""
        for snapshot in [kept for kept in self._kept if kept.seq == seq]:
            self._take_out(snapshot)
            snapshot.release()

    def _take_out(self, snapshot: Snapshot) -> None:
        self._kept.remove(snapshot)
        if self._head == snapshot.seq:
            earlier = [seq for seq in self.seqs() if any(seq in part for part in snapshot.line)]
            self._head = max(earlier, default=None)

    def _thin(self) -> None:
        """Keep the newest, and of the older ones ever fewer the older they are."""
        newest = self._kept[-1].seq
        last_slot: tuple[int, int] | None = None
        for snapshot in self._kept[:-_NEWEST_KEPT]:
            age = newest - snapshot.seq
            stride = max(1, (1 << age.bit_length() - 1) // (_NEWEST_KEPT // 2))
            slot = (stride, snapshot.seq // stride)
            if snapshot.seq != self._head and (slot == last_slot or len(self._kept) > MAX_SNAPSHOTS):
                self._take_out(snapshot)
                self._thinned.append(snapshot)
            last_slot = slot

    def bound_memory(self, minor_faults: int) -> None:
        """Let the oldest go while the copies hold more than their share; `minor_faults`: the worker's count.

        The one that a crash would go back to goes last, and only for what it does hold.
        """
        self._faults = max(self._faults, self._base + minor_faults)
        while self._kept and (self._faults - self._kept[0].faults) * _PAGE_BYTES > self.max_bytes:
            oldest = next((kept.seq for kept in self._kept if kept.seq != self._head), None)
            if oldest is None:
                self._bound_last(self._kept[0])
                break
            self.drop(oldest)

    def _bound_last(self, last: Snapshot) -> None:
        limit_bytes = int(_LAST_SHARE * self.max_bytes)
        if (self._faults - last.faults) * _PAGE_BYTES <= limit_bytes or self._faults < self._measure_at:
            return
        held_bytes = last.measure()
        if held_bytes is not None and held_bytes > limit_bytes:
            self.drop(last.seq)
            self.refused = f"the last copy came to hold {held_bytes >> 20} MiB of its own, and was let go"
        else:
            rest_bytes = limit_bytes - (held_bytes or 0)
            self._measure_at = self._faults + max(rest_bytes, limit_bytes // 8) // _PAGE_BYTES

    def close(self) -> None:
        """Let all of them go."""
        self.end_thinned()
        while self._kept:
            self.drop(self._kept[-1].seq)


def _in_words(lost: list[str], shared: list[str]) -> list[str]:
    words = []
    if lost:
        words.append(f"pipes and sockets don't survive: {', '.join(lost)}")
    if shared:
        words.append(f"shared memory is not copied, it is as it is now: {', '.join(shared)}")
    return words


def _is_announcement(message: dict[str, Any], fd: int) -> bool:
    """Whether a worker of ours can have sent this; executed code holds the same descriptor."""
    if type(message.get("minflt")) is not int or not isinstance(message.get("refused", ""), str):
        return False
    if "made" not in message:
        return True
    descriptors = message.get("descriptors")
    return (
        fd >= 0
        and type(message.get("seq")) is int
        and type(message.get("at")) is float
        and isinstance(descriptors, list)
        and set(map(type, descriptors)) <= {str}
    )


def _receive(socket: _socket.socket) -> tuple[dict[str, Any], int] | None:
    """The next packet, and the descriptor it came with (or −1); `None` without one, or without a peer.

    It is empty where none of ours has written it.
    """
    try:
        data, rights, _, _ = socket.recvmsg(
            _PACKET_BYTES, _socket.CMSG_SPACE(4), _MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
        )
    except (BlockingIOError, ConnectionError):
        return None
    if not data:
        return None
    fds = [fd for _, _, payload in rights for fd in struct.unpack(f"{len(payload) // 4}i", payload)]
    for fd in fds[1:]:
        os.close(fd)
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError:
        message = {}
    return message if isinstance(message, dict) else {}, fds[0] if fds else -1
