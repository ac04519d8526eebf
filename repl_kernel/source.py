"""The source of executions: compiled to run, and kept so that tracebacks and `inspect` can show it."""

from __future__ import annotations
import __future__

import ast
import linecache
from collections import deque
from opcode import opmap
from types import CodeType
from typing import NamedTuple

CO_COROUTINE = 0x80
"""The flag of code that awaits; see `inspect.CO_COROUTINE`."""

_FUTURE_FLAGS = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})

# How code ends that ends in a store, in this version of Python: the store, the name's index, how it returns.
_STORE = opmap["STORE_NAME"]
_ENDS_IN_STORE = compile("x = None", "", "exec").co_code
_STORE_AT = 2 * _ENDS_IN_STORE[::2].rindex(_STORE) - len(_ENDS_IN_STORE)
_RETURN = _ENDS_IN_STORE[_STORE_AT + 2 :: 2]

_KEPT_PLAIN_SOURCES = 500
"""How many sources without functions or classes are kept for tracebacks; those that define some stay."""


class Program(NamedTuple):
    """Code ready to run: `body`, then `tail`, whose value is the result (`None` where there is no such
    expression).

    Either is a coroutine's code where it awaits at its top level. (A tuple: it is made in every execution.)
    """

    body: CodeType | None
    tail: CodeType | None
    awaits: int
    """Whether any of it awaits at its top level."""


class Compiler:
    """Compiles the executions of one namespace; a `from __future__ import` holds for those that follow."""

    def __init__(self) -> None:
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    def compile(self, text: str, filename: str) -> Program:
        """Compile one execution; raises what the built-in `compile` raises for text that isn't Python.

        Most code ends in an assignment, or is one expression; that is compiled in one go, without the tree.
        """
        name, equals, value = text[text.rfind("\n") + 1 :].partition("=")
        if equals:
            name = name.rstrip()
            if name.isidentifier() and not value.startswith("="):
                return self._by_statements(text, filename, name)
        elif name.endswith(")") and name == text and not name[0].isspace():
            return self._by_expression(text, filename)
        return self._by_tree(text, filename)

    def _by_statements(self, text: str, filename: str, name: str) -> Program:
        """Compile text whose last line looks like an assignment to `name`.

        Where it is one, the code ends in that store; only inside a string of several lines could
        the look deceive
        all the same.
        """
        if not ("\n" in text and ('"""' in text or "'''" in text or "\\\n" in text)):
            code: CodeType = compile(text, filename, "exec", self._flags, dont_inherit=True)
            end = code.co_code[_STORE_AT:]
            if end[0] == _STORE and end[2::2] == _RETURN and code.co_names[end[1]] == name:
                self._flags |= code.co_flags & _FUTURE_FLAGS
                return Program(code, None, code.co_flags & CO_COROUTINE)
        return self._by_tree(text, filename)

    def _by_expression(self, text: str, filename: str) -> Program:
        """Compile text that looks like one call."""
        try:
            tail: CodeType = compile(text, filename, "eval", self._flags, dont_inherit=True)
        except SyntaxError:
            return self._by_tree(text, filename)
        return Program(None, tail, tail.co_flags & CO_COROUTINE)

    def _by_tree(self, text: str, filename: str) -> Program:
        tree = compile(text, filename, "exec", self._flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        statements: list[ast.stmt] = tree.body
        last = statements[-1] if statements else None
        body = tail = None
        if isinstance(last, ast.Expr):
            del statements[-1]
        if statements:
            body = self._compile(tree, filename, "exec")
        if isinstance(last, ast.Expr):
            tail = self._compile(ast.Expression(last.value), filename, "eval")
        flags = (body.co_flags if body is not None else 0) | (tail.co_flags if tail is not None else 0)
        return Program(body, tail, flags & CO_COROUTINE)

    def _compile(self, tree: ast.Module | ast.Expression, filename: str, mode: str) -> CodeType:
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
        text = text.removesuffix("\n")
        linecache.cache[filename] = (len(text), None, [line + "\n" for line in text.split("\n")], filename)

    def settle(self, filename: str, program: Program | None) -> None:
        """Decide, once the code is compiled, how long its source is kept."""
        if program is not None:
            for code in (program.body, program.tail):
                if code is not None and CodeType in map(type, code.co_consts):
                    self._class_files.update((inner.co_qualname, filename) for inner in _nested(code))
                    return
        plain = self._plain
        plain.append(filename)
        if len(plain) > _KEPT_PLAIN_SOURCES:
            linecache.cache.pop(plain.popleft(), None)

    def file_of_class(self, qualname: str) -> str | None:
        """The file name under which a class of this namespace was last defined, `None` where unknown."""
        return self._class_files.get(qualname)


def _nested(code: CodeType) -> list[CodeType]:
    found = [const for const in code.co_consts if type(const) is CodeType]
    return found + [inner for const in found for inner in _nested(const)]
