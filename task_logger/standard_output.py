"""Standard output of our commands: all of what is printed arrives, or an error says so."""

from __future__ import annotations

import sys
from io import BufferedWriter, RawIOBase, TextIOWrapper


def buffer_output() -> None:
    """Give `sys.stdout` a buffer where `PYTHONUNBUFFERED` took it away; each line still goes out at once.

    Without one, `sys.stdout` calls write(2) once and takes all for written, also where the disk took only a
    part, or the process was stopped (Ctrl-Z) while a pipe was full. What somebody put in its place is theirs.
    """
    out = sys.stdout
    is_pythons_own = out is sys.__stdout__ and isinstance(out, TextIOWrapper)
    if is_pythons_own and isinstance(out.buffer, RawIOBase):
        encoding, errors = out.encoding, out.errors
        sys.stdout = TextIOWrapper(BufferedWriter(out.detach()), encoding, errors, line_buffering=True)
        sys.__stdout__ = sys.stdout  # type: ignore[misc]  # the old one has nothing to write to
