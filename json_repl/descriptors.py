"""The standard descriptors of a process of ours, kept from executed code and from the programs it starts.

0 -> a copy that we read; 0 itself becomes empty        1, 2 -> copies that we write
"""

from __future__ import annotations

import os
from typing import NamedTuple


class StandardDescriptors(NamedTuple):
    """What descriptors 0, 1 and 2 were at the start of the process; close-on-exec, open for its life."""

    input_fd: int
    output_fd: int
    error_fd: int


def take_standard_descriptors(*, own_output: bool) -> StandardDescriptors:
    """Copy the three, and make 0 empty; `own_output` also points 1 to where 2 goes.

    Raises `OSError` where 0 or 1 is not open; what would be written to a closed 2 is lost.
    """
    os.fstat(0)
    os.fstat(1)  # before any copy is made, which would take a closed one's number
    try:
        os.fstat(2)
    except OSError:
        os.open(os.devnull, os.O_WRONLY)  # takes the lowest free number, which is 2
        os.set_inheritable(2, True)
    taken = StandardDescriptors(input_fd=os.dup(0), output_fd=os.dup(1), error_fd=os.dup(2))
    empty_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty_fd, 0)
    os.close(empty_fd)
    if own_output:
        os.dup2(2, 1)
    return taken
