"""Starts a keeper, and with it the first worker: the lean path that runs before anything heavy is imported.

session --posix_spawn--> keeper --fork--> worker
   |  control socket (packets)  |            |
   |  data socket (frames) ------------------+
   |  two pipes: what the worker writes to descriptors 1 and 2
"""

from __future__ import annotations

import _socket
import os
import sys

from repl_kernel.errors import WorkerStartFailed

TYPE_CHECKING = (
    False  # nothing is imported here that the start doesn't need: dataclasses alone would take 8 ms
)
if TYPE_CHECKING:
    from collections.abc import Mapping

_BOOT = (
    "import sys;sys.path.append(sys.argv.pop(1));"
    "from repl_kernel.worker import main;sys.exit(main(sys.argv[1:]))"
)
"""As `-m repl_kernel.worker`, without the 4 ms of `runpy`, and wherever this package was imported from."""

_PIPE_BYTES = 1 << 20
"""What the system allows an ordinary user: a worker that prints rarely has to wait for its reader."""

_F_SETPIPE_SZ = 1031


class Ends:
    """Our ends of a worker's descriptors; whoever holds this closes them."""

    __slots__ = ("data", "stderr_fd", "stdout_fd")

    def __init__(self, data: _socket.socket, stdout_fd: int, stderr_fd: int) -> None:
        self.data = data
        self.stdout_fd = stdout_fd
        self.stderr_fd = stderr_fd

    def close(self) -> None:
        """Close them."""
        self.data.close()
        os.close(self.stdout_fd)
        os.close(self.stderr_fd)


class WorkerEnds:
    """The worker's ends: data socket, descriptor 1, descriptor 2; closed here once they are handed over."""

    __slots__ = ("data_fd", "stderr_fd", "stdout_fd")

    def __init__(self, data_fd: int, stdout_fd: int, stderr_fd: int) -> None:
        self.data_fd = data_fd
        self.stdout_fd = stdout_fd
        self.stderr_fd = stderr_fd

    def close(self) -> None:
        """Close our copies."""
        for fd in (self.data_fd, self.stdout_fd, self.stderr_fd):
            os.close(fd)


class SpawnedKeeper:
    """A keeper that was started: its process, our control socket, our ends of its first worker."""

    __slots__ = ("control", "ends", "pid")

    def __init__(self, pid: int, control: _socket.socket, ends: Ends) -> None:
        self.pid = pid
        self.control = control
        self.ends = ends


def make_ends() -> tuple[Ends, WorkerEnds]:
    """Make the socket and the pipes of one worker; raises OSError where the system has no descriptors
    left."""
    made: list[int] = []
    try:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        made += [_high(ours.detach()), _high(theirs.detach())]
        for _ in range(2):
            read_fd, write_fd = os.pipe()
            made += [_high(read_fd), _high(write_fd)]
            os.set_blocking(made[-2], False)
            _enlarge(made[-1])
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    data = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, made[0])
    return Ends(data, made[2], made[4]), WorkerEnds(made[1], made[3], made[5])


def spawn_keeper(environment: Mapping[str, str]) -> SpawnedKeeper:
    """Start a keeper with that environment; raises `WorkerStartFailed`, and nothing is left then."""
    if sys.platform != "linux":
        raise WorkerStartFailed(f"the worker route needs Linux, this is {sys.platform}; use route='local'")
    if not sys.executable:
        raise WorkerStartFailed("there is no interpreter to start a worker with: sys.executable is empty")
    ours, control_fd = (
        _high(end.detach()) for end in _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    )
    control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, ours)
    ends, worker_ends = make_ends()
    package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    arguments = [package_root, str(control_fd), str(worker_ends.data_fd), str(os.getpid())]
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-c", _BOOT, *arguments],
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, worker_ends.stdout_fd, 1),
                (os.POSIX_SPAWN_DUP2, worker_ends.stderr_fd, 2),
                # Onto itself: that alone makes the child's copy survive the exec.
                (os.POSIX_SPAWN_DUP2, control_fd, control_fd),
                (os.POSIX_SPAWN_DUP2, worker_ends.data_fd, worker_ends.data_fd),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=range(1, 32),
        )
    except OSError as exc:
        control.close()
        ends.close()
        raise WorkerStartFailed(f"cannot start {sys.executable} for a worker: {exc.strerror}") from exc
    finally:
        os.close(control_fd)
        worker_ends.close()
    return SpawnedKeeper(pid, control, ends)


def _high(fd: int) -> int:
    """The same file at a number of 3 or above: a host may have closed its standard descriptors."""
    if fd > 2:
        return fd
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _enlarge(pipe_fd: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(pipe_fd, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # the user's quota of pipe memory is used up: the small pipe works as well
