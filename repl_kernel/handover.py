"""A process hands its memory over to a new one, which goes on in its stead: only the number is another.

    this process --clone(CLONE_VM | CLONE_VFORK)--> the new one, in the same memory, on the same stack
          ^  asleep in the kernel                        |
          +----------------- SIGKILL --------------------+

A fork would do the same, but copies the page tables and has those of this process torn down: with gigabytes
that is two thirds of what a snapshot costs. What libraries are told of forks (`pthread_atfork`) they are told
of the fork before this, which made this process; Python's own hooks run again.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_MACHINE = "x86_64"
"""The numbers below are of this one; elsewhere there is no handing over."""

_SYS_GETPID = 39
_SYS_CLONE = 56
_SYS_KILL = 62
_SYS_SET_TID_ADDRESS = 218
_SYS_SET_ROBUST_LIST = 273
_SYS_GET_ROBUST_LIST = 274
_SYS_RSEQ = 334
_PR_GET_TID_ADDRESS = 40

_CLONE_VM = 0x00000100
_CLONE_VFORK = 0x00004000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000

_RSEQ_BYTES = 32
_RSEQ_SIGNATURE = 0x53053053


def hand_over_memory() -> bool:
    """Go on as a new process, this one's child at first, and kill this one, which must have one thread.

    Returns whether it is so; where it isn't, nothing has happened: another machine, C library or kernel.
    """
    if os.uname().machine != _MACHINE:
        return False
    import ctypes

    c = ctypes.PyDLL(None, use_errno=True)  # holds on to the GIL: nothing may run in between
    c.syscall.restype = ctypes.c_long
    tid_address = _tid_address(c)
    if tid_address is None:
        return False
    robust_list = ctypes.c_ulong(), ctypes.c_ulong()
    _call(c, _SYS_GET_ROBUST_LIST, 0, *map(ctypes.addressof, robust_list))
    flags = _CLONE_VM | _CLONE_VFORK | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | signal.SIGCHLD
    pid = _call(c, _SYS_GETPID)  # as all that follows not by a name that executed code may have replaced
    c.PyOS_BeforeFork()
    _call(c, _SYS_SET_TID_ADDRESS, 0)  # else the kernel would clear the new one's number as this one ends
    if _call(c, _SYS_CLONE, flags, 0, 0, tid_address, 0) != 0:
        _call(c, _SYS_SET_TID_ADDRESS, tid_address)
        c.PyOS_AfterFork_Parent()
        return False
    # It sleeps until we end, and must never wake: its stack is ours.
    _call(c, _SYS_KILL, pid, signal.SIGKILL)
    # What the kernel knows of a thread beside its memory, and a fork by the C library would renew:
    _call(c, _SYS_SET_ROBUST_LIST, *(one.value for one in robust_list))
    _register_restartable_sequences(c)
    c.PyOS_AfterFork_Child()
    return True


def _call(c: ctypes.PyDLL, number: int, *arguments: int) -> int:
    from ctypes import c_ulong

    result: int = c.syscall(c_ulong(number), *map(c_ulong, arguments))
    return result


def _tid_address(c: ctypes.PyDLL) -> int | None:
    """Where the C library keeps its thread's number, and the kernel clears it; `None` where they differ."""
    import ctypes

    address = ctypes.c_ulong()
    unused = (ctypes.c_ulong(0),) * 3
    if c.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), *unused) != 0 or not address.value:
        return None
    # musl has the kernel clear a lock there instead.
    return address.value if ctypes.c_int.from_address(address.value).value == os.getpid() else None


def _register_restartable_sequences(c: ctypes.PyDLL) -> None:
    """Have the kernel tell glibc again on which processor it runs; see "Restartable Sequences" in its
    manual."""
    import ctypes

    try:
        size = ctypes.c_uint.in_dll(c, "__rseq_size").value
        offset = ctypes.c_ssize_t.in_dll(c, "__rseq_offset").value
    except ValueError:
        return  # older than 2.35
    if size:
        c.pthread_self.restype = ctypes.c_ulong
        _call(c, _SYS_RSEQ, c.pthread_self() + offset, _RSEQ_BYTES, 0, _RSEQ_SIGNATURE)
