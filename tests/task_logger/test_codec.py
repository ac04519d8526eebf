"""What a line holds, whatever an execution did."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_logger import codec
from task_logger.codec import (
    FIRST_PREV,
    EncodedRecord,
    UnreadablePiece,
    complete,
    decode,
    decode_request,
    encode,
    encode_request,
    read_link,
    seal,
    timestamp,
)
from task_logger.errors import BadLine, EncryptedLine, InvalidField, LineTooLarge, UnsupportedSchema
from task_logger.record import (
    Artifact,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    LateOutput,
    NamespaceChanges,
    TaskIds,
)

SCHEMA = json.loads((Path(__file__).parents[1] / "execution.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SESSION_ID = "0190163d-8694-739b-aea5-966c26f8ad91"
TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="user login")
MIB = 1 << 20
FIRST_FIELDS = (
    "plan_id", "task_id", "timestamp", "elapsed_ms", "code", "stdout", "stderr", "success", "added_vars",
    "added_imports",
)  # fmt: skip


def request(**fields: Any) -> ExecutionRequest:
    values: dict[str, Any] = {"code": "x = 1", "session_id": SESSION_ID, "seq": 1, "task": TASK}
    return ExecutionRequest(**{**values, "timestamp": timestamp(0), **fields})


def outcome(**fields: Any) -> ExecutionOutcome:
    values: dict[str, Any] = {"status": "ok", "route": "worker", "isolation": "process", "elapsed_ms": 0.04}
    return ExecutionOutcome(**{**values, **fields})


def line_of(encoded: EncodedRecord) -> bytes:
    """Seal a line and hold it against everything that is promised of every line."""
    line, _ = seal(encoded.body, 1, FIRST_PREV)
    assert len(line) <= 16 * MIB
    text = line.decode()
    assert len(text.splitlines()) == 1
    assert line.count(b"\n") == 1
    fields = json.loads(text)
    VALIDATOR.validate(fields)
    assert tuple(fields)[:10] == FIRST_FIELDS
    assert tuple(fields)[-3:] == ("n", "prev", "hash")
    assert read_link(line[:-1]) is not None
    return line


def fields_of(encoded: EncodedRecord) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(line_of(encoded))
    return fields


def content(encoded: EncodedRecord, field: str) -> bytes:
    (artifact,) = (one for one in encoded.outcome.artifacts if one.field == field)
    data: Any = artifact.content
    assert isinstance(data, bytes)
    assert hashlib.sha256(data).hexdigest() == artifact.sha256
    assert len(data) == artifact.bytes
    return data


def nested(depth: int) -> object:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


any_text = st.text(st.characters(exclude_categories=()), max_size=60)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(any_text, values, max_size=4),
    max_leaves=12,
)


@given(
    code=any_text, stdout=any_text, stderr=any_text, tags=st.dictionaries(any_text, json_values, max_size=3)
)
@settings(max_examples=150)
def test_any_text_and_any_tags_make_a_line_from_which_nothing_is_lost(
    code: str, stdout: str, stderr: str, tags: dict[str, object]
) -> None:
    encoded = encode(request(code=code, tags=tags), outcome(stdout=stdout, stderr=stderr))
    fields = fields_of(encoded)
    for name, text in (("code", code), ("stdout", stdout), ("stderr", stderr)):
        assert fields[name] == text.encode("utf-8", "backslashreplace").decode()
        if name in fields.get("lossy", ()):
            assert content(encoded, name).decode("utf-8", "surrogatepass") == text
        else:
            assert fields[name] == text
    record = decode(line_of(encoded))
    assert record.outcome == encoded.outcome


@given(value=json_values)
@settings(max_examples=150)
def test_a_value_comes_back_equal_or_is_marked(value: object) -> None:
    encoded = encode(request(tags={"value": value}), outcome())
    back = fields_of(encoded)["tags"]["value"]
    assert back == value or "lossy" in fields_of(encoded) or '"type"' in json.dumps(back)


def test_a_small_record_is_kept_as_it_is() -> None:
    changes = NamespaceChanges(added_vars=("x",), variables={"x": {"type": "int"}})
    asked, came = (
        request(tags={"step": "4"}),
        outcome(stdout="1\n", changes=changes, result={"text/plain": "2"}),
    )
    encoded = encode(asked, came)
    assert encoded.outcome is came
    record = decode(line_of(encoded))
    assert record.request == asked
    assert record.outcome == came
    assert record.extra == {}


def test_every_optional_part_of_an_outcome_is_in_the_line_and_comes_back() -> None:
    came = outcome(
        status="crashed",
        error=ExecutionError(type="Crash", message="died", traceback="", signal="SIGSEGV"),
        late_output=(LateOutput(name="stdout", text="late", seq=3), LateOutput(name="stderr", text="x")),
        lossy=("stdout",),
        artifacts=(Artifact(field="stdout", sha256="0" * 64, bytes=3, mime="text/plain"),),
        cpu_ms=1.5,
        peak_rss_bytes=4096,
    )
    encoded = encode(request(actor="python"), came)
    assert encoded.outcome == came
    record = decode(line_of(encoded))
    assert record.outcome == came
    assert record.request.actor == "python"


def test_the_word_null_in_a_text_is_no_reason_to_touch_a_record() -> None:
    came = outcome(stdout="null\n", result={"text/plain": "'null'"})
    assert encode(request(code="x = 'null'", tags={"a": 1.5}), came).outcome is came


def test_notices_are_for_the_caller_and_stay_out_of_the_line() -> None:
    encoded = encode(request(), outcome(stdout="\ud800", notices=("worker restarted",)))
    assert encoded.outcome.notices == ("worker restarted",)
    assert b"restarted" not in line_of(encoded)


@pytest.mark.parametrize(
    "char", ["\x00", "\x0b", "\x0c", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
def test_a_character_that_ends_lines_elsewhere_ends_none_here(char: str) -> None:
    encoded = encode(request(code=char), outcome(stdout=f"a{char}b"))
    assert fields_of(encoded)["stdout"] == f"a{char}b"
    assert encoded.outcome.artifacts == ()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        1 << 64,
        -(1 << 63) - 1,
        pytest.param(10**5000, id="5000 digits"),
        b"\xff",
        {1},
        {1: 2},
        1j,
    ],
)
def test_what_json_cannot_hold_becomes_text_with_its_type(value: object) -> None:
    encoded = encode(
        request(tags={"value": value, "beside": None}), outcome(result={"application/json": [value]})
    )
    fields = fields_of(encoded)
    assert fields["tags"]["value"]["type"] == type(value).__name__
    assert fields["tags"]["value"] == fields["result"]["application/json"][0]
    assert fields["tags"]["beside"] is None
    if isinstance(value, float):
        assert fields["tags"]["value"]["text"] == repr(value)
    elif isinstance(value, int):
        assert int(fields["tags"]["value"]["text"], 0) == value


@pytest.mark.parametrize("value", [(1 << 64) - 1, -(1 << 63), 1e308, 5e-324, True, None, "null", "\u2028"])
def test_what_json_can_hold_is_kept_as_it_is(value: object) -> None:
    assert fields_of(encode(request(tags={"value": value}), outcome()))["tags"] == {"value": value}


@pytest.mark.parametrize("stdout", ["", "null", "x" * 10_000])
def test_a_nan_in_the_description_of_a_variable_is_not_silently_null(stdout: str) -> None:
    changes = NamespaceChanges(added_vars=("x",), variables={"x": {"type": "float", "mean": math.nan}})
    described = fields_of(encode(request(), outcome(stdout=stdout, changes=changes)))["variables"]["x"]
    assert described["mean"] == {"type": "float", "text": "nan"}


def test_a_lone_surrogate_is_shown_escaped_and_kept_exactly() -> None:
    encoded = encode(request(code="print('\ud800')"), outcome(stdout="\ud800\n"))
    line = line_of(encoded)
    assert b"\\ud800" not in line.replace(b"\\\\ud800", b"")
    fields = json.loads(line)
    assert fields["stdout"] == "\\ud800\n"
    assert fields["lossy"] == ["code", "stdout"]
    assert content(encoded, "stdout").decode("utf-8", "surrogatepass") == "\ud800\n"


def test_names_and_tags_with_surrogates_are_kept_exactly_as_json() -> None:
    changes = NamespaceChanges(added_vars=("\udcff",), variables={"\udcff": {"type": "int"}})
    encoded = encode(request(tags={"a": "\ud8ff"}), outcome(changes=changes))
    fields = fields_of(encoded)
    assert fields["added_vars"] == ["\\udcff"]
    assert set(fields["lossy"]) == {"added_vars", "variables", "tags"}
    assert json.loads(content(encoded, "added_vars")) == ["\udcff"]
    assert json.loads(content(encoded, "tags")) == {"a": "\ud8ff"}


@pytest.mark.parametrize("field", ["stdout", "stderr"])
def test_a_text_over_a_mebibyte_keeps_its_ends_and_is_whole_in_an_artifact(field: str) -> None:
    text = "".join(f"line {number} é\n" for number in range(100_000))
    encoded = encode(request(), outcome(**{field: text}))
    kept = fields_of(encoded)[field]
    assert len(kept) < 140_000
    assert kept.startswith("line 0 é\n")
    assert kept.endswith("line 99999 é\n")
    assert "bytes left out" in kept
    assert content(encoded, field).decode() == text


def test_a_large_code_error_result_or_late_output_is_shortened_too() -> None:
    big = "z" * (MIB + 1)
    error = ExecutionError(type="E", message=big, traceback=big)
    late = (LateOutput(name="stdout", text=big),)
    result = {"text/plain": big, "image/png": big}
    encoded = encode(request(code=big), outcome(status="error", error=error, result=result, late_output=late))
    assert len(line_of(encoded)) < MIB
    for field in ("code", "error.message", "error.traceback", "result.text/plain", "result.image/png"):
        assert content(encoded, field).decode() == big
    assert content(encoded, "late_output.0.text").decode() == big
    assert "image/png" not in (encoded.outcome.result or {})


def test_no_line_exceeds_sixteen_mebibytes_and_nothing_is_dropped() -> None:
    nuls = "\0" * MIB  # six bytes of JSON each
    error = ExecutionError(type="E", message=nuls, traceback=nuls)
    names = tuple(f"name_{number:06d}" for number in range(200_000))
    changes = NamespaceChanges(added_vars=names, variables={name: {"type": "int"} for name in names})
    asked = request(code=nuls, tags={"big": ["x" * 1000] * 20_000})
    encoded = encode(asked, outcome(status="error", stdout=nuls, stderr=nuls, error=error, changes=changes))
    fields = fields_of(encoded)
    moved = {one.field for one in encoded.outcome.artifacts}
    assert json.loads(content(encoded, "tags")) == asked.tags
    for name, value in (("code", nuls), ("stdout", nuls), ("stderr", nuls)):
        assert content(encoded, name).decode() == value if name in moved else fields[name] == value
    for name, values in (("added_vars", list(names)), ("variables", changes.variables)):
        assert json.loads(content(encoded, name)) == values if name in moved else fields[name] == values


@pytest.mark.parametrize("depth", [10, 200, *range(235, 256), 1000, 100_000])
def test_a_deep_value_is_kept_or_becomes_its_json_text(depth: int) -> None:
    encoded = encode(request(tags={"deep": nested(depth)}), outcome())
    line = line_of(encoded)
    if shutil.which("jq"):
        subprocess.run(["jq", "-e", ".tags"], input=line, capture_output=True, check=True)
    assert b"bottom" in line


def test_a_value_that_contains_itself_is_recorded() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    assert b"contains itself" in line_of(encode(request(tags={"cycle": cycle}), outcome()))


def test_a_hundred_thousand_keys_are_kept() -> None:
    tags = {f"key {number}": number for number in range(100_000)}
    assert fields_of(encode(request(tags=tags), outcome()))["tags"] == tags


def test_a_repr_that_raises_does_not_break_the_line() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

    tag = fields_of(encode(request(tags={"x": Hostile()}), outcome()))["tags"]["x"]
    assert tag == {"type": "Hostile", "text": "<Hostile whose repr raised RuntimeError>"}


def test_jq_pandas_duckdb_like_readers_and_splitlines_all_count_the_same(tmp_path: Path) -> None:
    texts = ["\u2028", "\x85", "\0", "\ud800", "\r\n\x0b\x0c\x1c", "é" * 10, "\\ud800", '"}\n{"']
    prev, lines = FIRST_PREV, []
    for number, text in enumerate(texts, 1):
        asked = request(code=text, seq=number, tags={"nan": math.nan, "big": 2**70, text: text})
        line, prev = seal(encode(asked, outcome(stdout=text)).body, number, prev)
        lines.append(line)
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join(lines))
    assert len(log.read_text(encoding="utf-8").splitlines()) == len(texts)
    if shutil.which("jq"):
        found = subprocess.run(["jq", "-c", ".", log], capture_output=True, check=True)
        assert found.stdout.count(b"\n") == len(texts)
    import pandas

    assert len(pandas.read_json(BytesIO(log.read_bytes()), lines=True)) == len(texts)


def test_sha256sum_confirms_a_line(tmp_path: Path) -> None:
    line, digest = seal(encode(request(), outcome()).body, 1, FIRST_PREV)
    log = tmp_path / "log.jsonl"
    log.write_bytes(line)
    checked = subprocess.run(
        f"head -1 {log} | head -c -76 | sha256sum", shell=True, capture_output=True, check=True
    )
    assert checked.stdout.split()[0].decode() == digest == json.loads(line)["hash"]


def test_recovered_stands_before_the_chain_fields() -> None:
    line, _ = seal(
        encode(request(), outcome()).body, 3, "a" * 64, [UnreadablePiece(10, 20), UnreadablePiece(40, 0)]
    )
    fields = json.loads(line)
    VALIDATOR.validate(fields)
    assert tuple(fields)[-4:] == ("recovered", "n", "prev", "hash")
    assert fields["recovered"] == [{"at": 10, "bytes": 20}, {"at": 40, "bytes": 0}]
    link = read_link(line[:-1])
    assert link is not None
    assert (link.n, link.prev) == (3, "a" * 64)


@pytest.mark.parametrize("position", range(0, 700, 23))
def test_any_changed_byte_is_found_by_the_hash(position: int) -> None:
    line = bytearray(line_of(encode(request(), outcome()))[:-1])
    position %= len(line)
    line[position] ^= 1
    assert read_link(bytes(line)) is None


def test_fields_of_a_newer_version_are_kept() -> None:
    body = encode(request(), outcome()).body + b',"novel":{"a":1},"later":[{"text/plain":"x"}]'
    record = decode(seal(body, 1, FIRST_PREV)[0], "some/path")
    assert record.extra == {"novel": {"a": 1}, "later": [{"text/plain": "x"}]}
    assert record.head is not None
    assert record.head.path == "some/path"


def test_another_major_version_is_a_named_error() -> None:
    body = encode(request(), outcome()).body.replace(b'"schema":1', b'"schema":2')
    with pytest.raises(UnsupportedSchema, match="schema 2") as caught:
        decode(seal(body, 1, FIRST_PREV)[0])
    assert caught.value.version == 2


def test_an_encrypted_line_is_a_named_error() -> None:
    with pytest.raises(EncryptedLine):
        decode(b'{"enc":"abc"}')


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not JSON"),
        (b"[1]", "no object"),
        (b"{}", "plan_id"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a":NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"plan_id":1}', "plan_id must be a text, not 1"),
    ],
)
def test_what_is_no_line_is_a_bad_line_that_says_why(line: bytes, says: str) -> None:
    with pytest.raises(BadLine, match=says):
        decode(line)


@pytest.mark.parametrize("name", FIRST_FIELDS)
def test_a_line_with_a_field_of_the_wrong_type_is_named(name: str) -> None:
    fields = json.loads(line_of(encode(request(), outcome())))
    with pytest.raises(BadLine, match=name):
        decode(json.dumps({**fields, name: {"wrong": True}}).encode())


@given(code=any_text, tags=st.dictionaries(any_text, any_text | st.integers(-5, 5) | st.none(), max_size=3))
def test_a_request_comes_back_exactly(code: str, tags: dict[str, object]) -> None:
    asked = request(code=code, tags=tags, time_limit_s=1.5, allow_input=True, actor="mcp")
    data = encode_request(asked)
    assert b"\n" not in data
    assert decode_request(data) == asked


def test_a_request_with_tags_that_are_no_json_comes_back_with_their_text() -> None:
    asked = request(tags={"nan": math.nan, "big": 2**70, "none": None})
    back = decode_request(encode_request(asked))
    assert back.tags == {
        "nan": {"type": "float", "text": "nan"},
        "big": {"type": "int", "text": str(2**70)},
        "none": None,
    }


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"nonsense", b'{"plan_id":1}', b"\xff"])
def test_what_is_no_request_is_a_bad_line(data: bytes) -> None:
    with pytest.raises(BadLine):
        decode_request(data)


def completed(mapping: dict[str, object], **more: Any) -> dict[str, Any]:
    body = complete(mapping, task=TASK, session_id=SESSION_ID, seq=4, timestamp=timestamp(0), **more)
    return fields_of(EncodedRecord(body, outcome()))


def test_a_program_may_leave_out_all_fields() -> None:
    fields = completed({})
    assert (fields["plan_id"], fields["seq"], fields["status"], fields["success"]) == ("P-1", 4, "ok", True)


def test_a_program_may_give_fields_of_its_own_and_any_value_json_can_hold() -> None:
    fields = completed(
        {"code": "1/0", "success": False, "mine": {"a": [1, 2.5, None]}, "tags": {"x": math.inf}}
    )
    assert fields["status"] == "error"
    assert fields["mine"] == {"a": [1, 2.5, None]}
    assert fields["tags"] == {"x": {"type": "float", "text": "inf"}}


@pytest.mark.parametrize("name", ["a\ud800", 5, None])
def test_a_field_needs_a_name_that_a_line_can_hold(name: Any) -> None:
    with pytest.raises(InvalidField, match="named by a text"):
        completed({name: 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("plan_id", 1), ("timestamp", "yesterday"), ("elapsed_ms", -1), ("elapsed_ms", True),
        ("elapsed_ms", math.nan), ("success", 1), ("added_vars", "x"), ("added_vars", [1]), ("seq", 0),
        ("seq", 1.0), ("seq", 2**64), ("elapsed_ms", 2**64),
        ("session_id", "x"), ("route", "moon"), ("status", "fine"), ("result", "2"), ("error", {"type": "E"}),
        ("variables", {"x": 1}), ("artifacts", [{}]), ("tags", []), ("schema", 2), ("n", 1),
        ("prev", "0" * 64),
        ("hash", "x"), ("recovered", []), ("lossy", "stdout"), ("late_output", ["x"]), ("cpu_ms", "1"),
        ("diff_complete", None),
    ],
)  # fmt: skip
def test_a_program_that_gives_a_wrong_value_is_told_which(field: str, value: object) -> None:
    with pytest.raises(InvalidField, match=f"field {field} must be") as caught:
        completed({field: value})
    assert caught.value.field == field


def test_success_and_status_may_not_contradict_each_other() -> None:
    with pytest.raises(InvalidField, match="success"):
        completed({"status": "error", "success": True})


def test_what_a_programs_line_cannot_hold_goes_to_its_store_or_is_refused() -> None:
    stored: list[Artifact] = []
    big = "x" * (2 * MIB)
    fields = completed({"stdout": big}, store=stored.append)
    assert [one.field for one in stored] == ["stdout"] == [one["field"] for one in fields["artifacts"]]
    with pytest.raises(LineTooLarge, match="stdout"):
        completed({"stdout": big})


@pytest.mark.parametrize(
    ("now_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_770_000_000_999_999_999, "2026-02-02T02:40:00.999Z"),
        (1_770_000_001_000_000_000, "2026-02-02T02:40:01.000Z"),
        (951_782_400_001_000_000, "2000-02-29T00:00:00.001Z"),
    ],
)
def test_a_time_is_utc_with_milliseconds(now_ns: int, text: str) -> None:
    assert timestamp(now_ns) == text


def test_the_encoded_outcome_is_what_the_line_says_when_text_had_to_be_replaced() -> None:
    encoded = encode(request(), outcome(stdout="\ud800", stderr="plain"))
    assert replace(encoded.outcome, artifacts=(), lossy=()) == outcome(stdout="\\ud800", stderr="plain")
    assert codec.decode(line_of(encoded)).outcome == encoded.outcome
