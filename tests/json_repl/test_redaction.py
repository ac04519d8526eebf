"""200 planted secrets, ten shapes: none is in anything that is kept, whatever becomes of the execution."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import string
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from json_repl import Session
from json_repl.observed_log import ObservedLog
from task_logger import event, task_context
from task_logger.errors import ConfigurationError
from task_logger.log_file import LogFile
from task_logger.placeholders import plan_key, restore
from task_logger.record import ExecutionOutcome, TaskIds
from task_logger.secret_search import Place
from task_logger.settling import settle

_LETTERS = string.ascii_letters + string.digits
_EACH = 20
_IDS: dict[str, Any] = {"plan_id": "P-1", "task_id": "T-7", "task_name": "redaction"}

Route = Literal["local", "worker"]
ROUTES: tuple[Route, ...] = ("local", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One secret: `code` is an expression for a text that holds it, `parts` what must not be found.

    `name` is its variable in the environment, `None` where it has none; then the code has it in clear.
    """

    shape: str
    code: str
    parts: tuple[str, ...]
    name: str | None = None
    value: str = ""


def _some(rng: random.Random, length: int, characters: str = _LETTERS) -> str:
    return "".join(rng.choice(characters) for _ in range(length))


def _jwt(rng: random.Random) -> str:
    parts = [
        {"alg": "HS256", "typ": "JWT"},
        {"sub": _some(rng, 12), "iat": rng.randrange(1 << 31)},
    ]
    signed = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*signed, _some(rng, 43, _LETTERS + "-_")])


def _pem(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    lines = [_some(rng, 64, _LETTERS + "+/") for _ in range(6)] + [_some(rng, 30) + "=="]
    kind = rng.choice(["", "RSA ", "EC ", "OPENSSH "])
    text = "\n".join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----", ""])
    return text, tuple(lines)


def _from_environment(shape: str, name: str, value: str, expression: str) -> Planted:
    code = f"(lambda v: {expression})(__import__('os').environ[{name!r}])"
    return Planted(shape=shape, code=code, parts=(value,), name=name, value=value)


def _in_clear(shape: str, text: str, *parts: str) -> Planted:
    return Planted(shape=shape, code=repr(text), parts=parts)


def _planted() -> list[Planted]:
    rng = random.Random(20261120)
    found: list[Planted] = []
    odd = _LETTERS + "+/=-_.!$&\"'\\ é"
    for number in range(_EACH):
        value = _some(rng, 3) + _some(rng, rng.randrange(9, 40), odd).strip() + _some(rng, 6)
        found.append(_from_environment("environment value", f"PLANTED_{number}_TOKEN", value, "v"))
        token = rng.choice(["ghp_", "gho_", "ghs_"]) + _some(rng, 36)
        if number % 4 == 0:
            token = f"github_pat_{_some(rng, 22)}_{_some(rng, 59)}"
        found.append(_in_clear("GitHub token", f"git clone with {token} now", token))
        key_id = rng.choice(["AKIA", "ASIA"]) + _some(rng, 16, string.ascii_uppercase + "234567")
        secret = "a1B" + _some(rng, 37, _LETTERS + "/+")
        texts = (
            f"aws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n",
            json.dumps({"AccessKeyId": key_id, "SecretAccessKey": secret}),
            f"export AWS_SECRET_ACCESS_KEY={secret} AWS_ACCESS_KEY_ID={key_id}",
            repr((key_id, secret)),
        )
        found.append(_in_clear("AWS key pair", texts[number % 4], key_id, secret))
        sk = rng.choice(["sk-", "sk-proj-", "sk-ant-api03-"]) + _some(rng, 48) + "7x9"
        found.append(_in_clear("sk-… key", f"client = Client(api_key={sk!r})", sk))
        jwt = _jwt(rng)
        found.append(_in_clear("JWT", f"cookie: session={jwt}; path=/", *jwt.split(".")[1:]))
        pem, lines = _pem(rng)
        found.append(_in_clear("PEM private key", pem, *lines))
        password = _some(rng, rng.randrange(6, 20), _LETTERS + "!-_.~")
        url = f"postgresql://bob:{password}q7@db.example.org:5432/shop?x=1"
        found.append(_in_clear("URL with password", url, f"{password}q7"))
        bearer = _some(rng, 40, _LETTERS + "-_.") + "4"
        headers = (f"Authorization: Bearer {bearer}", json.dumps({"Authorization": f"Bearer {bearer}"}))
        found.append(_in_clear("bearer header", headers[number % 2], bearer))
        value = _some(rng, 20, _LETTERS + "+/!")
        encode = ("b64encode", "urlsafe_b64encode")[number % 2]
        expression = (
            f"__import__('base64').{encode}(b'x' * {number % 3} + v.encode() + b'y' * {number % 5}).decode()"
        )
        found.append(
            _from_environment("base64 of a known value", f"PLANTED_B64_{number}_PASSWORD", value, expression)
        )
        value = _some(rng, 24)
        found.append(_from_environment("split over two writes", f"PLANTED_SPLIT_{number}_SECRET", value, "v"))
    assert len(found) == 200
    return found


def _hides(planted: Planted, data: bytes) -> list[str]:
    """The parts of a secret that are in some bytes: as they are, escaped, in base64, in hex."""
    found = []
    for part in planted.parts:
        plain = part.encode()
        forms = [plain, json.dumps(part)[1:-1].encode(), repr(part)[1:-1].encode(), plain.hex().encode()]
        for shift in range(3):
            core = base64.b64encode(b"\0" * shift + plain)[shift + 1 : -4]
            forms += [core, core.translate(bytes.maketrans(b"+/", b"-_"))]
        found += [part for form in forms if form in data]
    return found


def _everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every byte of every file, and every run of base64 in them decoded."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes().replace(b". " * 100, b"")  # what is printed around long output
            yield str(path), data + str(path).encode()
            for run in re.findall(rb"[A-Za-z0-9+/_-]{16,}", data):
                for skip in range(4):
                    piece = run[skip:].translate(bytes.maketrans(b"-_", b"+/"))
                    try:
                        yield f"{path}, decoded", base64.b64decode(piece[: len(piece) // 4 * 4])
                    except Base64Error:
                        pass


def _leaks(folder: Path, planted: list[Planted]) -> list[tuple[str, str, list[str]]]:
    everything: dict[str, bytes] = {}
    for name, data in _everything_in(folder):
        everything[name] = everything.get(name, b"") + b"\n" + data
    return [
        (name, secret.shape, hidden)
        for name, data in everything.items()
        for secret in planted
        if (hidden := _hides(secret, data))
    ]


def _command_lines() -> bytes:
    """What `ps` shows of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue  # it has ended
    return b"\n".join(lines)


def _plain(secret: Planted, session: Session) -> dict[str, Any]:
    return session.execute_code(f"print({secret.code})\n_ = 1")


def _in_pieces(secret: Planted, session: Session) -> dict[str, Any]:
    code = f"import sys\nt = {secret.code}\nfor c in t: sys.stdout.write(c); sys.stdout.flush()\ndel t"
    return session.execute_code(code)


def _raised(secret: Planted, session: Session) -> dict[str, Any]:
    return session.execute_code(f"raise ValueError({secret.code})")


def _as_result(secret: Planted, session: Session) -> dict[str, Any]:
    return session.execute_code(f"{{'k': [{secret.code}]}}", tags={"about": {"secret": secret.value or "-"}})


def _in_an_artifact(secret: Planted, session: Session) -> dict[str, Any]:
    return session.execute_code(f"print('. ' * 560_000, {secret.code}, '. ' * 40_000)")


def _at_the_cut(secret: Planted, session: Session) -> dict[str, Any]:
    """The ends that the line keeps of a long output are cut in the middle of the secret."""
    code = f"s = {secret.code}\nprint('. ' * (32768 - len(s) // 4) + s + ' ' + '. ' * 520_000)\ndel s"
    return session.execute_code(code)


def _past_its_time(secret: Planted, session: Session) -> dict[str, Any]:
    code = f"import time\nprint({secret.code}, flush=True)\nwhile True: time.sleep(0.01)"
    return session.execute_code(code, time_limit_s=0.15)


WAYS: tuple[Callable[[Planted, Session], dict[str, Any]], ...] = (
    _plain,
    _in_pieces,
    _raised,
    _as_result,
    _in_an_artifact,
    _at_the_cut,
)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[Planted]:
    """The secrets; those of the environment are in it."""
    found = _planted()
    for secret in found:
        if secret.name is not None:
            monkeypatch.setenv(secret.name, secret.value)
    return found


def _names(planted: list[Planted]) -> list[str]:
    return [secret.name for secret in planted if secret.name is not None]


@pytest.mark.parametrize("route", ROUTES)
def test_none_of_200_secrets_is_in_anything_that_is_kept(
    tmp_path: Path, planted: list[Planted], route: Route
) -> None:
    names = _names(planted)
    with Session(route, log_dir=tmp_path, pass_env=names, **_IDS) as session, task_context(**_IDS):
        for number, secret in enumerate(planted):
            ways = WAYS if number >= 140 else WAYS[:4]  # artifacts take longer
            way = _in_pieces if "two writes" in secret.shape else ways[number // 10 % len(ways)]
            way(secret, session)
            if secret.name is None and number % 3 == 0:
                event("planted", value=secret.code, dimensions={"secret": secret.code})
            elif number % 3 == 0:
                event("planted", dimensions={"secret": secret.value})
        for secret in planted[::25]:
            assert _past_its_time(secret, session)["debug_info"]["execution"] == "timeout"
        shown = _command_lines()
    assert [secret for secret in planted if _hides(secret, shown)] == []
    assert len((tmp_path / "P-1" / "7.redaction.jsonl").read_bytes().splitlines()) == 208
    assert list((tmp_path / "P-1" / "events").iterdir())
    assert any(path.is_file() for path in (tmp_path / "P-1" / "artifacts").rglob("*"))
    assert _leaks(tmp_path, planted) == []


@pytest.mark.parametrize("route", ROUTES)
def test_each_shape_is_found_in_each_way(tmp_path: Path, planted: list[Planted], route: Route) -> None:
    with Session(route, log_dir=tmp_path, pass_env=_names(planted), **_IDS) as session:
        for secret in planted[:10]:
            for way in WAYS:
                way(secret, session)
    assert _leaks(tmp_path, planted) == []


@pytest.mark.parametrize("route", ROUTES)
def test_the_reply_and_the_stream_have_the_secret(
    tmp_path: Path, planted: list[Planted], route: Route
) -> None:
    secret = planted[0]
    pieces: list[str] = []
    with Session(route, log_dir=tmp_path, pass_env=_names(planted), **_IDS) as session:
        reply = session.execute_code(
            f"v = {secret.code}\nprint(v)\nv", on_output=lambda name, text: pieces.append(text)
        )
        raised = _raised(secret, session)
    assert reply["stdout"] == secret.value + "\n" == "".join(pieces)
    assert reply["result"] == {"text/plain": repr(secret.value)}
    assert raised["error"]["message"] == secret.value
    assert _leaks(tmp_path, planted) == []


@pytest.mark.parametrize("route", ROUTES)
def test_a_killed_session_leaves_no_secret_in_its_pending_file_nor_in_the_line_it_gets(
    tmp_path: Path, planted: list[Planted], start_server: Callable[..., Any], route: str
) -> None:
    server = start_server(route, FLOW_PLAN_ID="P-1", FLOW_TASK_ID="T-7", FLOW_TASK_NAME="redaction")
    clear = [secret for secret in planted if secret.name is None]
    code = "import time\n" + "\n".join(f"print({secret.code})" for secret in clear) + "\ntime.sleep(60)"
    server.send("execute", 1, code=code, stream=True, tags={"all": [secret.code for secret in clear]})
    while "⟨end⟩" not in str(message := server.read()) and message["method"] != "stream":
        pass  # it runs now
    pending = [path for path in (tmp_path / "logs" / "P-1" / "pending").iterdir() if path.stat().st_size]
    assert len(pending) == 1
    assert _leaks(tmp_path, planted) == []
    server.process.kill()
    server.wait()
    assert _leaks(tmp_path, planted) == []
    log = LogFile(str(tmp_path / "logs" / "P-1" / "7.redaction.jsonl"))
    settle(str(tmp_path / "logs" / "P-1"), log)
    log.close()
    assert [line["status"] for line in server.log_lines()] == ["unknown"]
    assert "⟨secret:github_token:" in server.log_lines()[0]["code"]
    assert _leaks(tmp_path, planted) == []


def test_the_key_of_an_encrypted_log_is_neither_in_its_files_nor_in_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    key = os.urandom(32)
    path = tmp_path / "key"
    path.write_bytes(base64.b64encode(key))
    path.chmod(0o600)
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{path}")
    logs = tmp_path / "logs"
    with Session("local", log_dir=logs, **_IDS) as session:
        session.execute_code(f"with open({str(path)!r}, 'rb') as f: k = f.read()\nprint(k.decode())\nk")
        session.execute_code("import base64\nprint(base64.b64decode(k).hex())\nprint('x' * 2_000_000, k)")
        lines = json.dumps(session.history())
        assert lines.count("secret:TASK_LOG_KEY:") >= 3
    forms = [base64.b64encode(key)[:-1].decode(), base64.urlsafe_b64encode(key)[:-1].decode(), key.hex()]
    assert [form for form in forms if form in lines] == []
    for name, data in _everything_in(logs):
        assert key not in data, name
        assert not any(form.encode() in data for form in forms), name


def test_the_passphrase_of_an_encrypted_log_is_hidden_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.setenv("TASK_LOG_KEY", "correct horse battery")
    with Session("local", log_dir=tmp_path, **_IDS) as session:
        session.execute_code("import os; print(os.environ['TASK_LOG_KEY'])")
        (line,) = session.history()
    assert re.fullmatch(r"⟨secret:TASK_LOG_KEY:[0-9a-f]{4}⟩\n", line["stdout"])
    assert b"horse" not in b"".join(data for _, data in _everything_in(tmp_path))


def test_the_recorded_code_gets_its_secret_back_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "s3cr3t-of-the-shop")
    code = "key = 's3cr3t-of-the-shop'"
    with Session("local", log_dir=tmp_path, **_IDS) as session:
        session.execute_code(code)
        (line,) = session.history()
    key = plan_key(str(tmp_path / "P-1"))
    assert "s3cr3t" not in line["code"]
    assert restore(line["code"], os.environ, key) == (code, [])
    placeholder = line["code"].split("'")[1]
    assert restore(line["code"], {"SHOP_API_KEY": "another one now"}, key) == (line["code"], [placeholder])
    assert restore(line["code"], {}, key) == (line["code"], [placeholder])


@pytest.mark.parametrize("route", ROUTES)
def test_the_same_secret_has_the_same_placeholder_in_every_session_of_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: Route
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "s3cr3t-of-the-shop")
    lines = []
    for _ in range(2):
        with Session(route, log_dir=tmp_path, pass_env=["SHOP_API_KEY"], **_IDS) as session:
            session.execute_code("import os; print(os.environ['SHOP_API_KEY'])")
            lines += session.history()
    assert lines[0]["stdout"] == lines[1]["stdout"]
    with Session(route, log_dir=tmp_path, plan_id="P-2", pass_env=["SHOP_API_KEY"]) as session:
        session.execute_code("import os; print(os.environ['SHOP_API_KEY'])")
        assert session.history()[0]["stdout"] != lines[0]["stdout"]
    assert (tmp_path / "P-1" / "keys" / "redaction.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("route", ROUTES)
def test_own_values_and_patterns_are_hidden_in_branches_too(tmp_path: Path, route: Route) -> None:
    own: dict[str, str | re.Pattern[str]] = {"CUSTOMER": re.compile(r"C-\d{6}")}
    with Session(route, log_dir=tmp_path, redact=own, **_IDS) as session:
        session.execute_code("x = 'C-123456'; print(x, 'hunter2')")
        session.redact("DOOR", "hunter2")
        reply = session.execute_code("print(x, 'hunter2')")
        lines = session.history()
        if route == "worker":
            with session.branch(2) as branch:
                branch.execute_code("print(x, 'hunter2')")
                lines += branch.history()
    assert reply["stdout"] == "C-123456 hunter2\n"
    assert re.fullmatch(r"⟨secret:CUSTOMER:[0-9a-f]{4}⟩ hunter2\n", lines[0]["stdout"])
    for line in lines[1:]:
        assert re.fullmatch(r"⟨secret:CUSTOMER:[0-9a-f]{4}⟩ ⟨secret:DOOR:[0-9a-f]{4}⟩\n", line["stdout"])


def test_redaction_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "s3cr3t-of-the-shop")
    with Session("local", log_dir=tmp_path, redact=False, **_IDS) as session:
        session.execute_code("import os; print(os.environ['SHOP_API_KEY'])")
        assert session.history()[0]["stdout"] == "s3cr3t-of-the-shop\n"
        with pytest.raises(ConfigurationError):
            session.redact("DOOR", "hunter2")
    assert not (tmp_path / "P-1" / "keys").exists()


@pytest.mark.parametrize("secret", ["", "abc", re.compile("a*"), re.compile(b"abc"), 7])
def test_what_would_hide_everything_is_refused(tmp_path: Path, secret: Any) -> None:
    with pytest.raises(ConfigurationError):
        Session("local", log_dir=tmp_path, redact={"IT": secret})


def _broken(text: str) -> list[Place]:
    raise ZeroDivisionError(text)


def test_a_redaction_that_fails_withholds_the_text_and_stops_nothing(tmp_path: Path) -> None:
    alerts: list[Any] = []
    with Session("local", log_dir=tmp_path, redact={"IT": re.compile("never there")}, **_IDS) as session:
        session.on_alert(alerts.append)
        secrets = session._keeping.secrets
        assert secrets is not None
        find = secrets.find
        try:
            secrets.find = _broken  # type: ignore[method-assign]  # a fault of ours
            reply = session.execute_code("print('in clear'); 6 * 7", tags={"k": "in clear"})
        finally:
            secrets.find = find  # type: ignore[method-assign]
        session.execute_code("print(1)")
        lines = session.history()
    assert reply["stdout"] == "in clear\n"
    assert reply["result"] == {"text/plain": "42"}
    assert any("withheld" in notice and "ZeroDivisionError" in notice for notice in reply["notices"])
    assert any("withheld" in alert.message for alert in alerts)
    assert lines[0]["stdout"] == "⟨withheld: the redaction failed⟩" == lines[0]["code"]
    assert lines[1]["stdout"] == "1\n"
    assert b"in clear" not in b"".join(data for _, data in _everything_in(tmp_path))


def test_secrets_in_what_is_observed_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "plainTOKEN1234567")
    task = TaskIds(plan_id="P", task_id="T-1", task_name="observed")
    log = ObservedLog(task, actor="jupyter", route="jupyter", isolation="external", log_dir=tmp_path)
    request = log.begin("print('plainTOKEN1234567')", {})
    outcome = ExecutionOutcome(
        status="ok", route="jupyter", isolation="external", elapsed_ms=1.0, stdout="plainTOKEN1234567\n"
    )
    assert log.finish(request, outcome) is None
    log.close()
    line = Path(log.path).read_text()
    assert line.count("⟨secret:MY_API_TOKEN:") == 2
    assert "plainTOKEN1234567" not in line
