"""The system calls that a sandboxed worker may not make, as a program for the kernel.

names below --> libseccomp --> BPF in a memory file --> bwrap --seccomp FD --> keeper, and all below it

A call that is named here fails with EPERM; calls of another architecture (32 bit, x32) kill their process.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from repl_kernel.errors import SandboxUnavailable

_DENIED_CALLS = (
    # what is mounted where
    "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount",
    "open_tree", "mount_setattr", "open_by_handle_at", "swapon", "swapoff", "quotactl",
    # other namespaces (`clone` is below)
    "unshare", "setns",
    # other processes' memory and descriptors
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
    # large and young parts of the kernel, in which its holes are found
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "fanotify_init", "lookup_dcookie", "nfsservctl", "modify_ldt", "uselib", "vmsplice", "personality",
    # keys, which no namespace holds
    "add_key", "request_key", "keyctl",
    # the machine
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog",
    "acct", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
    "iopl", "ioperm", "vhangup",
)  # fmt: skip

_YOUNG_CALLS = {"quotactl_fd": 443, "open_tree_attr": 467}
"""By number, the same on every architecture: the libseccomp of a stable system may not know their names."""

_CLONE_FLAGS = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}

_TERMINAL_REQUESTS = (0x5412, 0x541C)
"""TIOCSTI types into a terminal, TIOCLINUX pastes into a console."""

_LOW_32_BITS = 0xFFFFFFFF
"""The kernel looks at no more of a request or an address family: neither may the filter."""

_SOCKET_FAMILIES = frozenset({1, 2, 10, 16})
"""UNIX, INET, INET6, NETLINK. VSOCK, for one, reaches the host of a virtual machine from any namespace."""

_EPERM, _ENOSYS = 1, 38

# From seccomp.h of libseccomp:
_ACT_ALLOW = 0x7FFF0000
_ACT_ERRNO = 0x00050000
_CTL_OPTIMIZE = 8
_EQ, _GT, _MASKED_EQ = 4, 6, 7
_COMPARISON = struct.Struct("IiQQ")
"""`struct scmp_arg_cmp`: number of the argument, operator, value (or mask), value behind the mask."""

_UNKNOWN_CALL = -1
_FIX = "install libseccomp 2.5 or newer (apt install libseccomp2)"

Rule = tuple[int, str | int, bytes]
"""The error of a call (by name or number), where the comparison with an argument holds, if there is one."""


def filter_file() -> int:
    """A descriptor of a memory file that holds the program; the caller closes it.

    Raises `SandboxUnavailable` where libseccomp is missing, or doesn't know what must be denied.
    """
    # By its name: to search for it, as `ctypes.util` and the bindings do, would take 60 ms and a C compiler.
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as exc:
        raise SandboxUnavailable("seccomp", "the library libseccomp is missing", _FIX) from exc
    library.seccomp_init.restype = ctypes.c_void_p
    program = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ACT_ALLOW)))
    try:
        # A tree: as a list it would cost some calls a hundred steps.
        _check(library.seccomp_attr_set(program, _CTL_OPTIMIZE, 2), "a tree of rules")
        for rule in _rules():
            _add(library, program, rule)
        file = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check(library.seccomp_export_bpf(program, file), "to export them")
            os.lseek(file, 0, os.SEEK_SET)
        except BaseException:
            os.close(file)
            raise
    finally:
        library.seccomp_release(program)
    return file


def _rules() -> Iterator[Rule]:
    for name in _DENIED_CALLS:
        yield _EPERM, name, b""
    for number in _YOUNG_CALLS.values():
        yield _EPERM, number, b""
    for flag in _CLONE_FLAGS.values():
        yield _EPERM, "clone", _COMPARISON.pack(0, _MASKED_EQ, flag, flag)
    # Its flags are in memory, where no filter sees them. Callers fall back to `clone`.
    yield _ENOSYS, "clone3", b""
    for request in _TERMINAL_REQUESTS:
        yield _EPERM, "ioctl", _COMPARISON.pack(1, _MASKED_EQ, _LOW_32_BITS, request)
    highest = max(_SOCKET_FAMILIES)
    for family in sorted(set(range(highest)) - _SOCKET_FAMILIES):
        yield _EPERM, "socket", _COMPARISON.pack(0, _EQ, family, 0)
    yield _EPERM, "socket", _COMPARISON.pack(0, _GT, highest, 0)


def _add(library: ctypes.CDLL, program: ctypes.c_void_p, rule: Rule) -> None:
    error, call, comparison = rule
    number = call if isinstance(call, int) else library.seccomp_syscall_resolve_name(call.encode())
    if number == _UNKNOWN_CALL:
        raise SandboxUnavailable("seccomp", f"this libseccomp knows no call {call}", _FIX)
    if number < 0:
        return  # a call of other architectures only
    action = ctypes.c_uint32(_ACT_ERRNO | error)
    compared = ctypes.c_char_p(comparison or None)
    code = library.seccomp_rule_add_array(program, action, number, int(bool(comparison)), compared)
    _check(code, f"a rule about {call}")


def _check(code: int, what: str) -> None:
    if code < 0:
        raise SandboxUnavailable("seccomp", f"libseccomp refuses {what}: {os.strerror(-code)}", _FIX)
