"""The source of executions: compiled to run, and kept so that tracebacks and `inspect` can show it."""

from __future__ import annotations

import __future__

import ast
import linecache
import re
from collections import deque
from dataclasses import dataclass
from opcode import opmap
from types import CodeType

_FUTURE_FLAGS = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})

_ONE_EXPRESSION = re.compile(r"[A-Za-z_][\w.]*(?:\(.*\))?\Z")
_ASSIGNMENT_AT_END = re.compile(r"(?:^|\n)([A-Za-z_]\w*) *=[^=\n][^\n]*\n?\Z")

_ENDS_IN_STORE = compile("x = None", "", "exec").co_code
_STORE_AND_RETURN = _ENDS_IN_STORE[2 * _ENDS_IN_STORE[::2].rindex(opmap["STORE_NAME"]) :]
"""How code ends that ends in a store, whichever Python this is: operations at even places, the name's index second."""

_KEPT_PLAIN_SOURCES = 500
"""How many sources without functions or classes are kept for tracebacks; those that define some stay."""


@dataclass(frozen=True, slots=True)
class Program:
    """Code ready to run: `body`, then `tail`, whose value is the result (`None` where there is no such expression).

    Either is a coroutine's code where it awaits at its top level.
    """

    body: CodeType | None
    tail: CodeType | None


class Compiler:
    """Compiles the executions of one namespace; a `from __future__ import` holds for those that follow."""

    def __init__(self) -> None:
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    def compile(self, text: str, filename: str) -> Program:
        """Compile one execution; raises what the built-in `compile` raises for text that isn't Python.

        Most code is one expression, or ends in an assignment; that is compiled in one go, without the tree.
        """
        program = None
        if _ONE_EXPRESSION.match(text):
            program = self._as_expression(text, filename)
        elif ends := _ASSIGNMENT_AT_END.search(text):
            program = self._as_statements(text, filename, ends[1])
        return program or self._by_tree(text, filename)

    def _as_expression(self, text: str, filename: str) -> Program | None:
        """Compile text that looks like one expression; `None` where it isn't one."""
        try:
            return Program(None, compile(text, filename, "eval", self._flags, dont_inherit=True))
        except SyntaxError:
            return None

    def _as_statements(self, text: str, filename: str, name: str) -> Program | None:
        """Compile text whose last line looks like an assignment to `name`; `None` where it may be none.

        The code must end in that store. The look could deceive all the same, but only inside a string of several
        lines.
        """
        if '"""' in text or "'''" in text or "\\\n" in text:
            return None
        code: CodeType = compile(text, filename, "exec", self._flags, dont_inherit=True)
        end = code.co_code[-len(_STORE_AND_RETURN) :]
        if end[::2] != _STORE_AND_RETURN[::2] or code.co_names[end[1]] != name:
            return None
        self._flags |= code.co_flags & _FUTURE_FLAGS
        return Program(code, None)

    def _by_tree(self, text: str, filename: str) -> Program:
        tree = compile(text, filename, "exec", self._flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        statements: list[ast.stmt] = tree.body
        if not statements:
            return Program(None, None)
        last = statements[-1]
        if type(last) is not ast.Expr:
            return Program(self._compile(tree, filename, "exec"), None)
        body = None
        if len(statements) > 1:
            del statements[-1]
            body = self._compile(tree, filename, "exec")
        return Program(body, self._compile(ast.Expression(last.value), filename, "eval"))

    def _compile(self, tree: ast.AST, filename: str, mode: str) -> CodeType:
        code: CodeType = compile(tree, filename, mode, self._flags, dont_inherit=True)
        self._flags |= code.co_flags & _FUTURE_FLAGS
        return code


class SourceKeeper:
    """Registers the sources of executions with `linecache`, and knows which execution defined which class."""

    def __init__(self) -> None:
        self._plain: deque[str] = deque()
        self._class_files: dict[str, str] = {}

    def register(self, filename: str, text: str) -> None:
        """Keep a source; without a time of change the entry is never compared with a file."""
        linecache.cache[filename] = (len(text), None, [line + "\n" for line in text.split("\n")], filename)

    def settle(self, filename: str, program: Program | None) -> None:
        """Decide, once the code is compiled, how long its source is kept."""
        defined = [code for part in (program.body, program.tail) if part for code in _nested(part)] if program else []
        if defined:
            self._class_files.update((code.co_qualname, filename) for code in defined)
            return
        self._plain.append(filename)
        if len(self._plain) > _KEPT_PLAIN_SOURCES:
            linecache.cache.pop(self._plain.popleft(), None)

    def file_of_class(self, qualname: str) -> str | None:
        """The file name under which a class of this namespace was last defined, `None` where unknown."""
        return self._class_files.get(qualname)


def _nested(code: CodeType) -> list[CodeType]:
    found = [const for const in code.co_consts if type(const) is CodeType]
    return found + [inner for const in found for inner in _nested(const)]
