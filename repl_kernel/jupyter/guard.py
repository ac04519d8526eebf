"""The guard of a kernel that a session starts: it ends the kernel, and all below it, with the session.

session --spawn--> guard --fork, exec--> kernel --> programs that its code starts
   SIGUSR1: interrupt the kernel       SIGUSR2: forget what it wrote so far
        SIGTERM, or the session's death: kill every descendant
   <-- the last 4 kB that the kernel itself wrote to descriptors 1 and 2, once it has ended
   <-- the guard ends as the kernel did: by the same signal, or with the same exit code

It has one thread, and as subreaper it becomes the parent of whatever the kernel leaves behind.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal

from repl_kernel.linux import become_subreaper, set_parent_death_signal
from repl_kernel.process_tree import kill_descendants

INTERRUPT_SIGNAL = signal.SIGUSR1
FORGET_SIGNAL = signal.SIGUSR2
END_SIGNAL = signal.SIGTERM

_OUR_SIGNALS = (signal.SIGCHLD, INTERRUPT_SIGNAL, FORGET_SIGNAL, END_SIGNAL)

TAIL_BYTES = 4096
"""What is kept of the kernel's own words; as much as a pipe takes at once."""

_KILL_ROUND_S = 0.005
_EXEC_FAILED = 127


def main(arguments: list[str]) -> None:
    """Guard a kernel until it has ended: `arguments` are a pidfd of the session, the folder that goes with
    the kernel, and the kernel's command."""
    session_fd, folder, command = int(arguments[0]), arguments[1], arguments[2:]
    status = _Guard(session_fd).run(command)
    shutil.rmtree(folder, ignore_errors=True)
    _end_as(status)


class _Guard:
    def __init__(self, session_fd: int) -> None:
        self._session_fd = session_fd
        os.set_inheritable(session_fd, False)
        become_subreaper()
        self._signal_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _OUR_SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        self._kernel_pid = 0
        self._status: int | None = None
        self._tail = b""

    def run(self, command: list[str]) -> int:
        """Start the kernel; returns its wait status once nothing of it is left."""
        output_fd, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(output_fd, False)
        self._kernel_pid = os.fork()
        if not self._kernel_pid:
            _become_kernel(command, theirs)
        os.close(theirs)
        self._watch(output_fd)
        self._end_descendants()
        self._read(output_fd)
        try:
            os.write(1, self._tail)
        except OSError:
            pass  # the session is gone
        return self._status if self._status is not None else 0

    def _watch(self, output_fd: int) -> None:
        """Wait for the end: the kernel's, the session's, or that we are told to."""
        poll = select.poll()
        for fd in (self._signal_fd, self._session_fd, output_fd):
            poll.register(fd, select.POLLIN)
        while self._status is None:
            ready = {fd for fd, _ in poll.poll()}
            if self._session_fd in ready:
                return
            if output_fd in ready and not self._read(output_fd):
                poll.unregister(output_fd)
            if self._signal_fd not in ready:
                continue
            numbers = os.read(self._signal_fd, TAIL_BYTES)
            if END_SIGNAL in numbers:
                return
            if INTERRUPT_SIGNAL in numbers:
                self._interrupt()
            if FORGET_SIGNAL in numbers:
                self._read(output_fd)
                self._tail = b""
            self._reap()

    def _interrupt(self) -> None:
        try:
            os.killpg(self._kernel_pid, signal.SIGINT)
        except ProcessLookupError:
            pass  # it has just started, or ended

    def _read(self, output_fd: int) -> bool:
        """Take in what the kernel wrote; returns whether more may come."""
        try:
            while piece := os.read(output_fd, 1 << 16):
                self._tail = (self._tail + piece)[-TAIL_BYTES:]
        except BlockingIOError:
            return True
        return False

    def _reap(self) -> bool:
        """Reap whoever has ended; returns whether children are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._kernel_pid:
                self._status = status

    def _end_descendants(self) -> None:
        while self._reap():
            kill_descendants(os.getpid())
            select.select([self._signal_fd], [], [], _KILL_ROUND_S)
            try:
                os.read(self._signal_fd, TAIL_BYTES)
            except BlockingIOError:
                pass


def _become_kernel(command: list[str], output_fd: int) -> None:
    """In the child: become the kernel, in a process group of its own."""
    guard_pid = os.getppid()
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_OUR_SIGNALS, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(_EXEC_FAILED)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        os.environ["JPY_PARENT_PID"] = str(guard_pid)
        os.execvp(command[0], command)
    except OSError as exc:
        os.write(2, f"cannot start {command[0]}: {exc.strerror}".encode())
    finally:
        os._exit(_EXEC_FAILED)


def _end_as(status: int) -> None:
    """End as the kernel did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))
