"""Messages: every line gets its request or its one reply; what is rendered is one line for all readers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from json_repl import messages
from json_repl.messages import Rejected, Request, parse
from json_repl.params import Execute, History, InputReply

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Surrogates can't be sent; everything else can, the escapes that confuse a count of quotes above all.
    | st.text(st.characters(codec="utf-8") | st.sampled_from('"\\')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def line_of(**fields: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, **fields}).encode()


def rejected(line: bytes) -> Rejected:
    parsed = parse(line)
    assert isinstance(parsed, Rejected), parsed
    return parsed


def accepted(line: bytes) -> Request:
    parsed = parse(line)
    assert isinstance(parsed, Request), parsed
    return parsed


def test_an_execute_request_becomes_its_typed_params() -> None:
    params = {
        "code": "x",
        "time_limit_s": 2,
        "stream": True,
        "allow_input": True,
        "tags": {"step": "4"},
        "atomic": False,
    }
    request = accepted(line_of(method="execute", params=params))
    assert request == Request(
        method="execute",
        params=Execute(code="x", time_limit_s=2.0, stream=True, allow_input=True, tags={"step": "4"}),
        id=1,
        wants_reply=True,
    )


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("execute", {"code": ""}, Execute(code="")),
        ("execute", {"code": "", "time_limit_s": None, "tags": None}, Execute(code="")),
        ("interrupt", {}, None),
        ("restart", {}, None),
        ("variables", {}, None),
        ("history", {}, History()),
        ("history", {"last": 0}, History(last=0)),
        ("input_reply", {"text": "a"}, InputReply(text="a")),
        ("input_reply", {"text": None}, InputReply(text=None)),
        ("ping", {}, None),
        ("shutdown", {}, None),
    ],
)
def test_every_method_takes_its_params(method: str, params: dict[str, object], expected: object) -> None:
    assert accepted(line_of(method=method, params=params)).params == expected


def test_params_may_be_left_out_where_none_are_needed() -> None:
    assert accepted(line_of(method="ping")).params is None


@pytest.mark.parametrize("request_id", ["", "a", 'q"\\"', 0, -1, 2**64 - 1, None])
def test_strings_integers_and_null_are_ids(request_id: str | int | None) -> None:
    request = accepted(line_of(id=request_id, method="ping"))
    assert (request.id, request.wants_reply) == (request_id, True)


@pytest.mark.parametrize("request_id", [1.5, True, [], {}, 2**70])
def test_what_is_no_id_is_refused_with_a_null_id(request_id: object) -> None:
    reply = rejected(line_of(id=request_id, method="ping"))
    assert (reply.code, reply.id, reply.wants_reply) == (messages.NOT_A_REQUEST, None, True)


def test_a_request_without_an_id_wants_no_reply_even_when_it_is_wrong() -> None:
    assert not accepted(b'{"jsonrpc":"2.0","method":"ping"}').wants_reply
    assert not rejected(b'{"jsonrpc":"2.0","method":"nope"}').wants_reply
    assert not rejected(b'{"jsonrpc":"2.0","method":"execute","params":{}}').wants_reply


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"garbage", "not JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"', "not JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"} trailing', "not JSON"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":Infinity}', "not JSON"),
        (b'{"a":1e400}', "infinity"),
        (b'{"a":"\xff"}', "byte 7 of the line is not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a":"\\ud800"}', "half a character"),
        (b"[" * 100_000, "depth"),
        (b'{"a":' * 100_000, "depth"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a":"line\x00"}', "not JSON"),
    ],
)
def test_what_is_no_json_is_refused_saying_why(line: bytes, said: str) -> None:
    reply = rejected(line)
    assert (reply.code, reply.id, reply.wants_reply) == (messages.NOT_JSON, None, True)
    assert said in reply.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[]", "batches"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', "batches"),
        (b"3", "not an object"),
        (b"null", "not an object"),
        (b'"text"', "not an object"),
        (b"{}{}", "several JSON values"),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"ping"} {"jsonrpc":"2.0","id":2,"method":"ping"}',
            "several JSON values",
        ),
        (b"{}", "jsonrpc"),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', "jsonrpc"),
        (b'{"jsonrpc":"2.0","id":1}', "method"),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', "method"),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', "twice"),
        (b'{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"a","code":"b"}}', "twice"),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"a","tags":{"\\"":1,"\\"":2}}}',
            "twice",
        ),
    ],
)
def test_json_that_is_no_request_is_refused_and_gets_a_reply(line: bytes, said: str) -> None:
    reply = rejected(line)
    assert (reply.code, reply.wants_reply) == (messages.NOT_A_REQUEST, True)
    assert said in reply.message


def test_a_name_given_twice_is_refused_under_the_id_that_was_given() -> None:
    line = b'{"jsonrpc":"2.0","id":"mine","method":"execute","params":{"code":"a","code":"b"}}'
    assert rejected(line).id == "mine"


@pytest.mark.parametrize("method", ["nope", "", "completes", "Execute", "__class__", "execute\n"])
def test_an_unknown_method_is_named(method: str) -> None:
    reply = rejected(line_of(method=method, params={"code": "x"}))
    assert (reply.code, reply.id) == (messages.NO_SUCH_METHOD, 1)
    assert repr(method)[1:-1] in reply.message


@pytest.mark.parametrize(
    ("method", "params", "names"),
    [
        ("execute", {}, "code is missing"),
        ("execute", {"code": 1}, "code must be a string"),
        ("execute", {"code": None}, "code must be a string"),
        ("execute", {"code": "", "time_limit_s": "1"}, "time_limit_s"),
        ("execute", {"code": "", "time_limit_s": 0}, "time_limit_s"),
        ("execute", {"code": "", "time_limit_s": -1}, "time_limit_s"),
        ("execute", {"code": "", "time_limit_s": True}, "time_limit_s"),
        ("execute", {"code": "", "time_limit_s": 1e300}, "time_limit_s"),
        ("execute", {"code": "", "stream": 1}, "stream"),
        ("execute", {"code": "", "allow_input": None}, "allow_input"),
        ("execute", {"code": "", "tags": []}, "tags"),
        ("execute", {"code": "", "session_id": 1}, "session_id"),
        ("complete", {"code": "x"}, "cursor is missing"),
        ("complete", {"cursor": 1}, "code is missing"),
        ("complete", {"code": "x", "cursor": -1}, "cursor must be an integer of 0 or more"),
        ("complete", {"code": "x", "cursor": True}, "cursor must be an integer of 0 or more"),
        ("complete", {"code": "\U0001f600", "cursor": 2}, "cursor must be from 0 to 1"),
        ("complete", {"code": "x", "cursor": 1, "detail_level": 0}, "detail_level"),
        ("inspect", {"code": "x", "cursor": 2}, "cursor must be from 0 to 1"),
        ("inspect", {"code": "x", "cursor": 1, "detail_level": 2}, "detail_level must be 0 or 1"),
        ("rewind", {}, "seq is missing"),
        ("rewind", {"seq": -1}, "seq"),
        ("rewind", {"seq": True}, "seq"),
        ("rewind", {"seq": 10**30}, "seq must be an integer of 0 or more, below 2**63"),
        ("branch", {"seq": 2**63}, "seq"),
        ("history", {"last": 10**30}, "last"),
        ("branch", {"seq": 1, "reseed": 1}, "reseed"),
        ("branch", {"seq": 1.0}, "seq"),
        ("speculate", {}, "codes"),
        ("speculate", {"codes": []}, "codes"),
        ("speculate", {"codes": "x"}, "codes"),
        ("speculate", {"codes": ["x", 1]}, "codes"),
        ("speculate", {"codes": ["x"] * 65}, "at most 64"),
        ("speculate", {"codes": ["x"], "atomic": True}, "'atomic'"),
        ("adopt", {}, "index is missing"),
        ("discard", {"index": 1}, "'index'"),
        ("ping", {"session_id": "x"}, "'session_id'"),
        ("execute", {"code": "", "atomic": 1}, "atomic"),
        ("execute", {"code": "", "timeout": 3}, "'timeout'"),
        ("history", {"last": -1}, "last"),
        ("history", {"last": 1.5}, "last"),
        ("history", {"last": True}, "last"),
        ("input_reply", {}, "text is missing"),
        ("input_reply", {"text": 1}, "text"),
        ("ping", {"x": 1}, "'x'"),
        ("restart", {"x": 1}, "'x'"),
        ("execute", ["x"], "params must be an object"),
        ("execute", None, "params must be an object"),
    ],
)
def test_a_wrong_param_is_named_with_what_it_should_be(method: str, params: object, names: str) -> None:
    reply = rejected(line_of(method=method, params=params))
    assert (reply.code, reply.id) == (messages.BAD_PARAMS, 1)
    assert names in reply.message


def test_unknown_fields_beside_the_params_are_ignored() -> None:
    assert accepted(line_of(method="ping", trace={"id": "x"})).method == "ping"


def test_integers_past_64_bits_in_tags_stay_exact() -> None:
    request = accepted(line_of(method="execute", params={"code": "", "tags": {"n": 2**70, "f": 1e30}}))
    assert isinstance(request.params, Execute)
    assert request.params.tags == {"n": 2**70, "f": 1e30}


@given(
    tags=st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=4),
    code=st.text(st.characters(codec="utf-8")),
)
def test_any_code_and_tags_arrive_as_they_were_sent(tags: dict[str, object], code: str) -> None:
    for text in (
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "execute", "params": {"code": code, "tags": tags}}),
        json.dumps(
            {"jsonrpc": "2.0", "id": 1, "method": "execute", "params": {"code": code, "tags": tags}},
            ensure_ascii=False,
        ),
    ):
        request = accepted(text.encode())
        assert isinstance(request.params, Execute)
        assert (request.params.code, request.params.tags) == (code, tags)


@given(line=st.binary(max_size=200) | st.text(max_size=60).map(lambda text: json.dumps(text)[1:-1].encode()))
def test_any_line_of_bytes_becomes_a_request_or_a_reply(line: bytes) -> None:
    parsed = parse(line)
    if isinstance(parsed, Rejected):
        reply = json.loads(messages.render_error(parsed.id, parsed.code, parsed.message))
        assert reply["error"]["code"] == parsed.code


@given(
    st.text(
        st.characters(codec="utf-8") | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n"),
        max_size=40,
    )
)
def test_whatever_text_is_rendered_the_message_is_one_line(text: str) -> None:
    for line in (
        messages.render_result("i", {"stdout": text}),
        messages.render_notification("stream", {"id": text, "text": text}),
        messages.render_error(text, -32603, text),
    ):
        decoded = line.decode()
        assert len(decoded.splitlines()) == 1
        assert decoded.endswith("\n")


@given(st.text(max_size=40))
def test_rendered_text_is_read_back_as_it_was(text: str) -> None:
    representable = text.encode("utf-8", "backslashreplace").decode()
    assert json.loads(messages.render_result(1, {"stdout": representable}))["result"] == {
        "stdout": representable
    }
    assert json.loads(messages.render_error(1, -32603, text))["error"]["message"] == representable
