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

from repl_kernel.errors import CannotFork, WorkerStartFailed
from repl_kernel.linux import above_standard

TYPE_CHECKING = (
    False  # nothing is imported here that the start doesn't need: dataclasses alone would take 8 ms
)
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from repl_kernel.executor import ShellName
    from task_logger.record import Isolation

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

    __slots__ = ("channel", "data", "stderr_fd", "stdout_fd")

    def __init__(self, data: _socket.socket, channel: _socket.socket, stdout_fd: int, stderr_fd: int) -> None:
        self.data = data
        self.channel = channel
        self.stdout_fd = stdout_fd
        self.stderr_fd = stderr_fd

    def close(self) -> None:
        """Close them."""
        self.data.close()
        self.channel.close()
        os.close(self.stdout_fd)
        os.close(self.stderr_fd)


class WorkerEnds:
    """The worker's ends: data socket, announcement channel, descriptors 1 and 2; closed once handed over."""

    __slots__ = ("channel_fd", "data_fd", "stderr_fd", "stdout_fd")

    def __init__(self, data_fd: int, channel_fd: int, stdout_fd: int, stderr_fd: int) -> None:
        self.data_fd = data_fd
        self.channel_fd = channel_fd
        self.stdout_fd = stdout_fd
        self.stderr_fd = stderr_fd

    def close(self) -> None:
        """Close our copies."""
        for fd in self.fds:
            os.close(fd)

    @property
    def fds(self) -> tuple[int, int, int, int]:
        """In the order in which they are handed over."""
        return self.data_fd, self.channel_fd, self.stdout_fd, self.stderr_fd


class SpawnedKeeper:
    """A keeper that was started: its process, our control socket, our ends of its first worker."""

    __slots__ = ("control", "ends", "move", "pid")

    def __init__(self, pid: int, control: _socket.socket, ends: Ends) -> None:
        self.pid = pid
        self.control = control
        self.ends = ends
        self.move: dict[str, Any] | None = None
        """What tells each of its workers folder and environment; `None` where they have the keeper's."""


def make_ends() -> tuple[Ends, WorkerEnds]:
    """Make the socket and the pipes of one worker; raises OSError where the system has no descriptors
    left."""
    made: list[int] = []
    try:
        for kind in (_socket.SOCK_STREAM, _socket.SOCK_SEQPACKET):
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
            made += [above_standard(ours.detach()), above_standard(theirs.detach())]
        for _ in range(2):
            read_fd, write_fd = os.pipe()
            made += [above_standard(read_fd), above_standard(write_fd)]
            os.set_blocking(made[-2], False)
            _enlarge(made[-1])
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    data = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, made[0])
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, made[2])
    channel.setblocking(False)
    return Ends(data, channel, made[4], made[6]), WorkerEnds(made[1], made[3], made[5], made[7])


def make_control() -> tuple[_socket.socket, int]:
    """Make a control socket: our end, and the descriptor of the other; raises OSError as `make_ends`."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    our_fd, their_fd = above_standard(ours.detach()), above_standard(theirs.detach())
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, our_fd), their_fd


class Launcher:
    """A program that starts another one confined: its command line, and the descriptors that it reads."""

    __slots__ = ("command", "fds")

    def __init__(self, command: list[str], fds: tuple[int, ...]) -> None:
        self.command = command
        self.fds = fds


def spawn_keeper(
    environment: Mapping[str, str],
    isolation: Isolation = "process",
    launcher: Launcher | None = None,
    shell: ShellName = "plain",
) -> SpawnedKeeper:
    """Start a keeper with that environment; raises `WorkerStartFailed`, and nothing is left then.

    `launcher` confines it, `None` where nothing does; `shell` is what runs code in its workers.
    """
    if sys.platform != "linux":
        raise WorkerStartFailed(f"the worker route needs Linux, this is {sys.platform}; use route='local'")
    if not sys.executable:
        raise WorkerStartFailed("there is no interpreter to start a worker with: sys.executable is empty")
    try:
        session_fd = open_own_pidfd()
    except OSError as exc:
        raise no_descriptors(exc) from exc
    try:
        control, control_fd, ends, worker_ends = open_keeper_ends()
    except CannotFork:
        os.close(session_fd)
        raise
    package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inherited: tuple[int, ...] = (control_fd, worker_ends.data_fd, worker_ends.channel_fd, session_fd)
    command = [sys.executable, "-P", "-c", _BOOT, package_root, *map(str, inherited), isolation, shell]
    if launcher is not None:
        command = [*launcher.command, *command]
        inherited += launcher.fds
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, worker_ends.stdout_fd, 1),
                (os.POSIX_SPAWN_DUP2, worker_ends.stderr_fd, 2),
                # Onto itself: that alone makes the child's copy survive the exec.
                *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=range(1, 32),
        )
    except OSError as exc:
        control.close()
        ends.close()
        raise WorkerStartFailed(f"cannot start {command[0]} for a worker: {exc.strerror}") from exc
    finally:
        os.close(control_fd)
        os.close(session_fd)
        worker_ends.close()
    return SpawnedKeeper(pid, control, ends)


def open_keeper_ends() -> tuple[_socket.socket, int, Ends, WorkerEnds]:
    """Open what a keeper is started with: a control socket and its other end, both ends of its first worker.

    Raises `CannotFork` where the system has no descriptors left; none of these is open then.
    """
    try:
        control, control_fd = make_control()
        try:
            ends, worker_ends = make_ends()
        except OSError:
            control.close()
            os.close(control_fd)
            raise
    except OSError as exc:
        raise no_descriptors(exc) from exc
    return control, control_fd, ends, worker_ends


def no_descriptors(exc: OSError) -> CannotFork:
    """What to raise where a worker's descriptors can't be opened."""
    return CannotFork(f"no descriptors are left for a new worker: {exc.strerror}")


def open_own_pidfd() -> int:
    """A pidfd of this process, for a keeper.

    Opened here: by number this process couldn't be found from another pid namespace, nor once the number is
    reused. Raises OSError.
    """
    return above_standard(os.pidfd_open(os.getpid()))


def _enlarge(pipe_fd: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(pipe_fd, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # the user's quota of pipe memory is used up: the small pipe works as well
