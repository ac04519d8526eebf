"""What all tests share: a log folder of their own, a check of every line they write, counts of leaks."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, configuration, settings

from tests.task_logger.log_check import check_log, is_line

pytest_plugins = ["pytester"]

# Hypothesis takes an example of 200 ms for a failure and a second spent on making some for another: on a busy
# machine any may take that. Fixtures that all examples of a test share are meant, here and everywhere.
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")
# Not in the folder above: our packages are imported from it, and a change of it makes a spare kernel stale.
configuration.set_hypothesis_home_dir(Path(__file__).parent / ".hypothesis")

PATIENCE_S = 40.0
"""After this, what must happen is taken for failed; never how long something is meant to take.

Less than the 60 s that programs of tests sleep: what is to be ended must not be gone by itself.
"""


@pytest.fixture(scope="session")
def line_schema() -> Any:
    """The validator of one line of a task log."""
    import jsonschema

    schema = json.loads((Path(__file__).parent / "execution.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="session")
def event_schema() -> Any:
    """The validator of one line of an event log."""
    import jsonschema

    schema = json.loads((Path(__file__).parent / "events.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(autouse=True)
def _every_whole_line_follows_the_schema(
    request: pytest.FixtureRequest, line_schema: Any, event_schema: Any
) -> Iterator[None]:
    """Whatever a test leaves below its temporary folder: each line whose hash is right is a valid record."""
    if "tmp_path" not in request.fixturenames or request.node.get_closest_marker("foreign_lines"):
        yield
        return
    folder: Path = request.getfixturevalue("tmp_path")
    yield
    validate = _validate_fast(line_schema)
    validate_event = _validate_fast(event_schema)
    for path in _logs_below(folder):
        path.chmod(0o600)  # a test may have taken the right to read it away
        with path.open("rb") as file:
            for raw in file:
                piece = raw.removesuffix(b"\n")
                if piece.startswith(b'{"plan_id":') and is_line(piece):
                    validate(json.loads(piece))
                elif piece.startswith(b'{"schema":1,"timestamp":') and is_line(piece):
                    validate_event(json.loads(piece))


def _logs_below(folder: Path) -> list[Path]:
    """The logs that a test leaves; what has just been killed may still be removing other folders of its."""
    names = ((place, name) for place, _, files in os.walk(folder) for name in files)
    paths = (Path(place, name) for place, name in names if name.endswith(".jsonl"))
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _validate_fast(validator: Any) -> Callable[[dict[str, Any]], None]:
    """Validate a line, unless it differs from one before in nothing that a schema looks at."""
    seen: set[str] = set()

    def validate(line: dict[str, Any]) -> None:
        kind = json.dumps([(name, _kind_of(name, value)) for name, value in line.items()])
        if kind not in seen:
            validator.validate(line)
            seen.add(kind)

    return validate


def _kind_of(name: str, value: object) -> object:
    free_texts = ("code", "stdout", "stderr", "task_name", "plan_id", "task_id", "session_id", "actor")
    if name in free_texts and isinstance(value, str):
        return "text"
    if name in ("n", "seq", "elapsed_ms") and isinstance(value, (int, float)) and value >= 1:
        return type(value).__name__
    if name in ("prev", "hash") and isinstance(value, str) and len(value) == 64:
        return set(value) <= set("0123456789abcdef")
    return value


@pytest.fixture
def log_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of this test's logs, from a clean environment; at the end every log must be whole."""
    for name in list(os.environ):
        if name.startswith(("FLOW_", "TASK_LOG")) or name == "USE_SUBPROCESS_WORKER":
            monkeypatch.delenv(name)
    root = tmp_path / "logs"
    monkeypatch.setenv("TASK_LOG_DIR", str(root))
    yield root
    for path in root.glob("*/*.jsonl"):
        log = check_log(path)
        assert log.breaks == []
        assert log.unnamed == []


@dataclass(frozen=True)
class Leakable:
    """What a process may forget to give back."""

    descriptors: dict[str, str]
    children: set[int]
    threads: set[str]


def _leakable() -> Leakable:
    gc.collect()
    threads = {thread.name for thread in threading.enumerate()}  # first: one that ends now gives more back
    descriptors = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            descriptors[entry] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            pass  # the one that lists the folder
    children = {int(pid) for task in Path("/proc/self/task").iterdir() for pid in _children(task)}
    return Leakable(descriptors, children, threads)


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except FileNotFoundError:
        return []  # it has ended: its children are those of another thread now


@pytest.fixture(autouse=True, scope="module")
def _what_is_imported_is_left_alone_by_the_collector() -> None:
    """Collecting, which the search for leaks does twice a test, takes 0.2 s with all that tests import."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Descriptors, children and threads of this process are at the end what they were at the start."""
    before = _leakable()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while (after := _leakable()).threads - before.threads and time.monotonic() < deadline:
        for thread in threading.enumerate():
            if thread.name not in before.threads:
                thread.join(0.1)  # one that was told to end needs a moment to do so
    assert {fd: what for fd, what in after.descriptors.items() if before.descriptors.get(fd) != what} == {}
    assert after.children - before.children == set()
    assert after.threads - before.threads == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


WaitUntil = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Waits until something in another process is so, which nothing announces; fails where it never is."""

    def wait(is_so: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not is_so():
            assert time.monotonic() < deadline, f"not so within {patience_s} s"
            time.sleep(0.002)

    return wait
