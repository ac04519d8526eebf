"""Requests that a handler of ipykernel's fails at: they get an error as their reply, and no front end waits.

request --> handler --> its reply
                +-- raises --> error as the reply, and ipykernel's log has the traceback
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from ipykernel.kernelbase import Kernel

_REQUEST, _REPLY = "_request", "_reply"


def answer_failures(kernel: Kernel) -> None:
    """Have every request of the shell and control channels answered, those that make no sense too."""
    for handlers in (kernel.shell_handlers, kernel.control_handlers):
        for kind, handler in handlers.items():
            if kind.endswith(_REQUEST):
                handlers[kind] = _answering(kernel, handler)


def _answering(kernel: Kernel, handler: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
    async def answer(stream: Any, ident: Any, parent: Any) -> None:
        try:
            result = handler(stream, ident, parent)
            if inspect.isawaitable(result):
                await result
        except Exception as exc:
            reply_failure(kernel, stream, ident, parent, f"{type(exc).__name__}: {exc}")
            raise

    return answer


def reply_failure(kernel: Kernel, stream: Any, ident: Any, parent: Any, why: str) -> None:
    """Reply that a request has failed; no other reply may have been sent."""
    kind = parent["header"]["msg_type"]
    why = f"this {kind} can't be answered: {why}"
    content = {"status": "error", "ename": "InvalidRequest", "evalue": why, "traceback": [why]}
    assert kernel.session is not None
    kernel.session.send(stream, kind.removesuffix(_REQUEST) + _REPLY, content, parent, ident=ident)
