"""What a worker tries before any code runs in it, to show that its isolation holds.

    probe_process()   reads what the kernel says of this very process
    probe_sandbox()   in a fork that ends with it: some thirty attempts to get out, each of which must fail

An attempt that fails for another reason than it should proves nothing, and counts as not denied.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypedDict

import orjson

from repl_kernel.isolation import looks_secret

Target = Mapping[str, Any]
"""What there is outside, to be reached for: see `outside.Outside.targets`."""


class Attempt(TypedDict):
    """One attempt: whether it was denied, and how, or what came of it."""

    name: str
    denied: bool
    detail: str


def probe_process(own_fds: Collection[int], pass_env: Collection[str]) -> list[Attempt]:
    """Look at this process: its session, limits, privileges, descriptors and environment."""
    with open("/proc/self/status", "rb") as file:
        status = file.read()
    foreign = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_foreign(fd, own_fds)]
    secrets = [name for name in os.environ if looks_secret(name) and name not in pass_env]
    secrets += [
        name for name in ("TASK_LOG_KEY", "TASK_LOG_NEW_KEY", "TASK_LOG_SEAL_KEY") if name in os.environ
    ]
    core = resource.getrlimit(resource.RLIMIT_CORE)
    return [
        _found("signals of the session's terminal", os.getsid(0) == os.getpid(), f"sid {os.getsid(0)}"),
        _found("core files", core == (0, 0), f"RLIMIT_CORE {core[0]}"),
        _found("new privileges", b"\nNoNewPrivs:\t1\n" in status, "no_new_privs"),
        _found("the session's descriptors", not foreign, f"open: {foreign}" if foreign else "none is open"),
        _found("secrets in the environment", not secrets, ", ".join(secrets) or "none is there"),
    ]


def probe_sandbox(target: Target) -> list[Attempt]:
    """Try to reach what is outside, in a fork of this process."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            _write(write_fd, orjson.dumps(_attempts(target)))
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    if not answer:
        return [_found("the probe itself", False, "it ended without a word")]
    attempts: list[Attempt] = orjson.loads(answer)
    return attempts


def _found(name: str, denied: bool, detail: str) -> Attempt:
    return {"name": name, "denied": denied, "detail": detail}


def _is_foreign(fd: int, own_fds: Collection[int]) -> bool:
    """Whether it may be the session's, or reaches programs; what libraries read may be open."""
    try:
        if os.get_inheritable(fd):
            return True
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
            return fd not in own_fds
        return stat.S_ISREG(mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False  # the descriptor of the listing itself


def _attempts(target: Target) -> list[Attempt]:
    from repl_kernel.escapes import escapes

    try:
        return [_try(*escape) for escape in escapes(target)]
    except NotImplementedError as exc:
        return [_found("system calls", False, str(exc))]


def _try(name: str, attempt: Callable[[], object], denials: Collection[int]) -> Attempt:
    try:
        result = attempt()
    except OSError as exc:
        number = exc.errno or 0
        return _found(name, number in denials, errno.errorcode.get(number, str(exc)))
    except Exception as exc:  # noqa: BLE001 -- an attempt that breaks has shown nothing
        return _found(name, False, f"{type(exc).__name__}: {exc}")
    return _found(name, False, f"it succeeded: {result!r}"[:200])


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
