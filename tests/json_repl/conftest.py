"""A real `python -m json_repl` to talk to, line by line; what it logged is checked when the test is over."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

PATIENCE_S = 30.0
"""After this a reply that must come is taken for lost."""

SCHEMA = json.loads((Path(__file__).parent.parent / "execution.schema.json").read_text(encoding="utf-8"))


class Server:
    """One server process, its pipes, and its log folder."""

    def __init__(self, log_dir: Path, route: str, command: Sequence[str], **environment: str) -> None:
        self.log_dir = log_dir
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLOW_", "TASK_LOG", "USE_SUB"))
        }
        env |= {
            "TASK_LOG_DIR": str(log_dir),
            "USE_SUBPROCESS_WORKER": str(int(route == "worker")),
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=-1, stdout=-1, stderr=-1, bufsize=0, env=env, process_group=0
        )
        self._rest = b""
        self.ready: dict[str, Any] = {}

    def start(self) -> Server:
        line = self.read_line()
        assert line, f"the server ended before it was ready: {self.stderr()}"
        self.ready = json.loads(line)["params"]
        return self

    def send(self, method: str, request_id: object = None, **params: object) -> None:
        message: dict[str, object] = {"jsonrpc": "2.0", "method": method, "params": params}
        if request_id is not None:
            message["id"] = request_id
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        assert self.process.stdin
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def read_line(self, patience_s: float = PATIENCE_S) -> bytes:
        """The next line without its end; empty at the end of output."""
        assert self.process.stdout
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing came within {patience_s} s; so far {self._rest[:500]!r}"
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                assert not self._rest, f"the last line has no end: {self._rest[-500:]!r}"
                return b""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def read(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next message."""
        message: dict[str, Any] = json.loads(self.read_line(patience_s))
        assert message["jsonrpc"] == "2.0"
        return message

    def read_all(self) -> list[dict[str, Any]]:
        """Everything up to the end of output."""
        found = []
        while line := self.read_line():
            found.append(json.loads(line))
        return found

    def read_reply_of(self, *request_ids: object) -> list[dict[str, Any]]:
        """The replies to these requests, in the order they come; notifications between them are dropped."""
        replies: list[dict[str, Any]] = []
        while len(replies) < len(request_ids):
            if "method" not in (message := self.read()):
                assert message["id"] in request_ids
                replies.append(message)
        return replies

    def ask(self, method: str, request_id: object = "ask", **params: object) -> Any:
        """Send a request and return its result; notifications that come before it are dropped."""
        self.send(method, request_id, **params)
        while "method" in (message := self.read()):
            pass
        assert message["id"] == request_id
        assert "result" in message, message
        return message["result"]

    def close_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        return self.process.wait(patience_s)

    def stderr(self) -> str:
        """All that the process wrote to its own stderr; only after its end."""
        assert self.process.stderr
        return self.process.stderr.read().decode()

    def log_lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in self.log_dir.glob("*/*.jsonl")
            for line in path.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")  # the last one may be in the middle of being written
        ]

    def end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()


StartServer = Callable[..., Server]

GIVEN_UP_AFTER_S = 0.6
"""Completion and inspection that have taken no longer were not given up: that takes 0.7 s and more."""


def in_time(question: Callable[[], Any]) -> Any:
    """Ask for completion or inspection, once more where the machine stood still until that was given up."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        began = time.monotonic()
        answer = question()
        ended = time.monotonic()
        if ended - began < GIVEN_UP_AFTER_S or ended > deadline:
            return answer


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers that are ended with the test; every line in their logs must follow the schema."""
    servers: list[Server] = []

    def start(
        route: str = "local", command: Sequence[str] = ("-m", "json_repl"), **environment: str
    ) -> Server:
        servers.append(Server(tmp_path / "logs", route, command, **environment))
        return servers[-1].start()

    yield start
    for server in servers:
        server.end()
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for server in servers[:1]:
        for line in server.log_lines():
            validator.validate(line)
