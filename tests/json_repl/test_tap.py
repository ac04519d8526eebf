"""`json-repl tap`: a kernel that others run is recorded from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.manager import KernelManager

from json_repl.session import Session
from repl_kernel.jupyter.connection import read_connection_file
from tests.conftest import PATIENCE_S, WaitUntil


class Tap:
    """A `json-repl tap` process, which records."""

    def __init__(self, kernel: str, *options: str, records: bool = True) -> None:
        command = [sys.executable, "-c", "import sys; from json_repl.cli import main; sys.exit(main())"]
        self.process = subprocess.Popen(
            [*command, "tap", kernel, *options], stderr=subprocess.PIPE, text=True, process_group=0
        )
        assert self.process.stderr is not None
        self.said = ""
        while records and "recording into" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Have it end; returns its exit code and what it said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it said, once it has ended; that the machine stood still is left out."""
        _, rest = self.process.communicate(timeout=PATIENCE_S)
        lines = (self.said + rest).splitlines(keepends=True)
        return self.process.returncode, "".join(line for line in lines if "stood still" not in line)


@contextmanager
def somebodys_kernel(folder: Path, **settings: str) -> Iterator[Any]:
    """A kernel that runs: who comes to one expects that it listens."""
    made = KernelManager(kernel_name="python3", connection_file=str(folder / "kernel.json"), **settings)
    made.start_kernel()
    try:
        wait_until_it_listens(made)
        yield made
    finally:
        made.shutdown_kernel(now=True)
        made.cleanup_resources()


def wait_until_it_listens(manager: Any) -> None:
    own = manager.blocking_client()
    own.start_channels()
    try:
        own.wait_for_ready(timeout=PATIENCE_S)
    finally:
        own.stop_channels()


@pytest.fixture
def manager(tmp_path: Path, log_root: Path) -> Iterator[Any]:
    """Somebody else's kernel; on sockets in a folder, since a port may be taken before the kernel has it."""
    with (
        tempfile.TemporaryDirectory(prefix="k-") as sockets,  # their paths must be short
        somebodys_kernel(tmp_path, transport="ipc", ip=f"{sockets}/s") as made,
    ):
        yield made


@pytest.fixture
def tcp_manager(tmp_path: Path, log_root: Path) -> Iterator[Any]:
    """Another one, on ports: their buffers hold what a tap that stands still for a moment doesn't take."""
    with somebodys_kernel(tmp_path) as made:
        yield made


@pytest.fixture
def taps() -> Iterator[list[Tap]]:
    started: list[Tap] = []
    yield started
    for tap in started:
        if tap.process.poll() is None:
            tap.process.kill()
            tap.process.communicate()


def lines_in(log_root: Path, actor: str = "jupyter") -> list[dict[str, Any]]:
    found = [
        json.loads(line)
        for path in log_root.rglob("*.jsonl")
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")  # the last one may be in the middle of being written
    ]
    return [line for line in found if line["actor"] == actor]


def wait_for_lines(log_root: Path, count: int, wait_until: WaitUntil) -> list[dict[str, Any]]:
    wait_until(lambda: len(lines_in(log_root)) >= count)
    return lines_in(log_root)


def client(manager: Any, log_root: Path) -> Session:
    """Somebody who runs code on that kernel."""
    return Session(route="jupyter", kernel=manager.connection_file, plan_id="other", actor="other")


class Held:
    """Code that prints "so far" and goes on once it is let go, and a callback for its first output."""

    def __init__(self, folder: Path, meanwhile: Callable[[], object], then: str = "") -> None:
        self._mark = folder / "let go"
        self._meanwhile = meanwhile
        held = f"while not os.path.exists({str(self._mark)!r}): time.sleep(0.01)"
        self.code = f"print('so far')\nimport os, time\n{held}\n{then}"

    def on_output(self, *_: object) -> None:
        if not self._mark.exists():
            self._meanwhile()
            self._mark.touch()


def test_every_execution_is_recorded_whoever_runs_it(
    manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    with client(manager, log_root) as one, client(manager, log_root) as two:
        tap = Tap(manager.connection_file, "--plan-id", "P-9", "--task-id", "T-3")
        taps.append(tap)
        one.execute_code("print('from one')\n1 + 1")
        two.execute_code("import sys\nprint('oops', file=sys.stderr)\n1 / 0")
        one.execute_code("from IPython.display import display\ndisplay({'text/plain': 'x'}, raw=True)")
        lines = wait_for_lines(log_root, 3, wait_until)
        code, said = tap.end()
    assert (code, said.count("\n")) == (0, 2)
    assert said.endswith("json-repl tap: told to end; 3 executions recorded\n")
    assert [line["status"] for line in lines] == ["ok", "error", "ok"]
    assert (lines[0]["stdout"], lines[0]["result"]) == ("from one\n", {"text/plain": "2"})
    assert lines[1]["error"]["type"] == "ZeroDivisionError"
    assert lines[1]["error"]["line"] == 3
    assert lines[1]["stderr"].startswith("oops\n")
    assert lines[2]["displays"] == [{"text/plain": "x"}]
    clients = [line["tags"]["client_session_id"] for line in lines]
    assert clients[0] == clients[2] != clients[1]
    for line in lines:
        assert (line["plan_id"], line["task_id"]) == ("P-9", "T-3")
        assert (line["route"], line["isolation"], line["diff_complete"]) == ("jupyter", "external", False)
        assert "gap" not in line["tags"]
    others = lines_in(log_root, "other")
    assert sorted(line["stdout"] for line in others) == sorted(line["stdout"] for line in lines)


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_flood_of_flushed_lines_is_recorded_to_the_last(
    tcp_manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil, count: int
) -> None:
    with client(tcp_manager, log_root) as session:
        taps.append(Tap(tcp_manager.connection_file))
        for tries in range(1, 6):
            session.execute_code(f"for i in range({count}): print(i, flush=True)")
            line = wait_for_lines(log_root, tries, wait_until)[-1]
            if "gap" not in line["tags"]:
                break
            # The kernel itself drops what comes while all of the tap's process stands still: a message of its
            # is a line at most, or a part of one.
            missing = count - line["stdout"].count("\n")
            found = re.search(r"messages that did not come: (\d+) ", line["tags"]["gap"])
            assert found
            assert missing <= int(found[1]) <= 2 * missing + 2
    assert line["stdout"] == "".join(f"{i}\n" for i in range(count))
    assert "gap" not in line["tags"]


@pytest.mark.slow
def test_a_tap_that_stood_still_has_all_or_says_what_is_missing(
    manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    with client(manager, log_root) as session:
        tap = Tap(manager.connection_file)
        taps.append(tap)
        tap.process.send_signal(signal.SIGSTOP)
        session.execute_code(
            "import sys\nfor i in range(4000):\n    n = sys.stdout.write('y' * 4000)\n    sys.stdout.flush()"
        )
        tap.process.send_signal(signal.SIGCONT)

        def next_one_is_seen() -> bool:
            session.execute_code("'after'")
            return any(line["result"] == {"text/plain": "'after'"} for line in lines_in(log_root))

        wait_until(next_one_is_seen)
        said = tap.end()[1]
    first = lines_in(log_root)[0]
    [stdout] = [artifact for artifact in first["artifacts"] if artifact["field"] == "stdout"]
    if first["status"] == "ok" and "gap" not in first["tags"]:
        assert stdout["bytes"] == 16_000_000
    else:
        assert stdout["bytes"] < 16_000_000
        assert "not come" in first["tags"]["gap"]
        assert "not come" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_when_the_tap_is_told_to_end_is_unknown(
    manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil, number: int
) -> None:
    with client(manager, log_root) as session:
        tap = Tap(manager.connection_file)
        taps.append(tap)

        def end() -> None:
            wait_until(lambda: pending_requests(log_root))
            assert tap.end(number)[0] == 0

        held = Held(log_root, end)
        outcome = session.execute_code(held.code, on_output=held.on_output)
    [line] = lines_in(log_root)
    assert (line["status"], line["success"]) == ("unknown", False)
    assert "told to end" in line["tags"]["gap"]
    assert outcome["success"]


def test_a_tap_that_is_killed_leaves_what_runs_to_the_next_writer(
    manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    with client(manager, log_root) as session:
        tap = Tap(manager.connection_file)
        taps.append(tap)

        def kill() -> None:
            wait_until(lambda: pending_requests(log_root))
            tap.end(signal.SIGKILL)

        held = Held(log_root, kill)
        session.execute_code(held.code, on_output=held.on_output)
        taps.append(Tap(manager.connection_file))
        session.execute_code("2")
        lines = wait_for_lines(log_root, 2, wait_until)
    assert [(line["code"][:14], line["status"]) for line in lines] == [
        ("print('so far'", "unknown"),
        ("2", "ok"),
    ]


def test_a_kernel_that_dies_ends_the_tap_and_what_ran_is_unknown(
    manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    with client(manager, log_root) as session:
        tap = Tap(manager.connection_file)
        taps.append(tap)

        def remove() -> None:
            wait_until(lambda: pending_requests(log_root))
            os.unlink(manager.connection_file)  # as whoever owns a kernel does at its end

        held = Held(log_root, remove, then="os._exit(1)")
        session.execute_code(held.code, on_output=held.on_output)
        code, said = tap.wait()
    assert (code, "the kernel has ended" in said) == (0, True)
    [line] = lines_in(log_root)
    assert (line["status"], line["stdout"]) == ("unknown", "so far\n")


def test_a_restarted_kernel_is_recorded_on(
    manager: Any, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    tap = Tap(manager.connection_file)
    taps.append(tap)
    with client(manager, log_root) as session:
        session.execute_code("1")
    manager.restart_kernel(now=True)
    wait_until_it_listens(manager)
    with client(manager, log_root) as session:

        def next_one_is_seen() -> bool:
            session.execute_code("'again'")
            return any(line["result"] == {"text/plain": "'again'"} for line in lines_in(log_root))

        wait_until(next_one_is_seen)
    code, said = tap.end()
    assert (code, "connection broke" in said) == (0, True)


def test_messages_with_a_wrong_signature_are_refused_and_counted(
    tmp_path: Path, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    info = {
        "transport": "ipc", "ip": str(tmp_path / "s"), "key": "right", "signature_scheme": "hmac-sha256",
        "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
    }  # fmt: skip
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(info))
    connection = read_connection_file(str(path))
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.bind(f"ipc://{tmp_path}/s-2")
        tap = Tap(str(path))
        taps.append(tap)
        assert publisher.poll(int(PATIENCE_S * 1000))
        assert publisher.recv() == b"\x01"  # subscribed: from now on it gets all
        parent = b'{"msg_id":"m","msg_type":"execute_request","session":"c"}'
        right = connection.codec("kernel")
        wrong = read_connection_file(str(_with_key(path, "wrong"))).codec("kernel")
        for codec, code in ((wrong, "'forged'"), (right, "'real'")):
            content = {"code": code, "execution_count": 1}
            publisher.send_multipart(codec.pack("execute_input", content, parent)[0])
        idle, _ = right.pack("status", {"execution_state": "idle"}, parent)
        publisher.send_multipart(idle)
        [line] = wait_for_lines(log_root, 1, wait_until)
        exit_code, said = tap.end()
    assert (line["code"], line["tags"]["refused_messages"]) == ("'real'", 1)
    assert (exit_code, "1 messages refused" in said, "wrong signature" in said) == (0, True, True)


def _with_key(path: Path, key: str) -> Path:
    other = path.with_name("other.json")
    other.write_text(json.dumps({**json.loads(path.read_text()), "key": key}))
    return other


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_encrypted_kernels_are_recorded_and_run(
    transport: str, tmp_path: Path, log_root: Path, taps: list[Tap], wait_until: WaitUntil
) -> None:
    place = {"ip": str(tmp_path / "k")} if transport == "ipc" else {}
    settings = {"transport": transport, "transport_encryption": "required", **place}
    with somebodys_kernel(tmp_path, **settings) as made:
        assert "curve_publickey" in json.loads(Path(made.connection_file).read_text())
        with client(made, log_root) as session:
            taps.append(Tap(made.connection_file))
            assert session.execute_code("6 * 7")["result"] == {"text/plain": "42"}
            [line] = wait_for_lines(log_root, 1, wait_until)
            assert line["result"] == {"text/plain": "42"}
            other = zmq.curve_keypair()
            keys = {"curve_publickey": other[0].decode(), "curve_secretkey": other[1].decode()}
            refused = tmp_path / "refused.json"
            refused.write_text(json.dumps({**json.loads(Path(made.connection_file).read_text()), **keys}))
            tap = Tap(str(refused), records=False)
            taps.append(tap)
            code, said = tap.wait()
            assert (code, said.count("\n")) == (1, 1)


def test_a_kernel_is_found_by_its_id(
    manager: Any, log_root: Path, taps: list[Tap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    (runtime / "kernel-1234-abcd.json").symlink_to(manager.connection_file)
    tap = Tap("1234-abcd")
    taps.append(tap)
    assert tap.end()[0] == 0


def test_a_kernel_that_there_isnt_is_one_line_that_says_what_to_do(
    tmp_path: Path, log_root: Path, taps: list[Tap]
) -> None:
    tap = Tap("nowhere", records=False)
    taps.append(tap)
    code, said = tap.wait()
    assert (code, said.count("\n")) == (1, 1)
    assert "give a connection file" in said


def pending_requests(log_root: Path) -> list[Path]:
    """The pending files of taps that hold a request."""
    return [path for path in log_root.glob("local/pending/*") if b"so far" in path.read_bytes()]
