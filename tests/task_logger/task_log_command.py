"""The command `task-log`, as tests run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def environment(root: Path, **variables: str) -> dict[str, str]:
    """That of this process, but for its tasks and logs: those are below `root`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLOW_", "TASK_LOG_"))}
    return {**kept, "TASK_LOG_DIR": str(root), "COLUMNS": "80", "PYTHONWARNINGS": "error", **variables}


def task_log(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it on the logs below `root`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "task_logger", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(root, **variables),
        timeout=60,
    )
