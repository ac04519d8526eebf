"""What is set for a whole process, in processes of ours: never in a host program.

serve, run, demo, tap, and the isolated kernel --> shield_process, before any code runs --> Session
"""

from __future__ import annotations

import sys


def shield_process() -> None:
    """Keep processes of the same user, executed code among them, from looking into this one, for good.

    Its memory, its environment and its descriptors can then be read by root alone, it can't be traced, and
    it leaves no core file. Programs that it starts, its workers too, are not affected. Raises
    `IsolationUnavailable` where the system refuses; does nothing but on Linux.
    """
    if sys.platform != "linux":
        return
    from repl_kernel.linux import set_dumpable

    try:
        set_dumpable(False)
    except OSError as exc:
        from repl_kernel.errors import IsolationUnavailable

        raise IsolationUnavailable(
            "session", f"its memory can't be shielded: {exc.strerror}", "allow prctl(PR_SET_DUMPABLE)"
        ) from exc
