"""The doctests of a module, and what `doctest` itself says of each.

module --DocTestFinder--> docstrings --DocTestRunner, a forked process each--> passed: Docstring
                                                                   +--> left out: the reason
"""

from __future__ import annotations
import __future__

import ast
import doctest
import importlib
import os
import pkgutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.forking import ForkFailed, call_in_fork

DOCSTRING_LIMIT_S = 30.0

_PACKAGES = ("more_itertools",)

_NOT_IMPORTED = frozenset({"antigravity", "this", "idlelib.idle"})
"""Opens a browser, prints a poem, opens a window."""

_ABOUT_DOCTEST = "doctest"
"""Tests of doctest itself are texts of examples that are to be run by doctest, not sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example: `error` is the exception's text that is expected, `None` where none is.

    `got` is the output under doctest. `is_interactive_only` says that interactive mode printed a value that
    isn't the one of a last expression, so that the output can't be compared.
    """

    source: str
    want: str
    error: str | None
    flags: int
    got: str
    is_interactive_only: bool
    is_skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Docstring:
    """One session: the examples of one docstring, every one of which passes under doctest."""

    name: str
    module: str
    features: list[str]
    examples: list[Example]


def module_names() -> list[str]:
    """Name every module of the standard library and of more-itertools that may hold examples."""
    library = Path(sysconfig.get_path("stdlib"))
    names = set(_python_modules(library)) | set(sys.builtin_module_names)
    dynamic = library / "lib-dynload"
    names |= {
        path.name.partition(".")[0] for path in dynamic.glob("*.so") if not path.name.startswith("_test")
    }
    for package in _PACKAGES:
        found = importlib.import_module(package)
        names |= {f"{package}.{part.name}" for part in pkgutil.iter_modules(found.__path__)}
    return sorted(name for name in names - _NOT_IMPORTED if _ABOUT_DOCTEST not in name)


def _python_modules(library: Path) -> list[str]:
    names = []
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[0] in ("site-packages", "lib-dynload", "turtledemo") or parts[-1] == "__main__":
            continue
        if not all(part.isidentifier() for part in parts) or b">>>" not in path.read_bytes():
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def passing_docstrings(module_name: str) -> tuple[list[Docstring], list[tuple[str, str]]]:
    """Run a module's doctests under doctest itself.

    Returns the docstrings whose every example passes, and the name and the reason of each that is left out.
    """
    try:
        module = importlib.import_module(module_name)
        found = [test for test in doctest.DocTestFinder().find(module, module_name) if test.examples]
    except BaseException as exc:  # noqa: BLE001  # a module may raise anything, SkipTest and SystemExit included
        return [], [(module_name, f"can't be imported here: {type(exc).__name__}")]
    passing, left_out = [], []
    for test in found:
        try:
            told = call_in_fork(lambda test=test: _run(test), DOCSTRING_LIMIT_S)  # type: ignore[misc]  # bound at once
        except ForkFailed as exc:
            left_out.append((test.name, f"under doctest it {exc}"))
            continue
        if told["failure"] is not None:
            left_out.append((test.name, told["failure"]))
            continue
        examples = [Example(**one) for one in told["examples"]]
        features = [
            name for name in __future__.all_feature_names if test.globs.get(name) is getattr(__future__, name)
        ]
        passing.append(Docstring(name=test.name, module=module_name, features=features, examples=examples))
    return passing, left_out


class NetworkNeeded(Exception):
    """The examples reach out; what they print depends on others."""


class _Recorder(doctest.DocTestRunner):
    """Notes what each example printed, and which values interactive mode showed."""

    def __init__(self) -> None:
        super().__init__(verbose=False)
        self.examples: list[dict[str, Any]] = []
        self.failure: str | None = None
        self.shown: list[bool] = []
        self._display = sys.__displayhook__
        sys.__displayhook__ = self._note  # the one that DocTestRunner.run installs

    def _note(self, value: object) -> None:
        self.shown.append(value is not None)
        self._display(value)

    def report_start(self, out: Any, test: doctest.DocTest, example: doctest.Example) -> None:
        self.shown.clear()

    def report_success(self, out: Any, test: doctest.DocTest, example: doctest.Example, got: str) -> None:
        has_tail = ends_in_expression(example.source) and example.exc_msg is None
        others = self.shown[:-1] if has_tail else self.shown
        self.examples.append(_as_json(example, self.optionflags, got, is_interactive_only=any(others)))

    def report_failure(self, out: Any, test: doctest.DocTest, example: doctest.Example, got: str) -> None:
        self.failure = self.failure or "fails under doctest: other output"

    def report_unexpected_exception(
        self, out: Any, test: doctest.DocTest, example: doctest.Example, exc_info: Any
    ) -> None:
        self.failure = self.failure or f"fails under doctest: {exc_info[0].__name__}"


def ends_in_expression(source: str) -> bool:
    """Whether the last statement of a source is an expression; false where it isn't Python."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and isinstance(body[-1], ast.Expr)


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise NetworkNeeded(event)


def _run(test: doctest.DocTest) -> dict[str, Any]:
    sys.addaudithook(_refuse_network)  # for the rest of this forked process, too
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for the rest of this forked process
    runner = _Recorder()
    runner.run(test, out=lambda text: None, clear_globs=False)
    examples = iter(runner.examples)
    told = [
        _as_json(example, 0, "", is_skipped=True)
        if example.options.get(doctest.SKIP)
        else next(examples, None)
        for example in test.examples
    ]
    return {"failure": runner.failure or (None if None not in told else "skips an example"), "examples": told}


def _as_json(
    example: doctest.Example,
    flags: int,
    got: str,
    *,
    is_interactive_only: bool = False,
    is_skipped: bool = False,
) -> dict[str, Any]:
    return {
        "source": example.source,
        "want": example.want,
        "error": example.exc_msg,
        "flags": flags,
        "got": got,
        "is_interactive_only": is_interactive_only,
        "is_skipped": is_skipped,
    }
