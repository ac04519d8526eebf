"""Jupyter's messages on the wire, what their numbers tell, and what a tap makes of them; no kernel needed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from repl_kernel.errors import BadMessage, KernelUnreachable
from repl_kernel.jupyter.connection import read_connection_file
from repl_kernel.jupyter.gaps import GapCounter
from repl_kernel.jupyter.tapped import TappedExecutions
from repl_kernel.jupyter.wire import Message, MessageCodec
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds

SCHEME = "hmac-sha256"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)


@given(content=st.dictionaries(st.text(st.characters()), JSON, max_size=4), key=st.binary(max_size=8))
def test_any_content_comes_out_as_it_went_in(content: dict[str, Any], key: bytes) -> None:
    frames, message_id = MessageCodec(key, SCHEME, "a").pack("kind", content)
    message, _ = MessageCodec(key, SCHEME, "b").unpack([b"topic", *frames])
    assert (message.type, message.id, message.session, message.content) == ("kind", message_id, "a", content)


@pytest.mark.parametrize("part", range(1, 6))
def test_a_message_that_was_changed_is_refused(part: int) -> None:
    frames, _ = MessageCodec(b"key", SCHEME, "a").pack("kind", {"x": 1})
    frames[part] = frames[part][:-1] + b"!"
    with pytest.raises(BadMessage, match="wrong signature"):
        MessageCodec(b"key", SCHEME, "b").unpack(frames)


def test_a_message_with_another_key_or_a_second_time_is_refused() -> None:
    frames, _ = MessageCodec(b"key", SCHEME, "a").pack("kind", {})
    with pytest.raises(BadMessage, match="wrong signature"):
        MessageCodec(b"other", SCHEME, "b").unpack(frames)
    receiver = MessageCodec(b"key", SCHEME, "b")
    receiver.unpack(frames)
    with pytest.raises(BadMessage, match="second time"):
        receiver.unpack(frames)


@pytest.mark.parametrize(
    "frames",
    [[], [b"<IDS|MSG>"], [b"x"] * 9, [b"<IDS|MSG>", b"", b"[]", b"{}", b"{}", b"{}"],
     [b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"\xff"],
     [b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"[" * 10**5]],
)  # fmt: skip
def test_what_is_no_message_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(BadMessage):
        MessageCodec(b"", SCHEME, "b").unpack(frames)


@pytest.mark.parametrize("scheme", ["md5", "hmac-nothing", "hmac-shake_128"])
def test_a_signature_scheme_that_there_isnt_is_an_error(scheme: str) -> None:
    with pytest.raises(ValueError, match="no signature scheme"):
        MessageCodec(b"key", scheme, "a")


CONNECTION = {
    **{f"{channel}_port": number for number, channel in enumerate(("shell", "control", "stdin", "iopub"), 1)},
    "ip": "127.0.0.1",
    "key": "",
}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 10**5, "not JSON"),
        ("[]", "no JSON object"),
        (json.dumps({**CONNECTION, "shell_port": float("inf")}), "shell_port"),
        (json.dumps({**CONNECTION, "iopub_port": 99999}), "iopub_port"),
        (json.dumps({**CONNECTION, "ip": "\udcff"}), "surrogates"),
        (json.dumps({**CONNECTION, "ip": None}), "ip must be a text"),
        (json.dumps({**CONNECTION, "key": 5}), "key must be a text"),
        (json.dumps({**CONNECTION, "transport": "udp"}), "udp"),
        (json.dumps({**CONNECTION, "curve_publickey": "x" * 40}), "only one of curve_publickey"),
        (json.dumps({**CONNECTION, "curve_publickey": "é", "curve_secretkey": "'"}), "CURVE keys"),
    ],
)
def test_a_connection_file_that_makes_no_sense_is_one_clear_error(
    text: str, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KernelUnreachable, match=rf"kernel\.json .*{named}"):
        read_connection_file(str(path)).socket(zmq.Context.instance(), "iopub").close()


def test_a_connection_file_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KernelUnreachable, match="no regular file"):
        read_connection_file(str(tmp_path / "pipe"))


class Kernel:
    """Says what a kernel would, numbered as Jupyter's own library numbers, replies included."""

    def __init__(self, session: str = "k", *, numbered: bool = True) -> None:
        self.number = 0
        self.session = session
        self.numbered = numbered

    def say(self, kind: str, parent: str = "", subshell: str | None = None, **content: Any) -> Message:
        self.number += 1
        message_id = f"{self.session}_77_{self.number}" if self.numbered else f"x{self.number}"
        date = f"2026-11-20T10:00:{self.number % 60:02d}.000000Z"
        kind_of_parent = "execute_request" if parent else ""
        return Message(
            kind, message_id, self.session, date, parent, kind_of_parent, "client", subshell, content
        )

    def reply(self) -> None:
        self.number += 1

    def execution(
        self, parent: str, *texts: str, count: int = 1, subshell: str | None = None
    ) -> list[Message]:
        said = [
            self.say("status", parent, subshell, execution_state="busy"),
            self.say("execute_input", parent, subshell, code=f"code {parent}", execution_count=count),
            *(self.say("stream", parent, subshell, name="stdout", text=text) for text in texts),
        ]
        self.reply()
        return [*said, self.say("status", parent, subshell, execution_state="idle")]


def test_nothing_is_missing_where_nothing_was_dropped() -> None:
    kernel, gaps = Kernel(), GapCounter()
    for number in range(5):
        for message in kernel.execution(f"m{number}", "a", "b"):
            gaps.take(message)
        assert gaps.lost() == 0


@given(dropped=st.sets(st.integers(2, 8)))
def test_every_message_that_was_dropped_is_counted(dropped: set[int]) -> None:
    kernel, gaps = Kernel(), GapCounter()
    for message in kernel.execution("m0"):
        gaps.take(message)
    assert gaps.lost() == 0
    for at, message in enumerate(kernel.execution("m1", *"abcdefgh")):
        if at not in dropped:
            gaps.take(message)
    assert gaps.lost() == len(dropped)
    assert gaps.lost() == 0


@dataclass
class Lines:
    """A recorder that keeps what it is told."""

    begun: list[ExecutionRequest] = field(default_factory=list)
    lines: list[tuple[ExecutionRequest, ExecutionOutcome]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def begin(self, code: str, tags: Mapping[str, object]) -> ExecutionRequest:
        request = ExecutionRequest(
            code=code,
            session_id="s",
            seq=len(self.begun) + 1,
            task=TaskIds(plan_id="P", task_id="T", task_name="n"),
            timestamp="now",
            tags=tags,
        )
        self.begun.append(request)
        return request

    def finish(self, request: ExecutionRequest, outcome: ExecutionOutcome) -> str | None:
        self.lines.append((request, outcome))
        return None

    def open_spool(self) -> IO[bytes]:
        return io.BytesIO()


def tapped(messages: list[Message]) -> Lines:
    lines = Lines()
    executions = TappedExecutions(lines, lines.told.append)
    for message in messages:
        executions.take(message)
    return lines


def test_interleaved_executions_are_told_apart_by_their_requests() -> None:
    kernel = Kernel()
    one, two = kernel.execution("m1", "a1", "a2"), kernel.execution("m2", "b1", "b2", subshell="sub")
    lines = tapped([one[0], two[0], one[1], two[1], one[2], two[2], two[3], two[4], one[3], one[4]]).lines
    assert [(request.code, outcome.stdout) for request, outcome in lines] == [
        ("code m2", "b1b2"),
        ("code m1", "a1a2"),
    ]
    assert lines[0][0].tags["subshell_id"] == "sub"
    assert {outcome.status for _, outcome in lines} == {"ok"}


@pytest.mark.parametrize("numbered", [True, False])
def test_an_end_that_was_dropped_is_a_marked_gap(numbered: bool) -> None:
    kernel = Kernel(numbered=numbered)
    first, second = kernel.execution("m1", "a", "b"), kernel.execution("m2", "c", count=2)
    lines = tapped([*first[:3], *second]).lines
    assert [(request.seq, outcome.status) for request, outcome in lines] == [(1, "unknown"), (2, "ok")]
    assert "its end was not seen" in str(lines[0][0].tags["gap"])
    assert ("2 messages did not come" in str(lines[0][0].tags["gap"])) is numbered
    assert "gap" not in lines[1][0].tags


def test_executions_that_left_no_trace_are_named_by_the_next_one() -> None:
    kernel = Kernel()
    first = kernel.execution("m1")
    kernel.execution("m2", count=2)
    kernel.execution("m3", count=3)
    lines = tapped([*first, *kernel.execution("m4", count=4)]).lines
    assert len(lines) == 2
    assert "In[2 to 3]" in str(lines[1][0].tags["gap"])


def test_a_restart_ends_what_ran_as_unknown() -> None:
    kernel = Kernel()
    first = kernel.execution("m1", "a")
    lines = tapped([*first[:3], Kernel("other").say("status", execution_state="starting")]).lines
    assert [(outcome.status, outcome.stdout) for _, outcome in lines] == [("unknown", "a")]


def test_silent_executions_are_told_and_their_output_is_late() -> None:
    kernel = Kernel()
    silent = kernel.execution("m1", "quiet")
    del silent[1]
    lines = tapped([*silent, *kernel.execution("m2", "loud")])
    assert "did not publish" in lines.told[0]
    [(_, outcome)] = lines.lines
    assert (outcome.stdout, [late.text for late in outcome.late_output]) == ("loud", ["quiet"])


def test_what_is_shown_after_an_execution_is_late_output_of_the_next() -> None:
    kernel = Kernel()
    first = kernel.execution("m1")
    late = [
        kernel.say("display_data", "m1", data={"text/plain": "shown"}),
        kernel.say("error", "m1", ename="E", evalue="why", traceback=5),
    ]
    [_, (_, outcome)] = tapped([*first, *late, *kernel.execution("m2", count=2)]).lines
    assert [(output.name, output.text, output.seq) for output in outcome.late_output] == [
        ("stdout", "shown\n", 1),
        ("stderr", "E: why\n", 1),
    ]


def test_messages_that_make_no_sense_are_a_marked_gap() -> None:
    kernel = Kernel()
    cell = kernel.execution("m1", "a")
    odd = [kernel.say("stream", "m1", name="stdout", text=5), kernel.say("display_data", "m1", data=5)]
    [(request, _)] = tapped([*cell[:-1], *odd, cell[-1]]).lines
    assert "made no sense, and are left out: 2" in str(request.tags["gap"])
