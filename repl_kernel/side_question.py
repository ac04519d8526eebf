"""A question about the worker's state, answered by a copy of the worker that ends with its answer.

worker --fork--> copy: what the question does to variables, modules and descriptors stays in there
   |               |
   | <--answer-----+
   |               +-- too late: the kernel ends it, whatever it hangs in

So code of the user's that the question runs (`__dir__`, `__repr__`) can neither change the worker nor hold
it up. The copy has no pipes and sockets: it can't talk to the user's peers in the worker's name.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from repl_kernel.descriptor_list import cut_off_peers
from repl_kernel.errors import ProtocolViolation
from repl_kernel.framing import RECEIVE_BYTES, FrameReader, pack

BOUND_S = 0.8
"""How long a copy may take: the caller is promised an answer within a second."""

_GRACE_S = 0.1
"""From the end of the copy by its own alarm to giving up on it."""

Answer = Mapping[str, object]


def ask_copy(fork: Callable[[], bool], question: Callable[[], Answer]) -> Answer | None:
    """What the question says in a copy that `fork` makes (it returns true there); `None` where it fails.

    It fails where it raises, crashes, or takes longer than `BOUND_S`. Raises OSError where the system
    refuses the fork.
    """
    ours, theirs = os.pipe()
    try:
        try:
            if fork():
                _answer(theirs, question)
        finally:
            os.close(theirs)
        return _await(ours)
    finally:
        os.close(ours)


def _answer(fd: int, question: Callable[[], Answer]) -> NoReturn:
    """Be the copy: send the answer, and end."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, BOUND_S)
        gc.disable()  # a collection would write to every object, and unshare every page
        _send(fd, {"pid": os.getpid()})
        _silence(fd)
        _send(fd, dict(question()))
    except BaseException:  # noqa: BLE001 - all of it is the user's
        os._exit(1)
    os._exit(0)


def _send(fd: int, message: dict[str, Any]) -> None:
    frame = pack(message)
    while frame:
        frame = frame[os.write(fd, frame) :]


def _silence(kept_fd: int) -> None:
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null_fd, number)
    os.close(null_fd)
    cut_off_peers(kept_fd, set())


def _await(fd: int) -> dict[str, Any] | None:
    """The copy's answer; a copy that goes on without one is killed."""
    deadline = time.monotonic() + BOUND_S + _GRACE_S
    reader = FrameReader()
    pidfd: int | None = None
    try:
        first = _receive(fd, reader, deadline)
        if first is None:
            return None
        try:
            pidfd = os.pidfd_open(first["pid"])
        except ProcessLookupError:
            pass  # it has ended already; what it said is in the pipe
        return _receive(fd, reader, deadline)
    except (ProtocolViolation, KeyError, TypeError):
        return None  # code of the user's wrote into the pipe
    finally:
        if pidfd is not None:
            _kill(pidfd)


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended, as it should
    os.close(pidfd)


def _receive(fd: int, reader: FrameReader, deadline: float) -> dict[str, Any] | None:
    """The next message; `None` where none comes in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    message = reader.take()
    while message is None:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            return None
        data = os.read(fd, RECEIVE_BYTES)
        if not data:
            return None
        message = reader.feed(data)
    return message
