"""The worker's side of snapshots: frozen copies of itself, each asleep until it is needed.

    worker --fork, by way of an intermediate--> copy     see `orphan`: the copy is the keeper's child
      |                                           |
      v                                           v
    goes on, undisturbed                        sleeps on a socket of its own to the session
                                                  | {"op": "wake"} + descriptors
                                                  +--fork, likewise--> live worker, in that state
                                                  v
                                                sleeps on: the same crash again must not lose everything

Copies end only by `os._exit`: nothing of the user's is flushed or finalised twice.
"""

from __future__ import annotations

import _socket
import gc
import os
import resource
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import orjson

from repl_kernel.descriptor_list import cut_off_peers, open_descriptors, shared_memory
from repl_kernel.linux import above_standard, volunteer_for_oom_killer
from repl_kernel.orphan import fork_orphan
from repl_kernel.orphaned_programs import SNAPSHOT_NAME, WORKER_NAME
from repl_kernel.random_state import reseed
from repl_kernel.refusal import calm_native_threads, why_no_copy, why_not_trusted

if TYPE_CHECKING:
    from repl_kernel.worker_limits import WorkerLimits

_MSG_CMSG_CLOEXEC = 0x40000000
_PACKET_BYTES = 4096
_MAX_FDS = 4

_OUT_OF_THE_WAY_S = 0.005
"""So much later than it is let go a copy ends: most executions are over then."""

_clock = time.perf_counter
"""Executed code that replaces it means its own clock."""

_COPY_OOM_SCORE = 900
"""Where memory runs out, a worker goes before the copy that brings its state back; other programs don't."""


@dataclass(frozen=True, slots=True)
class Awakened:
    """This process has become a live worker.

    It has a data socket and the state after an execution, lacks what it lost, and has `shared` memory that is
    as it is now; where `is_due` it shall make a copy of its own when it idles.
    """

    data_fd: int
    seq: int
    lost: tuple[str, ...]
    shared: tuple[str, ...]
    is_due: bool


class Copier:
    """Makes copies of this process, and tells the session of each over the announcement channel."""

    def __init__(self, channel_fd: int, keeper_pid: int) -> None:
        self._channel = _channel(channel_fd)
        self._keeper_pid = keeper_pid
        self.is_forking = False
        """Whether the fork that happens now is ours: hooks for the user's forks leave it alone."""
        self.limits: WorkerLimits | None = None
        """What holds this process's limits, `None` where it has none."""
        self.last_cost_s = 0.0
        """How long this process was busy with its last copy."""

    def make(self, seq: int, own_fds: set[int]) -> Awakened | None:
        """Make a copy that holds the state after execution `seq`.

        Returns `None` in the worker itself, where the copy may have been refused (the session is told why),
        and in the copy, one day, how it was awakened. `own_fds` are those that are not the user's.
        """
        began = _clock()
        not_users = own_fds | {self._channel.fileno()}
        ends: list[_socket.socket] = []
        self.spare_files(True)
        try:
            reason = why_no_copy()
            if reason is None:
                calm_native_threads()
                pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
                theirs, ours = ends = [_channel(above_standard(end.detach())) for end in pair]
                # Now: it takes one more, as the copy will.
                descriptors = open_descriptors(not_users | {theirs.fileno(), ours.fileno()})
                if self._fork(SNAPSHOT_NAME):
                    return self._be_copy(ours, theirs, not_users)
                ours.close()
                reason = why_not_trusted() or _why_not_there(theirs)
                if reason is None:
                    made = {"seq": seq, "made": True, "at": float(time.time()), "descriptors": descriptors}
                    self._announce(made, theirs.fileno())
        except OSError as exc:
            reason = f"the system refused a fork: {exc.strerror}"
        except Exception as exc:  # noqa: BLE001 - executed code can have replaced all that is called here
            reason = f"executed code has replaced what it takes: {type(exc).__name__}: {exc}"
        finally:
            self.spare_files(False)
        for end in ends:
            end.close()
        if reason is not None:
            self._announce({"seq": seq, "refused": reason})
        self.last_cost_s = _clock() - began
        return None

    def fork_answering(self) -> bool:
        """Fork a copy that only answers a question; returns whether this is it. Raises OSError."""
        return self._fork(SNAPSHOT_NAME)

    def announce_live(self, awakened: Awakened) -> None:
        """Tell the session that this process is the live worker now, and what of it isn't as it was."""
        pidfd = os.pidfd_open(os.getpid())
        self._announce({"live": os.getpid(), "lost": awakened.lost, "shared": awakened.shared}, pidfd)
        os.close(pidfd)

    @property
    def channel_fd(self) -> int:
        """The descriptor of the announcement channel."""
        return self._channel.fileno()

    def close(self) -> None:
        """Let go of the channel: in a fork of the user's."""
        self._channel.close()

    def spare_files(self, is_needed: bool) -> None:
        """Whatever limits the user's open files, a copy needs some of its own."""
        if self.limits is not None:
            self.limits.spare_files(is_needed)

    def _announce(self, message: dict[str, Any], fd: int | None = None) -> None:
        message["minflt"] = _minor_faults()
        rights = [] if fd is None else [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))]
        try:
            self._channel.sendmsg([orjson.dumps(message)], rights, _socket.MSG_DONTWAIT)
        except OSError:
            pass  # the session is gone, or so far behind that it could use no further copy

    def _fork(self, name: str) -> bool:
        """Fork; returns whether this is the new process. Raises OSError."""
        self.is_forking = True
        try:
            return fork_orphan(self._keeper_pid, name)
        finally:
            self.is_forking = False

    def _be_copy(self, ours: _socket.socket, theirs: _socket.socket, not_users: set[int]) -> Awakened:
        """Be the copy; returns in the live worker made of it.

        One that fails ends, whatever it was: going on, it would take the worker's requests from it.
        """
        try:
            theirs.close()
            return self._sleep(ours, not_users)
        except BaseException:  # noqa: BLE001 - as in `make`
            os._exit(1)

    def _sleep(self, ours: _socket.socket, not_users: set[int]) -> Awakened:
        """Sleep until the session wakes this copy or lets it go; returns in the live worker made of it."""
        gc.freeze()  # a collection would write to every object, and unshare every page
        os.setsid()
        volunteer_for_oom_killer(_COPY_OOM_SCORE)
        self.spare_files(True)
        lost = cut_off_peers(ours.fileno(), not_users)
        self._channel.close()
        while True:
            message, fds = _next_packet(ours)
            if message["op"] == "measure":
                _send(ours, {"private_bytes": _private_bytes()})
                continue
            try:
                is_live = self._fork(WORKER_NAME)
            except OSError as exc:
                _send(ours, {"failed": exc.errno})
                is_live = False
            if is_live:
                ours.close()
                return self._become_live(message, fds, lost)
            for fd in fds:
                os.close(fd)

    def _become_live(self, message: dict[str, Any], fds: list[int], lost: tuple[str, ...]) -> Awakened:
        os.setsid()
        data_fd, channel_fd, *outputs = fds
        for number, fd in enumerate(outputs, start=1):
            os.dup2(fd, number)
            os.close(fd)
        shared = shared_memory()
        self.spare_files(False)
        volunteer_for_oom_killer()
        self._channel = _channel(channel_fd)
        if message["reseed"]:
            reseed()
        return Awakened(data_fd, message["seq"], lost, shared, message["due"])


def _next_packet(ours: _socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The session's next packet to this copy, with its descriptors; ends the copy where it was let go."""
    try:
        data, ancillary, _, _ = ours.recvmsg(
            _PACKET_BYTES, _socket.CMSG_SPACE(4 * _MAX_FDS), _MSG_CMSG_CLOEXEC
        )
    except OSError:
        data = b""
    if not data:
        _end_unnoticed()
    fds = [fd for _, _, payload in ancillary for fd in struct.unpack(f"{len(payload) // 4}i", payload)]
    return orjson.loads(data), [above_standard(fd) for fd in fds]


def _end_unnoticed() -> NoReturn:
    """End this copy: tearing its memory down takes long enough to be felt by an execution.

    One runs right now: that is when the session lets copies go.
    """
    time.sleep(_OUT_OF_THE_WAY_S)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        pass  # forbidden here
    os._exit(0)


def _send(ours: _socket.socket, message: dict[str, Any]) -> None:
    try:
        ours.send(orjson.dumps(message), _socket.MSG_DONTWAIT)
    except OSError:
        pass  # the session is gone: the next packet says so


def _why_not_there(theirs: _socket.socket) -> str | None:
    """The reason why there is no copy at the other end, `None` where there is one."""
    try:
        theirs.recv(1, _socket.MSG_DONTWAIT | _socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:
        pass
    return "the system refused a fork"


def _channel(fd: int) -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _private_bytes() -> int:
    """What this process holds that no other one shares; 15 ms for each GB."""
    with open("/proc/self/smaps_rollup", "rb") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(b"Private_"))
