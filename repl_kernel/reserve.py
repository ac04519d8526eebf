"""A worker in reserve: its shell is loaded before anyone knows for which folder and environment.

start_reserve --> keeper and worker --> loaded --> the worker waits
    destine: folder, environment --> a session takes it over, and moves it there before any code runs
    KeeperLink.end               --> keeper and worker have ended
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from repl_kernel.errors import KernelError, WorkerStartFailed
from repl_kernel.framing import RECEIVE_BYTES, FrameReader, pack
from repl_kernel.isolation import worker_environment
from repl_kernel.keeper_link import KeeperLink
from repl_kernel.spawn import SpawnedKeeper, spawn_keeper

_LOAD_LIMIT_S = 20.0


def start_reserve() -> SpawnedKeeper | None:
    """Start a worker with IPython's shell, here and with our environment for the time being; `None` where
    none can be had."""
    try:
        return spawn_keeper(worker_environment(os.environ, ()), shell="ipython")
    except (WorkerStartFailed, OSError):
        return None  # the session tries again, and says what is wrong


def loaded(spawned: SpawnedKeeper) -> SpawnedKeeper | None:
    """The same, once its worker's shell is loaded; `None`, and it has ended, where that fails or takes
    20 s."""
    data, reader, deadline = spawned.ends.data, FrameReader(), time.monotonic() + _LOAD_LIMIT_S
    try:
        data.sendall(pack({"id": 0, "op": "variables"}))  # it can't answer before
        while (remaining_s := deadline - time.monotonic()) > 0:
            data.settimeout(remaining_s)
            received = data.recv(RECEIVE_BYTES)
            if not received:
                break
            if reader.feed(received) is not None:
                data.settimeout(None)
                return spawned
    except (OSError, KernelError):
        pass  # the worker is gone, or too slow
    KeeperLink(spawned).end()
    return None


def destine(spawned: SpawnedKeeper, environment: Mapping[str, str], cwd: str) -> None:
    """Have the session that takes it over move each of its workers there; what is secret is withheld."""
    spawned.move = {
        "op": "move",
        "cwd": _portable(cwd),
        "environment": {
            _portable(name): _portable(value) for name, value in worker_environment(environment, ()).items()
        },
    }


def _portable(text: str) -> str:
    """A text that any bytes of the system's can be, as JSON can hold it: a character for each byte."""
    return os.fsencode(text).decode("latin-1")
