"""The attempts to get out of a sandbox, as a list; loaded only in the process that makes them.

Each must be harmless where it succeeds, for root without any sandbox too: it changes nothing, or only the
process that makes it. Calls that could do more get arguments that the kernel refuses once it looks at them.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

_CALLS = {
    "x86_64": {
        "clone": 56, "ptrace": 101, "personality": 135, "mount": 165, "init_module": 175, "kexec_load": 246,
        "add_key": 248, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304,
        "setns": 308, "process_vm_readv": 310, "bpf": 321, "userfaultfd": 323, "sethostname": 170,
    },
    "aarch64": {
        "clone": 220, "ptrace": 117, "personality": 92, "mount": 40, "init_module": 105, "kexec_load": 104,
        "add_key": 217, "keyctl": 219, "unshare": 97, "perf_event_open": 241, "open_by_handle_at": 265,
        "setns": 268, "process_vm_readv": 270, "bpf": 280, "userfaultfd": 282, "sethostname": 161,
    },
}  # fmt: skip
_YOUNG_CALLS = {"io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435, "pidfd_getfd": 438}
"""The same on every architecture."""

_CLONE_NEWUSER = 0x10000000
_PTRACE_SEIZE = 0x4206
_TIOCSTI = 0x5412
_AF_VSOCK = 40
_NOBODYS_ADDRESS = "192.0.2.1"
"""Kept for documentation: no machine has it, and a machine with a network would send packets its way."""

_TOO_MANY_SEGMENTS = 17
_CONNECT_LIMIT_S = 0.5

_FILE = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO})
_PEER = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.ENOENT, errno.EPERM, errno.EACCES})
_PROCESS = frozenset({errno.ESRCH, errno.EPERM})
_CALL = frozenset({errno.EPERM, errno.ENOSYS})
"""By the filter. Another error would come from the call itself: it was let through."""

Escape = tuple[str, Callable[[], object], frozenset[int]]
"""What is tried, how, and the errors that mean that it was denied."""


def escapes(target: Mapping[str, Any]) -> Iterator[Escape]:
    """All attempts; `target` says what there is outside."""
    yield from _files(target)
    yield from _processes(target)
    if not target["network"]:
        yield from _network(target)
    yield "raw socket", lambda: _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, 1), _CALL
    yield "packet socket", lambda: _socket.socket(_socket.AF_PACKET, _socket.SOCK_DGRAM), _CALL
    yield "socket to the machine's host", lambda: _socket.socket(_AF_VSOCK, _socket.SOCK_STREAM), _CALL
    yield from _system_calls()


def _files(target: Mapping[str, Any]) -> Iterator[Escape]:
    yield "write into /usr", lambda: _create("/usr/"), _FILE
    yield "write into /etc", lambda: _create("/etc/"), _FILE
    yield "write into /", lambda: _create("/"), _FILE
    yield "write into /dev", lambda: _create("/dev/"), _FILE
    yield "change a mode outside", lambda: _chmod("/usr"), _FILE
    yield "read a file outside", lambda: _open(target["secret"], os.O_RDONLY), _FILE
    yield "read /etc/shadow", lambda: _open("/etc/shadow", os.O_RDONLY), _FILE
    yield "set the kernel up", lambda: _open("/proc/sys/kernel/core_pattern", os.O_WRONLY), _FILE
    yield "the kernel's log", lambda: _open("/dev/kmsg", os.O_RDONLY), _FILE
    yield "a terminal", lambda: _open("/dev/tty", os.O_RDWR), _FILE


def _processes(target: Mapping[str, Any]) -> Iterator[Escape]:
    yield "signal a process outside", lambda: _find(target), _PROCESS
    yield (
        "read the session's memory",
        lambda: _open(f"/proc/{_find(target)}/mem", os.O_RDONLY),
        _PROCESS | _FILE,
    )
    yield "write to the keeper's memory", lambda: _open("/proc/1/mem", os.O_RDWR), _FILE
    for kind, name in target["namespaces"].items():
        yield f"the session's {kind} namespace", partial(_is_in, kind, name), _PROCESS
    yield "capabilities", _capabilities, _CALL


def _network(target: Mapping[str, Any]) -> Iterator[Escape]:
    yield "TCP to this machine", lambda: _connect(_socket.AF_INET, ("127.0.0.1", target["tcp"])), _PEER
    yield "TCP to others", lambda: _connect(_socket.AF_INET, (_NOBODYS_ADDRESS, 9)), _PEER
    yield "UDP to others (DNS)", _send_udp, _PEER
    yield "abstract socket", lambda: _connect(_socket.AF_UNIX, b"\0" + target["abstract"].encode()), _PEER
    yield "UNIX socket of the session", lambda: _connect(_socket.AF_UNIX, target["unix"]), _PEER


def _system_calls() -> Iterator[Escape]:
    parent = os.getppid()
    buffer = ctypes.create_string_buffer(256)
    calls: dict[str, tuple[Any, ...]] = {
        "ptrace": (_PTRACE_SEIZE, parent, 0, 0),
        "process_vm_readv": (parent, buffer, 0, buffer, 0, 0),
        "pidfd_getfd": (-1, 0, 0),
        "mount": (b"none", b"", b"tmpfs", 0, None),
        "fsopen": (b"tmpfs", 0),
        "open_tree": (-100, b"/", 0),
        "unshare": (0,),
        "setns": (-1, 0),
        "clone3": (buffer, 0),
        "keyctl": (0, -3, 0),
        "add_key": (b"user", b"probe", b"x", 1, -2),
        "bpf": (0, buffer, 0),
        "io_uring_setup": (1, buffer),
        "userfaultfd": (0,),
        "perf_event_open": (buffer, 0, -1, -1, 0),
        "open_by_handle_at": (-1, buffer, 0),
        "init_module": (buffer, 0, b""),
        "kexec_load": (0, _TOO_MANY_SEGMENTS, None, 0),
        "personality": (0x0040000,),
        "sethostname": (buffer, -1),
    }
    numbers = _CALLS.get(os.uname().machine)
    if numbers is None:
        raise NotImplementedError(f"the numbers of system calls of {os.uname().machine} are not known here")
    numbers = numbers | _YOUNG_CALLS
    for name, arguments in calls.items():
        yield name, partial(_call, numbers[name], *arguments), _CALL
    yield "clone of a user namespace", lambda: _clone(numbers["clone"]), _CALL
    yield "ioctl TIOCSTI", lambda: _ioctl(_TIOCSTI), _CALL


def _call(number: int, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    whole = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *whole)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _clone(number: int) -> int:
    pid = _call(number, _CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid


def _ioctl(request: int) -> object:
    import fcntl

    with open(os.devnull, "rb") as no_terminal:
        return fcntl.ioctl(no_terminal, request, b"x")


def _open(path: str, flags: int) -> str:
    os.close(os.open(path, flags | os.O_CLOEXEC, 0o600))
    return path


def _create(folder: str) -> str:
    path = os.path.join(folder, f".json-repl-probe-{os.getpid()}")
    _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.unlink(path)
    return path


def _chmod(path: str) -> str:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))  # to what it is
    return path


def _find(target: Mapping[str, Any]) -> int:
    """Find the session by its number; a process that has it here, and began at another time, is another."""
    from repl_kernel.process_tree import read_stat

    os.kill(target["pid"], 0)
    stat = read_stat(target["pid"])
    if stat is None or stat.start_ticks != target["start_ticks"]:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return stat.pid


def _is_in(kind: str, name: str) -> str:
    """This process's namespace of a kind, where it is the session's too."""
    own = os.readlink(f"/proc/self/ns/{kind}")
    if own != name:
        raise PermissionError(errno.EPERM, f"{own} is another")
    return own


def _capabilities() -> str:
    with open("/proc/self/status", encoding="ascii") as file:
        lines = [line for line in file if line.startswith("Cap")]
    if all(int(line.split()[1], 16) == 0 for line in lines):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return "".join(lines)


def _connect(family: int, address: Any) -> object:
    peer = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        peer.settimeout(_CONNECT_LIMIT_S)  # who has no network is told so at once
        peer.connect(address)
    finally:
        peer.close()
    return address


def _send_udp() -> object:
    peer = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        return peer.sendto(b"", (_NOBODYS_ADDRESS, 53))
    finally:
        peer.close()
