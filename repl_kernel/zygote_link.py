"""The session's side of a zygote: start it, have keepers forked, end it.

ZygoteLink.start() --posix_spawn--> zygote --> libraries loaded
  request_keeper() ----5 descriptors--> zygote --fork--> keeper --fork--> worker
  take_keeper()    <---its pid---------+        SpawnedKeeper, as if it had been spawned
"""

from __future__ import annotations

import _socket
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from repl_kernel.errors import CannotFork, PreloadFailed, WorkerStartFailed
from repl_kernel.executor import ShellName
from repl_kernel.spawn import Ends, Launcher, SpawnedKeeper, make_control, open_keeper_ends, open_own_pidfd
from task_logger.record import Isolation

_BOOT = (
    "import sys;sys.path.append(sys.argv.pop(1));"
    "from repl_kernel.zygote import main;sys.exit(main(sys.argv[1:]))"
)

_LOAD_LIMIT_S = 300.0
"""How long imports may take: the largest libraries need tens of seconds from a cold disk."""

_ANSWER_LIMIT_S = 20.0
_END_LIMIT_S = 5.0
_PACKET_BYTES = 4096


class ZygoteLink:
    """One zygote process and the control socket to it; not thread-safe."""

    def __init__(self, pid: int, control: _socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._requested: deque[tuple[_socket.socket, Ends]] = deque()
        self._is_ours = True

    @classmethod
    def start(
        cls,
        environment: Mapping[str, str],
        preload: Sequence[str],
        isolation: Isolation = "process",
        launcher: Launcher | None = None,
        shell: ShellName = "plain",
    ) -> ZygoteLink:
        """Start a zygote and have it load these modules; raises `PreloadFailed` or `WorkerStartFailed`.

        `launcher` confines it, `None` where nothing does: the sandbox is then that of one keeper alone.
        """
        link = cls(*_spawn(environment, preload, isolation, launcher, shell))
        try:
            link._wait_until_loaded()
        except BaseException:
            link.end()
            raise
        return link

    @property
    def requested(self) -> int:
        """How many keepers were requested and not taken yet."""
        return len(self._requested)

    def request_keeper(self, operation: str = "fork") -> None:
        """Have a keeper and its worker forked, not waited for; raises `CannotFork` or `WorkerStartFailed`."""
        ours, theirs_fd, ends, theirs = open_keeper_ends()
        fds = struct.pack("5i", theirs_fd, *theirs.fds)
        try:
            message = orjson.dumps({"op": operation})
            self._control.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        except OSError as exc:
            ours.close()
            ends.close()
            raise WorkerStartFailed(f"the zygote process {self.pid} is gone") from exc
        finally:
            os.close(theirs_fd)
            theirs.close()
        self._requested.append((ours, ends))

    def take_keeper(self) -> SpawnedKeeper:
        """The keeper that was requested first; raises `CannotFork` (others may come), `WorkerStartFailed`."""
        self._let_go_on()
        message = self._receive(time.monotonic() + _ANSWER_LIMIT_S)
        control, ends = self._requested.popleft()
        if "failed" in message:
            control.close()
            ends.close()
            raise CannotFork(f"the system refuses a new process: {os.strerror(message['failed'])}")
        return SpawnedKeeper(message["forked"], control, ends)

    def become_keeper(self) -> SpawnedKeeper:
        """Have the zygote itself turn into a keeper; this link is done then. Raises as `request_keeper`."""
        self.request_keeper("become")
        control, ends = self._requested.popleft()
        self._control.close()
        self._is_ours = False
        return SpawnedKeeper(self.pid, control, ends)

    def end(self) -> None:
        """End the zygote, and the keepers and workers that it forked; returns once they have. Idempotent."""
        self.abandon()
        if not self._is_ours:
            return
        self._is_ours = False
        self._let_go_on()
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return  # a host that reaps every child has done so
        try:
            if not select.select([pidfd], [], [], _END_LIMIT_S)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # as above
        finally:
            os.close(pidfd)

    def abandon(self) -> None:
        """Close our descriptors only: in a forked child, whose parent the session is."""
        self._control.close()
        while self._requested:
            control, ends = self._requested.popleft()
            control.close()
            ends.close()

    def _let_go_on(self) -> None:
        """Have the zygote go on where executed code, of the same user, has stopped it."""
        try:
            os.kill(self.pid, signal.SIGCONT)
        except OSError:
            pass  # it is gone, which whoever asks it is told

    def _wait_until_loaded(self) -> None:
        loading, deadline = "", time.monotonic() + _LOAD_LIMIT_S
        while True:
            try:
                message = self._receive(deadline)
            except WorkerStartFailed as exc:
                raise PreloadFailed(f"{loading!r} can't be preloaded: {exc}") from exc
            if "refused" in message:
                raise PreloadFailed(message["refused"])
            if "loaded" in message:
                return
            loading = message["loading"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        remaining_s = max(0.0, deadline - time.monotonic())
        if not select.select([self._control.fileno()], [], [], remaining_s)[0]:
            raise WorkerStartFailed(f"the zygote process {self.pid} did not answer in time")
        try:
            data = self._control.recv(_PACKET_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            raise WorkerStartFailed(f"the zygote process {self.pid} ended without a word")
        message: dict[str, Any] = orjson.loads(data)
        return message


def _spawn(
    environment: Mapping[str, str],
    names: Sequence[str],
    isolation: Isolation,
    launcher: Launcher | None,
    shell: ShellName,
) -> tuple[int, _socket.socket]:
    if sys.platform != "linux":
        raise WorkerStartFailed(f"preloading needs Linux, this is {sys.platform}")
    if not sys.executable:
        raise WorkerStartFailed("there is no interpreter to start a worker with: sys.executable is empty")
    try:
        session_fd = open_own_pidfd()
        try:
            control, control_fd = make_control()
        except OSError:
            os.close(session_fd)
            raise
    except OSError as exc:
        raise WorkerStartFailed(f"no descriptors are left for a zygote: {exc.strerror}") from exc
    package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inherited: tuple[int, ...] = (control_fd, session_fd)
    arguments = (*map(str, inherited), isolation, shell, *names)
    command = [sys.executable, "-P", "-c", _BOOT, package_root, *arguments]
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
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                # Onto itself: that alone makes the child's copy survive the exec.
                *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=range(1, 32),
        )
    except OSError as exc:
        control.close()
        raise WorkerStartFailed(f"cannot start {command[0]} for a worker: {exc.strerror}") from exc
    finally:
        os.close(control_fd)
        os.close(session_fd)
    return pid, control
