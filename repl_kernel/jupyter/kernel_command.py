"""The command in a kernel specification: whether it starts one of our kernels, and with what."""

from __future__ import annotations

import os
from collections.abc import Sequence

KERNEL_MODULE = "json_repl.jupyter"


def split_command(command: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """The interpreter with its options, and our kernel's arguments; `None` where it isn't one of ours."""
    try:
        at = command.index("-m")
    except ValueError:
        return None
    if at == 0 or command[at + 1 : at + 2] != [KERNEL_MODULE]:
        return None
    return [os.path.expanduser(part) for part in command[:at]], list(command[at + 2 :])
