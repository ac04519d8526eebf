"""Frames, from senders that mean well and from those that don't."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_kernel.errors import BadMessage, FrameTooLarge, ProtocolViolation
from repl_kernel.framing import MAX_FRAME_BYTES, FrameReader, pack

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON), max_size=6
)


@given(MESSAGES, st.data())
def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(
    messages: list[dict[str, Any]], data: st.DataObject
) -> None:
    stream = b"".join(pack(message) for message in messages)
    reader, found = FrameReader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        message = reader.feed(stream[:size])
        stream = stream[size:]
        while message is not None:
            found.append(message)
            message = reader.take()
    assert found == messages
    assert reader.is_empty


@pytest.mark.parametrize("announced_bytes", [0xFFFFFFFF, 1 << 31, MAX_FRAME_BYTES + 1])
def test_a_frame_that_is_too_large_is_refused_before_anything_is_allocated(announced_bytes: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge) as refused:
            FrameReader().feed(announced_bytes.to_bytes(4, "big") + b"x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.announced_bytes == announced_bytes


def test_a_message_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(FrameTooLarge):
        pack({"code": "x" * 100}, max_frame_bytes=50)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b'"\\ud800"',
        b'{"a": NaN}',
        b"[]",
        b"5",
        b"null",
        b"[" * 100_000,
        b'{"a": 1,}',
    ],
    ids=repr,
)
def test_a_body_that_is_no_message_is_named_and_the_next_one_is_read(body: bytes) -> None:
    reader = FrameReader()
    with pytest.raises(BadMessage):
        reader.feed(len(body).to_bytes(4, "big") + body)
    assert reader.feed(pack({"fine": 1})) == {"fine": 1}


@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_named_error(data: bytes) -> None:
    reader = FrameReader()
    try:
        message = reader.feed(data)
        while message is not None:
            assert type(message) is dict
            message = reader.take()
    except ProtocolViolation:
        pass
