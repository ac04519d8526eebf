"""A call in a forked process of its own, so that nothing of it leaks."""

from __future__ import annotations

import json
import os
import select
import signal
import tempfile
from collections.abc import Callable
from typing import Any


class ForkFailed(Exception):
    """The call did not return: the message says how its process ended."""


def call_in_fork(call: Callable[[], Any], time_limit_s: float) -> Any:
    """Call in a forked process, and return what it returned, through JSON; ends all that the process started.

    Raises `ForkFailed` where the call raised, its process died, or the time was up.
    """
    with tempfile.TemporaryFile("w+") as result:
        pid = os.fork()
        if pid == 0:
            _run_and_exit(call, result)
        process = os.pidfd_open(pid)
        try:
            is_over = bool(select.select([process], [], [], time_limit_s)[0])
        finally:
            os.close(process)
            _kill_group(pid)
            _, status = os.waitpid(pid, 0)
        if not is_over:
            raise ForkFailed(f"takes over {time_limit_s:g} s")
        result.seek(0)
        text = result.read()
    if not text:
        raise ForkFailed(f"ends its process with {os.waitstatus_to_exitcode(status)}")
    told = json.loads(text)
    if "raised" in told:
        raise ForkFailed(f"raises {told['raised']}")
    return told["value"]


def _run_and_exit(call: Callable[[], Any], result: Any) -> None:
    try:
        os.setpgid(0, 0)
        try:
            told = {"value": call()}
        except BaseException as exc:  # noqa: BLE001  # the parent tells
            told = {"raised": f"{type(exc).__name__}: {exc}"}
        result.write(json.dumps(told))
        result.flush()
    finally:
        os._exit(0)


def _kill_group(pid: int) -> None:
    for kill, target in ((os.killpg, pid), (os.kill, pid)):  # the group may not be there yet, or any more
        try:
            kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
