"""The zygote: a process with libraries loaded, which forks keepers, each with its worker, in milliseconds.

    session's packets --> {"op": "fork"} + 5 descriptors   --> a keeper with those, in a child of this process
                          {"op": "become"} + 5 descriptors --> this process is that keeper from now on
                          {"op": "end"}, or the session's death --> every descendant killed, then exit
    to the session    <-- {"loading": name}, then {"loaded": true} | {"refused": why}
                      <-- {"forked": pid} | {"failed": errno}

It never runs the user's code. Each session has a keeper of its own, so that none shares the fate of another;
what a keeper that was killed leaves behind comes here, and is killed.
"""

from __future__ import annotations

import _socket
import os
import select
import signal
import struct
from typing import TYPE_CHECKING, cast

import orjson

from repl_kernel.keeper import Keeper, close_inherited
from repl_kernel.linux import become_subreaper
from repl_kernel.preload import ending_with, preload
from repl_kernel.process_tree import descendants, kill_descendants, send_signal
from repl_kernel.random_state import reseed
from repl_kernel.worker import Worker
from task_logger.record import Isolation

if TYPE_CHECKING:
    from repl_kernel.executor import ShellName

_MSG_CMSG_CLOEXEC = 0x40000000
_PACKET_BYTES = 4096
_FIVE_FDS = struct.Struct("5i")
_KILL_ROUND_MS = 5
"""How long to wait for killed processes to end before looking for new ones."""


class Zygote:
    """One zygote; `run` returns the exit code of this process, in a fork that of a keeper or a worker."""

    def __init__(self, control_fd: int, session_fd: int, isolation: Isolation, shell: ShellName) -> None:
        """`session_fd` is a pidfd of the session."""
        self._control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control_fd)
        self._session_fd = session_fd
        self._isolation: Isolation = isolation
        self._shell: ShellName = shell
        self._keepers: set[int] = set()
        os.set_inheritable(control_fd, False)
        os.set_inheritable(session_fd, False)

    def run(self, names: list[str]) -> int:
        """Load libraries, then fork keepers until the session ends."""
        become_subreaper()
        close_inherited({self._control.fileno(), self._session_fd})
        with ending_with(self._session_fd, self._control.fileno()):
            reason = preload(names, lambda name: self._tell({"loading": name}))
        if reason is not None:
            self._tell({"refused": reason})
            kill_descendants(os.getpid())
            os._exit(1)  # not as Python ends: a thread that was left behind would be waited for
        self._wakeup_fds = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_fds[1], warn_on_full_buffer=False)
        self._tell({"loaded": True})
        return self._serve()

    def _serve(self) -> int:
        poll = select.poll()
        for fd in (self._control.fileno(), self._session_fd, self._wakeup_fds[0]):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wakeup_fds[0] in ready:
                os.read(self._wakeup_fds[0], _PACKET_BYTES)
                self._reap()
                self._kill_orphans()
            if self._session_fd in ready:
                break
            if self._control.fileno() in ready:
                operation, fds = self._receive()
                if operation not in ("fork", "become"):
                    break
                if operation == "become" or self._fork() == 0:
                    return self._be_keeper(fds)
                for fd in fds:
                    os.close(fd)
        while self._reap():
            kill_descendants(os.getpid())
            select.select([self._wakeup_fds[0]], [], [], _KILL_ROUND_MS / 1000)
        return 0

    def _receive(self) -> tuple[str, tuple[int, ...]]:
        """The next operation, `end` once the session has closed its end, and the descriptors it came with."""
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _PACKET_BYTES, _socket.CMSG_SPACE(_FIVE_FDS.size), _MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return "end", ()
        if not data:
            return "end", ()
        fds = next((_FIVE_FDS.unpack(payload) for _, _, payload in ancillary), ())
        return orjson.loads(data)["op"], fds

    def _fork(self) -> int:
        """Fork; returns the child's pid, 0 in the child, −1 where the system refuses. The session is told."""
        try:
            pid = os.fork()
        except OSError as exc:
            self._tell({"failed": exc.errno})
            return -1
        if pid:
            self._keepers.add(pid)
            self._tell({"forked": pid})
        return pid

    def _be_keeper(self, fds: tuple[int, ...]) -> int:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for fd in self._wakeup_fds:
            os.close(fd)
        if os.getsid(0) != os.getpid():
            os.setsid()
        control_fd, data_fd, channel_fd, *outputs = fds
        for number, fd in enumerate(outputs, start=1):
            os.dup2(fd, number)
            os.close(fd)
        keeper = Keeper(control_fd, self._session_fd, self._isolation, self._run_worker)
        return keeper.run(data_fd, channel_fd)

    def _run_worker(self, data_fd: int, channel_fd: int) -> int:
        reseed()  # else all workers of this zygote would draw the same numbers
        return Worker(data_fd, channel_fd, self._isolation, self._shell).run()

    def _tell(self, message: dict[str, object]) -> None:
        try:
            self._control.send(orjson.dumps(message))
        except OSError:
            pass  # the session is gone: the next poll says so

    def _reap(self) -> bool:
        """Reap whoever has ended; returns whether children are left."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            self._keepers.discard(pid)

    def _kill_orphans(self) -> None:
        """Kill what keepers left behind; what those leave behind comes here in turn."""
        for stat in descendants(os.getpid()):
            if stat.parent_pid == os.getpid() and stat.pid not in self._keepers:
                send_signal(stat.pid, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run a zygote; `arguments`: control socket, pidfd of the session, isolation, shell, names of modules."""
    control_fd, session_fd, isolation, shell, *names = arguments
    zygote = Zygote(int(control_fd), int(session_fd), cast(Isolation, isolation), cast("ShellName", shell))
    return zygote.run(names)
