"""A worker in reserve: it starts before there is a session that takes it over.

start_reserve --> keeper and worker --> a session takes it over
"""

from __future__ import annotations

import os

from repl_kernel.errors import WorkerStartFailed
from repl_kernel.isolation import worker_environment
from repl_kernel.spawn import SpawnedKeeper, spawn_keeper


def start_reserve() -> SpawnedKeeper | None:
    """Start a worker with IPython's shell, here and with our environment for the time being; `None` where
    none can be had."""
    try:
        return spawn_keeper(worker_environment(os.environ, ()), shell="ipython")
    except (WorkerStartFailed, OSError):
        return None  # the session tries again, and says what is wrong
