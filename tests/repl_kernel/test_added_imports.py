"""What the worker loads for itself is no import of the user's, whatever it was started with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from repl_kernel.executor import ShellName
from repl_kernel.limits import NO_LIMITS, Limits
from repl_kernel.sandbox import Sandbox
from repl_kernel.timeline import TimelineExecutor
from tests.repl_kernel.timeline_world import World

FIRST: dict[str, Callable[[World], object]] = {
    "nothing": lambda world: None,
    "variables": lambda world: world.executor.variables(),
    "complete": lambda world: world.executor.complete("pri", 3),
    "inspect": lambda world: world.executor.inspect("print", 3),
    "restart": lambda world: world.executor.restart(),
}


def imports(world: World, code: str) -> list[str]:
    return list(world.run(code).changes.added_imports)


@pytest.mark.parametrize("shell", ["plain", "ipython"])
@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(memory_bytes=2**30)], ids=["unlimited", "limited"])
@pytest.mark.parametrize("isolation", ["none", "process", "sandbox"])
def test_nothing_of_ours_is_among_the_imports_of_an_execution(
    isolation: Literal["none", "process", "sandbox"],
    limits: Limits,
    shell: ShellName,
    tmp_path: Path,
    no_leaks: None,
) -> None:
    if isolation == "sandbox" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    tier = Sandbox(work_folder=str(tmp_path)) if isolation == "sandbox" else isolation
    for first in FIRST if shell == "plain" else ("nothing", "complete"):
        with closing(World(executor=TimelineExecutor(isolation=tier, limits=limits, shell=shell))) as world:
            FIRST[first](world)
            assert imports(world, "x = [1]") == [], first
            assert imports(world, "1 / 0") == [], first
            assert imports(world, "import colorsys") == ["colorsys"], first
            awaited = imports(world, "import asyncio; await asyncio.sleep(0)")
            assert [name for name in awaited if name.startswith(("repl_kernel", "task_logger"))] == [], first
            if shell == "plain":
                assert "asyncio" in awaited
