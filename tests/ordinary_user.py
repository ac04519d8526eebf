"""Programs run as an ordinary user: the one who runs the tests, or for root the one who is nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import platformdirs
import pytest

ROOT = Path(__file__).parents[1]

NOBODY = 65534

LIMIT_S = 120


@dataclass(frozen=True)
class OrdinaryUser:
    """One who can run Python with our packages; `folder` is the user's own, with the logs in it."""

    uid: int
    python: str
    folder: Path

    def run(self, *arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments, in that environment and no other."""
        more: dict[str, Any] = {} if os.getuid() else {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        own = {"PYTHONPATH": str(self.folder / "site-packages"), "TASK_LOG_DIR": str(self.folder / "logs")}
        return subprocess.run(
            [self.python, *arguments],
            input=given,
            env={"PATH": os.environ["PATH"]} | own | environment,
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
            timeout=LIMIT_S,
            **more,
        )

    def value(self, code: str, **environment: str) -> Any:
        """What code that runs as a program prints, which must be JSON."""
        found = self.run("-c", code, **environment)
        assert found.returncode == 0, found.stderr
        return orjson.loads(found.stdout)


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """An ordinary user; skips the test where there is no Python for one. Nothing is left at the end."""
    python = _python_of_all()
    if python is None:
        pytest.skip("no Python of this one's version that every user may run")
    uid = os.getuid() or NOBODY
    # The tests' own folders are closed to others; and one left by a run that was killed may be anybody's.
    folder = Path(tempfile.mkdtemp(prefix="json-repl-test-", dir="/tmp"))
    try:
        _copy_trees(folder / "site-packages")
        for path in (folder, *folder.rglob("*")):  # whatever the umask, and the modes in the tree
            os.chown(path, uid, -1)
        yield OrdinaryUser(uid, python, folder)
    finally:
        shutil.rmtree(folder)


def _python_of_all() -> str | None:
    """A Python that every user may run, of this one's version: it can use its libraries."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        real = os.path.realpath(path)
        is_open = all(parent.stat().st_mode & 0o005 == 0o005 for parent in Path(real).parents)
        if os.access(real, os.X_OK) and is_open:
            wanted = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
            if subprocess.run([path, "-c", wanted], check=False).returncode == 0:
                return path
    return None


def _copy_trees(site: Path) -> None:
    """Our packages and what they import, where every user can read them."""
    for name in ("json_repl", "repl_kernel", "task_logger"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (orjson, platformdirs):
        assert module.__file__
        shutil.copytree(Path(module.__file__).parent, site / module.__name__)
