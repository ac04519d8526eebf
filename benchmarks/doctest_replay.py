"""The examples of a docstring through a session, compared as doctest compares.

Docstring --fill the namespace--> session --one execution an example--> output, error
                                                 +-- check_output --> Mismatch, or none
"""

from __future__ import annotations

import doctest
from dataclasses import dataclass
from typing import Any

from benchmarks.doctest_corpus import DOCSTRING_LIMIT_S, Docstring, Example
from json_repl.session import Session

_FILL = (
    "{features}"
    "(lambda names, module: (names.clear(), names.update(module), None)[-1])"
    "(globals(), dict(vars(__import__('importlib').import_module({module!r}))))"
)
"""As doctest does: the names of the module, and no others."""

_KNOWN_DIFFERENCES = {
    ("worker", "test.test_pdb.test_pdb_run_with_code_object"): (
        "pdb runs code in `__main__`, which on the worker is the session's namespace, and under doctest isn't"
    ),
    (
        "worker",
        "test.test_pdb.test_pdb_issue_20766",
    ): "shows the handler of SIGINT, which on the worker is the session's",
}
"""Where a session rightly gives something else than doctest, by route and docstring, and why."""

_HEADER = "Traceback (most recent call last):\n"
_GROUP_HEADER = "  + Exception Group Traceback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """An example that gave something else than under doctest; `got` is what the session gave."""

    docstring: str
    number: int
    source: str
    want: str
    got: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a docstring: how many examples ran and were compared, how many were alike to the letter.

    `known` says why examples that differ are no mismatches; they don't count as compared.
    """

    run: int
    compared: int
    identical: int
    mismatches: list[Mismatch]
    known: list[str]


def replay(session: Session, docstring: Docstring) -> Replayed:
    """Run a docstring's examples in an empty session, one by one, and compare."""
    features = "".join(f"from __future__ import {name}\n" for name in docstring.features)
    filled = session.execute_code(_FILL.format(features=features, module=docstring.module))
    if not filled["success"]:
        wrong = Mismatch(
            docstring=docstring.name, number=0, source="", want="the module's names", got=filled["stderr"]
        )
        return Replayed(run=0, compared=0, identical=0, mismatches=[wrong], known=[])
    names = _FileNames(docstring.name)
    run = identical = 0
    compared, mismatches = [], []
    for number, example in enumerate(docstring.examples):
        if example.is_skipped:
            continue
        outcome = session.execute_code(names.ours(example.source), time_limit_s=DOCSTRING_LIMIT_S)
        names.add(number, outcome["debug_info"]["seq"])
        run += 1
        if example.is_interactive_only:
            continue
        compared.append(number)
        got, error = names.doctests(output_of(outcome)), outcome["error"]
        text = got if error is None else exception_text(error)
        identical += text == (example.got if example.error is None else example.error)
        if not is_equal(example, got, error):
            text = got if error is None else got + outcome["stderr"]
            mismatches.append(
                Mismatch(
                    docstring=docstring.name,
                    number=number + 1,
                    source=example.source,
                    want=example.want,
                    got=text,
                )
            )
    known = _KNOWN_DIFFERENCES.get((session.route, docstring.name))
    if known is not None and mismatches:
        return Replayed(
            run=run,
            compared=len(compared) - len(mismatches),
            identical=identical,
            mismatches=[],
            known=[known],
        )
    return Replayed(run=run, compared=len(compared), identical=identical, mismatches=mismatches, known=[])


class _FileNames:
    """The names under which code was compiled, which debuggers show: a session's and doctest's own."""

    def __init__(self, docstring: str) -> None:
        self._docstring = docstring
        self._by_ours: dict[str, str] = {}

    def add(self, number: int, seq: int) -> None:
        """The example with that number, from 0, runs as execution `seq`."""
        self._by_ours[f"<execution {seq}>"] = f"<doctest {self._docstring}[{number}]>"

    def doctests(self, text: str) -> str:
        """Put doctest's names for ours."""
        for ours, doctests in self._by_ours.items():
            text = text.replace(ours, doctests)
        return text

    def ours(self, text: str) -> str:
        """Put our names for doctest's."""
        for ours, doctests in self._by_ours.items():
            text = text.replace(doctests, ours)
        return text


def is_equal(example: Example, got: str, error: dict[str, Any] | None) -> bool:
    """Whether output and error are what the example shows, by doctest's own rules."""
    check = doctest.OutputChecker().check_output
    if example.error is None:
        return error is None and check(example.want, got, example.flags)
    if error is None:
        return False
    message = exception_text(error)
    if not message.partition("\n")[0].partition(":")[0].endswith(error["type"]):
        return False
    if check(example.error, message, example.flags):
        return True
    if not example.flags & doctest.IGNORE_EXCEPTION_DETAIL:
        return False
    without_details = getattr(doctest, "_strip_exception_details")  # noqa: B009  # private: the rule itself
    return check(without_details(example.error), without_details(message), example.flags)


def output_of(outcome: dict[str, Any]) -> str:
    """What an interactive session would have shown: standard output, then the value."""
    text: str = outcome["stdout"]
    if outcome["result"] is not None:
        text += outcome["result"]["text/plain"] + "\n"
    if text and not text.endswith("\n"):
        text += "\n"
    return text


def exception_text(error: dict[str, Any]) -> str:
    """The end of a traceback that names the exception, without frames, or a syntax error's place."""
    traceback: str = error["traceback"]
    if traceback.startswith(_GROUP_HEADER):  # everything of it is drawn as a tree
        return f"{error['type']}: {error['message']}\n"
    _, _, last = ("\n" + traceback).rpartition("\n" + _HEADER)
    lines = last.lstrip("\n").splitlines(keepends=True)
    for index, line in enumerate(lines):
        if not line.startswith(" "):
            return "".join(lines[index:])
    return last
