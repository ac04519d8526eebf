"""`json-repl replay --shell`: a prompt in the two states around a difference.

standard input, line by line -> %before, %after, %quit | code, once it is complete -> a session -> output
"""

from __future__ import annotations

import sys
from codeop import compile_command
from collections.abc import Iterator
from typing import Any

from json_repl.replay.landing import Landing
from task_logger.display import printable

_HELP = "%before and %after choose the state, %quit ends; all else is code"


def run_shell(landing: Landing, where: str) -> None:
    """Read code and run it in the chosen session, until input ends."""
    print(f"The states around {printable(where)}: {_HELP}.")
    if landing.after is None:
        print("The execution leaves no state: there is only the one before it.")
    _Shell(landing).run()


class _Shell:
    def __init__(self, landing: Landing) -> None:
        self._sessions = {"before": landing.before, "after": landing.after}
        self._chosen = "before" if landing.after is None else "after"
        self._has_magics = landing.shell == "ipython"

    def run(self) -> None:
        for text in self._pieces():
            command = text.strip()
            if command == "%quit":
                return
            if self._is_choice(command):
                self._choose(command)
                continue
            session = self._sessions[self._chosen]
            if command and session is not None:
                try:
                    _show(session.execute_code(text))
                except KeyboardInterrupt:
                    print("interrupted")  # that, not the looking around

    def _is_choice(self, line: str) -> bool:
        """Whether a line is for this prompt; IPython has commands of its own."""
        names = (*self._sessions, "quit")
        return line.startswith("%") and (not self._has_magics or line[1:] in names)

    def _choose(self, command: str) -> None:
        name = command.removeprefix("%")
        if self._sessions.get(name) is None:
            print(f"There is no {printable(command)} here: {_HELP}.")
        else:
            self._chosen = name

    def _pieces(self) -> Iterator[str]:
        """Commands and complete pieces of code; what is incomplete at the end of input is a piece as well."""
        lines: list[str] = []
        while True:
            try:
                line = _read_line(f"{'.' * len(self._chosen)}. " if lines else f"{self._chosen}> ")
            except KeyboardInterrupt:
                lines = []
                print()
                continue
            if line is None:
                break
            lines.append(line)
            is_command = len(lines) == 1 and self._is_choice(line.strip())
            if is_command or _is_complete("\n".join(lines)):
                yield "\n".join(lines)
                lines = []
        if lines:
            yield "\n".join(lines)


def _read_line(prompt: str) -> str | None:
    """The next line, without its end; `None` at the end of input. Asks on a terminal only."""
    if sys.stdin is None:
        return None
    if sys.stdin.isatty():
        try:
            return input(prompt)
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _is_complete(text: str) -> bool:
    try:
        return compile_command(text, symbol="single") is not None
    except (SyntaxError, ValueError, OverflowError):
        return True  # the session says what is wrong


def _show(outcome: dict[str, Any]) -> None:
    text = outcome["stdout"]
    if outcome["result"] is not None:
        text += outcome["result"].get("text/plain", "(no text)") + "\n"
    text += outcome["stderr"] + "".join(f"note: {notice}\n" for notice in outcome["notices"])
    print(printable(text), end="", flush=True)
