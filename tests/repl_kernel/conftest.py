"""A worker with its timeline, which every test gets anew and which must leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.repl_kernel.timeline_world import World


@pytest.fixture
def world(no_leaks: None) -> Iterator[World]:
    """A worker that keeps its states whenever it idles."""
    made = World()
    yield made
    made.close()
