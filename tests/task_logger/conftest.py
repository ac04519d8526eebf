"""Places to write to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder in a file system that is in memory."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="task-log-test-"))
    yield folder
    shutil.rmtree(folder)
