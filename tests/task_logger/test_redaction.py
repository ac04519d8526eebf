"""What is found in a text and what is not; how long output is searched; whose key the placeholders have."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_kernel.isolation import looks_secret
from task_logger import TaskLogger
from task_logger.event_log import EventLog
from task_logger.placeholders import WITHHELD, placeholder_for, plan_key, restore
from task_logger.record import Artifact, ExecutionOutcome, ExecutionRequest, LateOutput, TaskIds, elide
from task_logger.redaction import Redactor
from task_logger.secret_rules import RULES
from task_logger.secret_search import Secrets
from task_logger.secret_values import is_worth_hiding, known_secret, names_a_secret
from task_logger.session_log import SessionLog
from task_logger.task import check_settings
from task_logger.writer import new_session_id

_KEY = b"k" * 32
_TASK = TaskIds(plan_id="P", task_id="T-1", task_name="name")
_PASSWORD = "pa55/wörd+\"quoted'\\&<n>"

_EXAMPLES = {
    "private_key": [
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEabcd\n-----END RSA PRIVATE KEY-----"
    ],
    "aws_access_key_id": ["AKIAIOSFODNN7EXAMPLE", "id=ASIAIOSFODNN7EXAMPLE;"],
    "aws_secret_key": [
        "AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE1",
        "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE1",
        '"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE1"'.replace("Secret", "secret"),
    ],
    "github_token": ["ghp_" + "aB3" * 12, "github_pat_" + "aB3_" * 20],
    "gitlab_token": ["glpat-" + "aB3-" * 5, "glrt-" + "aB3" * 8],
    "sk_key": ["sk-" + "aB3" * 16, "sk-proj-" + "aB3" * 16, "sk-ant-api03-" + "aB3" * 10],
    "stripe_key": ["sk_live_" + "aB3" * 8, "rk_test_" + "aB3" * 8],
    "slack_token": ["xoxb-123456789012-abcdefABCDEF", "xapp-1-A0123-456"],
    "slack_webhook": ["https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXX"],
    "google_key": ["AIza" + "aB3-_" * 7],
    "google_oauth": ["ya29." + "aB3-_" * 7],
    "huggingface_token": ["hf_" + "aB3" * 11],
    "npm_token": ["npm_" + "aB3" * 12],
    "pypi_token": ["pypi-AgE" + "aB3" * 20],
    "sendgrid_key": ["SG." + "a" * 22 + "." + "b" * 43],
    "groq_key": ["gsk_" + "aB3" * 17],
    "digitalocean_token": ["dop_v1_" + "0a" * 32],
    "age_key": ["AGE-SECRET-KEY-1" + "QP" * 29],
    "azure_key": ["AccountName=x;AccountKey=" + "aB3/" * 21 + "ab=="],
    "jwt": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.abc-_123", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxMjMifQ."],
    "bearer_token": ["bearer abcdefgh12345678", "Bearer  abc.def~ghi/0123456789=="],
    "authorization": ["Authorization: Basic dXNlcjpwYXNz", "{'authorization': 'token abcdefgh'}"],
    "url_password": ["redis://:hunter2@localhost:6379/0", "https://bob:p%40ss@example.org/x"],
}

_INNOCENT = [
    "https://example.org:8080/a@b",
    "ftp://user:{password}@host and http://user:$PASS@host and https://user:password@host",
    "sk-learn, task-oriented, risk-adjusted, sk-toggleable__content-container",
    "bearer authentication-scheme is described in RFC 6750",
    "the marker -----BEGIN PRIVATE KEY----- stands before a key",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "019a9f0c-5a3c-7c1e-9d1e-0b6f3c2d1a5e ghp_short AKIA AKIAshort",
    "eyJ is how base64 of a JSON object begins; eyJhbGciOiJub25lIn0 alone is none",
]


def _redactor(tmp_path: Path, own: dict[str, Any] | None = None, **environment: str) -> Redactor:
    return Redactor(Secrets(environment, own), lambda: _KEY, lambda: (tmp_path / "spool").open("w+b"))


def test_every_rule_has_examples_and_is_in_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert rule.name in _EXAMPLES
        assert f"`{rule.name}`" in docs


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in _EXAMPLES.items() for text in texts]
)
def test_a_well_known_token_is_found_by_its_rule_and_by_the_pre_filter(name: str, text: str) -> None:
    secrets = Secrets({})
    assert (
        name
        in {place.name for place in secrets.find(f"before {text} after")}
        | {place.name for place in secrets.find(text)}
        or name == "authorization"
    )
    for form in (text.encode(), orjson.dumps({"a": text}), json.dumps(text).encode()):
        assert secrets.may_be_in(form)


@pytest.mark.parametrize("name", _EXAMPLES)
def test_a_token_is_found_right_behind_an_escape_or_a_colour(name: str) -> None:
    for text in _EXAMPLES[name]:
        alone = Secrets({}).find(text)
        for before in (
            "\\n",
            "\\\\t",
            "\\x00",
            "\\u003d",
            "%3D",
            "=3D",
            "\x1b[m",
            "\x1b[1;33m",
            "\\x1b[38;5;241m",
        ):
            found = Secrets({}).find(before + text)
            assert [place.value for place in found] == [place.value for place in alone], before


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("aws_secret_access_key\x1b[39m = \x1b[33m'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE1'", "bPxRfi"),
        ("aws_secret_access_key=b'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE1'", "bPxRfi"),
        ('"Authorization"\x1b[0m: \x1b[32m"Basic dXNlcjpwYXNz"', "dXNlcjpwYXNz"),
        ("postgres://admin:P@ssw0rd#1@db/shop", "ssw0rd"),
        ("done" + "ghp_" + "aB3" * 12, "aB3aB3"),
    ],
)
def test_a_secret_is_found_whatever_shows_it(tmp_path: Path, text: str, secret: str) -> None:
    assert secret not in _redactor(tmp_path).text(text)


@pytest.mark.parametrize(
    "line",
    ["{number}:{line}\n", "{number:6}\t{line}\n", "---> {number} {line}\n", "{line}<br/>", "\x1b[2m{line}\n"],
)
def test_a_part_of_a_private_key_is_found_behind_line_numbers_and_marks(tmp_path: Path, line: str) -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", *("MIIEvQ" + "aB3/" * 14 for _ in range(4))]
    text = "".join(line.format(number=number, line=one) for number, one in enumerate(lines, 1))
    assert "aB3" not in _redactor(tmp_path).text(text)


@pytest.mark.parametrize("text", _INNOCENT)
def test_what_only_looks_like_a_token_stays(text: str) -> None:
    assert Secrets({}).find(text) == []


@pytest.mark.parametrize(
    "name", ["GITHUB_TOKEN", "db_password", "MY_APIKEY", "X_PWD", "CLIENT_SECRET_2", "A_AUTH"]
)
def test_whatever_a_worker_is_not_given_is_hidden(name: str) -> None:
    assert looks_secret(name)
    assert names_a_secret(name)


@given(st.text("ABCDEKNOPRSTWY_", min_size=1, max_size=20))
@settings(max_examples=500)
def test_the_rule_for_names_covers_that_of_the_worker(name: str) -> None:
    assert names_a_secret(name) or not looks_secret(name)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "true",
        "1234567",
        "12345678",
        "/run/secrets/x",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "~/.netrc",
        "https://vault.example/",
        "disabled",
        "aaaaaaaaaa",
    ],
)
def test_short_common_and_public_values_are_no_secrets(value: str) -> None:
    assert not is_worth_hiding(value)
    assert Secrets({"MY_TOKEN": value}).find(f"x {value} y") == []


@pytest.mark.parametrize(
    "value", ["/9j+AbCdEfGhIjKlMnOpQrStUvWxYz0123456789", "/ab/Cd0EfGhIjKlMnOp", "~Xy9!kdk3Lw"]
)
def test_a_secret_that_begins_like_a_path_is_one(value: str) -> None:
    assert [place.value for place in Secrets({"MY_TOKEN": value}).find(f"x {value} y")] == [value]


@pytest.mark.parametrize("setting", ["TASK_LOG_KEY", "TASK_LOG_NEW_KEY", "TASK_LOG_SEAL_KEY"])
def test_the_key_in_a_file_is_hidden_however_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    key = "0f1e2d3c4b5a69788796a5b4c3d2e1f0" * 2
    (tmp_path / "key").write_text(key)
    for path in ("~/key", str(tmp_path / "key")):
        (place, *_) = Secrets({setting: f"file:{path}"}).find(f"x {key} y")
        assert (place.start, place.end, place.name) == (2, 66, setting)


def test_a_key_file_that_is_none_holds_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    for path in (str(tmp_path / "key"), str(tmp_path), "\0"):
        assert Secrets({"TASK_LOG_KEY": f"file:{path}"}).find("x") == []


@pytest.mark.parametrize(
    ("url", "passwords"),
    [
        ("postgres://bob:Tr0ub4dor-x9@db/shop", ["Tr0ub4dor-x9"]),
        ("redis://:Tr0ub4dor%2Fx9@db", ["Tr0ub4dor%2Fx9", "Tr0ub4dor/x9"]),
        ("a://b:Tr0ub4dor-1@c,d://e:Tr0ub4dor-2@f", ["Tr0ub4dor-1", "Tr0ub4dor-2"]),
        ("postgres://bob:Tr0ub@dor-x9@db/shop", ["Tr0ub@dor-x9"]),
        ("postgres://postgres:postgres@db", []),
        ("postgres://bob:${DB_PASSWORD}@db", []),
        ("https://example.org/a:bcdefghijkl@m", []),
    ],
)
def test_the_password_of_a_url_in_any_variable_is_hidden_alone_too(url: str, passwords: list[str]) -> None:
    secrets = Secrets({"DATABASE_URL": url})
    found = [place.value for password in passwords for place in secrets.find(f"x {password} y")]
    assert found == passwords
    assert secrets.find("x postgres bob ${DB_PASSWORD} bcdefghijkl y") == []


def test_the_password_of_a_url_is_put_back(tmp_path: Path) -> None:
    url, code = "postgres://bob:Tr0ub4dor-x9@db/shop", "connect('Tr0ub4dor-x9')"
    kept = _redactor(tmp_path, DATABASE_URL=url).text(code)
    assert "⟨secret:DATABASE_URL:" in kept
    assert restore(kept, {"DATABASE_URL": url}, _KEY) == (code, [])


def _forms(value: str) -> dict[str, str]:
    data = value.encode()
    return {
        "as it is": value,
        "repr": repr(value),
        "repr of bytes": repr(data),
        "JSON": json.dumps(value),
        "JSON of PHP": json.dumps(value).replace("/", "\\/"),
        "ASCII": ascii(value),
        "HTML": html.escape(value),
        "HTML of Jinja": html.escape(value).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
        "JSON, not ASCII": json.dumps(value, ensure_ascii=False),
        "a repr within JSON": json.dumps({"out": repr(value)}),
        "URL": f"?q={quote(value, safe='')}&x",
        "URL path": quote(value),
        "hex": data.hex(),
        "HEX": data.hex().upper(),
        **{
            f"base64 {before} {after}": encode(b"x" * before + data + b"y" * after).decode()
            for before in range(3)
            for after in range(3)
            for encode in (base64.b64encode,)
        },
        **{
            f"base64url {before}": base64.urlsafe_b64encode(b"x" * before + data + b"y").decode()
            for before in range(3)
        },
    }


@pytest.mark.parametrize(
    "value",
    [
        _PASSWORD,
        "plainTOKEN1234567",
        "key with spaces and é",
        "密码长度应该足够了",
        'it\'s "quoted" & </deep>',
    ],
)
def test_a_known_value_is_found_in_every_form(tmp_path: Path, value: str) -> None:
    redactor = _redactor(tmp_path, MY_TOKEN=value)
    secret = known_secret("MY_TOKEN", value)
    for name, text in _forms(value).items():
        kept = redactor.text(f"<{text}>")
        assert "⟨secret:MY_TOKEN" in kept, name
        assert not any(form in kept for form in (*secret.texts, *secret.hexes)), name
        assert not any(encoded.text in kept for encoded in secret.encoded), name
        assert redactor.secrets.may_be_in(orjson.dumps(text)), name


@given(before=st.binary(max_size=40), value=st.text(min_size=8, max_size=40), after=st.binary(max_size=40))
@settings(max_examples=200)
def test_nothing_of_a_value_is_left_in_any_base64_text(before: bytes, value: str, after: bytes) -> None:
    secrets = Secrets({}, {"IT": value})
    text = base64.b64encode(before + value.encode() + after).decode()
    places = secrets.find(text)
    assert len(places) >= 1
    first, last = places[0].start * 6, places[-1].end * 6
    assert first <= len(before) * 8
    assert last >= (len(before) + len(value.encode())) * 8


def test_the_lines_of_a_value_are_hidden_one_by_one(tmp_path: Path) -> None:
    lines = ["-----BEGIN THING-----", "AbCdEfGh1234567890aa", "BbCdEfGh1234567890bb"]
    redactor = _redactor(tmp_path, THE_KEY="\n".join(lines))
    assert redactor.text(f"    {lines[1]}\n    {lines[2]}") == "".join(
        f"    {placeholder_for('THE_KEY', line, _KEY)}{end}"
        for line, end in ((lines[1], "\n"), (lines[2], ""))
    )


def test_a_secret_within_a_larger_one_is_hidden_with_it(tmp_path: Path) -> None:
    token = "ghp_" + "aB3" * 12
    redactor = _redactor(tmp_path, A_TOKEN=token[4:20], B_TOKEN=token)
    assert redactor.text(token) == placeholder_for("B_TOKEN", token, _KEY)


def test_restoring_needs_the_right_name_and_the_right_value(tmp_path: Path) -> None:
    redactor = _redactor(tmp_path, MY_TOKEN="abcdefgh1234")
    kept = redactor.text("x = 'abcdefgh1234'; y = 'ghp_" + "aB3" * 12 + "'")
    restored, missing = restore(kept, {"MY_TOKEN": "abcdefgh1234"}, _KEY)
    assert restored.startswith("x = 'abcdefgh1234'; y = '⟨secret:github_token:")
    assert len(missing) == 1
    assert restore(kept, {"MY_TOKEN": "abcdefgh1234"}, b"o" * 32)[0] == kept


def _in_pieces(data: bytes, tmp_path: Path, redactor: Redactor) -> tuple[Artifact, Artifact]:
    content = io.BytesIO(data)
    artifact = Artifact(
        field="stdout", sha256=sha256(data).hexdigest(), bytes=len(data), mime="text/plain", content=content
    )
    outcome = ExecutionOutcome(
        status="ok",
        route="local",
        isolation="none",
        elapsed_ms=0,
        stdout=elide(data[: 64 << 10], data[-(64 << 10) :], total_bytes=len(data))[0],
        artifacts=(artifact,),
    )
    kept = redactor.outcome(outcome)
    if kept is not outcome:
        after = kept.artifacts[0].content
        assert after is not None
        assert not isinstance(after, bytes)
        after.seek(0)
        data = after.read()
        assert kept.stdout == elide(data[: 64 << 10], data[-(64 << 10) :], total_bytes=len(data))[0]
        after.close()
        assert kept.artifacts[0].sha256 == sha256(data).hexdigest()
        assert kept.artifacts[0].bytes == len(data)
        return artifact, Artifact(field="", sha256="", bytes=0, mime="", content=data)
    return artifact, artifact


@pytest.mark.parametrize(
    "place", [0, (1 << 20) - 70_000, (1 << 20) - 20, (1 << 20) - 65_536 - 10, 65_526, (2 << 20) - 5]
)
@pytest.mark.parametrize("filler", [b"o", "é".encode()])
def test_a_secret_is_found_wherever_it_is_in_long_output(tmp_path: Path, place: int, filler: bytes) -> None:
    secret = "sécret-wörd-1234567890"
    redactor = _redactor(tmp_path, MY_TOKEN=secret)
    fill = (filler * (3 << 20))[: 3 << 20]
    data = fill[: place // 2 * 2] + secret.encode() + fill[place // 2 * 2 :]
    _, kept = _in_pieces(data, tmp_path, redactor)
    assert kept.content == data.replace(secret.encode(), placeholder_for("MY_TOKEN", secret, _KEY).encode())


def test_output_without_secrets_is_kept_as_the_same_file(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) + b"\xff\xc3" * (1 << 20)
    artifact, kept = _in_pieces(data, tmp_path, _redactor(tmp_path, MY_TOKEN="abcdefgh1234"))
    assert kept is artifact
    assert not (tmp_path / "spool").exists()


def test_bytes_that_are_no_text_stay_as_they_are_around_a_secret(tmp_path: Path) -> None:
    redactor = _redactor(tmp_path, MY_TOKEN="abcdefgh1234")
    data = bytes(range(256)) * 9000
    _, kept = _in_pieces(data + b"abcdefgh1234" + data, tmp_path, redactor)
    assert kept.content == data + placeholder_for("MY_TOKEN", "abcdefgh1234", _KEY).encode() + data


def test_words_beside_output_that_is_lost_are_withheld(tmp_path: Path) -> None:
    text = elide(b"o " * 40_000 + b"abcdef", b"gh1234 " + b"o " * 40_000, total_bytes=1 << 21)[0]
    outcome = ExecutionOutcome(status="ok", route="local", isolation="none", elapsed_ms=0, stdout=text)
    kept = _redactor(tmp_path, MY_TOKEN="abcdefgh1234").outcome(outcome)
    assert "abcdef" not in kept.stdout
    assert "gh1234" not in kept.stdout
    assert "bytes left out; all 2097152 are in the artifact" in kept.stdout


def _request(seq: int, session_id: str, code: str = "x = 1", **fields: Any) -> ExecutionRequest:
    return ExecutionRequest(
        code=code, session_id=session_id, seq=seq, task=_TASK, timestamp="2026-11-20T10:00:00.000Z", **fields
    )


def test_every_text_of_a_record_is_searched(tmp_path: Path) -> None:
    secret = "abcdefgh1234"
    session_id = new_session_id()
    log = SessionLog(
        root=str(tmp_path), task=_TASK, session_id=session_id, redactor=_redactor(tmp_path, MY_TOKEN=secret)
    )
    request = _request(1, session_id, f"'{secret}'", tags={secret: [{"k": secret.encode()}]}, actor=secret)
    log.begin(request)
    outcome = ExecutionOutcome(
        status="ok",
        route="local",
        isolation="none",
        elapsed_ms=0,
        result={"application/json": {"deep": [{secret: float("nan")}]}, f"text/{secret}": "x"},
        late_output=(LateOutput(name="stderr", text=secret, seq=None),),
    )
    record = log.finish(request, outcome)
    log.close()
    assert record.request is request
    assert record.outcome.late_output[0].text == secret
    line = (tmp_path / "P" / "1.name.jsonl").read_bytes()
    assert secret.encode() not in line
    assert json.loads(line)["result"]["application/json"]["deep"][0].popitem()[1] == {
        "type": "float",
        "text": "nan",
    }


def test_a_line_that_is_kept_in_the_pending_file_is_redacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = new_session_id()
    log = SessionLog(
        root=str(tmp_path),
        task=_TASK,
        session_id=session_id,
        redactor=_redactor(tmp_path, MY_TOKEN="abcdefgh1234"),
    )
    (tmp_path / "P" / "1.name.jsonl").rename(tmp_path / "P" / "elsewhere")
    (tmp_path / "P" / "1.name.jsonl").mkdir()
    request = _request(1, session_id, "print('abcdefgh1234')")
    log.begin(request)
    outcome = ExecutionOutcome(
        status="ok", route="local", isolation="none", elapsed_ms=0, stdout="abcdefgh1234"
    )
    assert log.finish(request, outcome).head is None
    (pending,) = (tmp_path / "P" / "pending").iterdir()
    assert b"abcdefgh1234" not in pending.read_bytes()
    assert "⟨secret:MY_TOKEN:".encode() in pending.read_bytes()
    (tmp_path / "P" / "1.name.jsonl").rmdir()
    log.close()


def test_lines_of_other_programs_and_events_are_redacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "abcdefgh1234")
    with TaskLogger("P", 1, "name", log_dir=tmp_path) as logger:
        logger.write({"code": "abcdefgh1234", "tags": {"a": "abcdefgh1234"}, "mine": ["abcdefgh1234"]})
        logger.write({"stdout": "o " * 700_000 + "abcdefgh1234" + "o " * 100_000})
    redactor = _redactor(tmp_path, MY_TOKEN="abcdefgh1234")
    events = EventLog(_TASK, lambda: check_settings(tmp_path), redactor=lambda settings: redactor)
    assert events.write({"kind": "event", "name": "n", "value": {"abcdefgh1234": 1}})
    events.close()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"abcdefgh1234" not in path.read_bytes(), path


def test_whoever_is_first_makes_the_key_of_a_plan(tmp_path: Path) -> None:
    key = plan_key(str(tmp_path / "P"))
    assert len(key) == 32
    assert plan_key(str(tmp_path / "P")) == key
    path = tmp_path / "P" / "keys" / "redaction.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_plan_whose_key_cannot_be_kept_is_redacted_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "P").write_text("a file where the folder should be")
    redactor = Redactor(
        Secrets({"MY_TOKEN": "abcdefgh1234"}), lambda: plan_key(str(tmp_path / "P")), io.BytesIO
    )
    assert re.fullmatch(r"⟨secret:MY_TOKEN:[0-9a-f]{4}⟩", redactor.text("abcdefgh1234"))
    assert redactor.text("abcdefgh1234") == redactor.text("abcdefgh1234")


def test_an_artifact_that_cannot_be_searched_is_withheld(tmp_path: Path) -> None:
    def no_spool() -> Any:
        raise OSError("no room")

    redactor = Redactor(Secrets({"MY_TOKEN": "abcdefgh1234"}), lambda: _KEY, no_spool)
    data = b"o " * 700_000 + b"abcdefgh1234"
    artifact = Artifact(
        field="stdout",
        sha256=sha256(data).hexdigest(),
        bytes=len(data),
        mime="text/plain",
        content=io.BytesIO(data),
    )
    outcome = ExecutionOutcome(
        status="ok", route="local", isolation="none", elapsed_ms=0, artifacts=(artifact,)
    )
    (kept,) = redactor.outcome(outcome).artifacts
    assert kept.content == WITHHELD.encode()
    assert kept.sha256 == sha256(WITHHELD.encode()).hexdigest()
    assert redactor.failures == ["OSError"]
