"""The line magics that the isolated kernel takes care of itself: they are about the session, not in it.

cell --parse_command--> Command, or `None`: then it is code for the worker
"""

from __future__ import annotations

import re
from typing import NamedTuple

COMMANDS = {
    "rewind": """Go back: make the state after a cell the live one.

%rewind N    N is the number of a cell, as in In[N]; 0 is the empty namespace, after %branch the state
             that the branch began with

Variables, imports and functions are then as they were right after that cell. Numbers go on. Files,
databases and programs outside don't go back. %snapshots lists the states that are kept.
""",
    "snapshots": """List the states that are kept, and that %rewind and %branch can go to.

%snapshots
""",
    "branch": """Begin another session with the state after a cell, and go on in it; or in an earlier one.

%branch N     a new session, from the state after cell N; its cells are numbered from 1
%branch ID    go on in the session with this id
%branch       list the sessions of this kernel

All of them stay, each with its variables, until the kernel ends.
""",
    "tasklog": """Tell where the log of this task is, and its last line.

%tasklog
""",
}
"""Each with its help."""

_LINE = re.compile(rf"%(?P<name>{'|'.join(COMMANDS)})(?:[ \t]+(?P<argument>.*))?")


class Command(NamedTuple):
    """A line magic of the kernel's: its name, and what stands behind it."""

    name: str
    argument: str


def parse_command(code: str) -> Command | None:
    """The command that a cell is; comments and empty lines may stand around it."""
    lines = [line.strip() for line in code.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    match = _LINE.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        return None
    return Command(match["name"], (match["argument"] or "").partition("#")[0].strip())
