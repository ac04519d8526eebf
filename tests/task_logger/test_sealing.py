"""What a keyed seal proves, and what it costs those who have no key."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Literal

import pytest

from json_repl import Session
from task_logger import TaskLogger
from task_logger.codec import FIRST_PREV, UnreadablePiece, read_link, seal
from task_logger.errors import InvalidField, KeyMalformed, KeyPermissions
from task_logger.line_checks import LineChecks
from task_logger.log_file import LogFile
from task_logger.reader import read_records
from task_logger.sealing import Sealer, seal_of, sealer_from_environment
from task_logger.verification import LogVerdict, verify_log

KEY = bytes(range(32))
SEALER = Sealer(KEY)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "7.user_login.jsonl"


def sealed(count: int, sealer: Sealer | None = SEALER, code: str = "x") -> list[bytes]:
    prev, lines = FIRST_PREV, []
    for number in range(1, count + 1):
        line, prev = seal(b'{"code":"%b = %d"' % (code.encode(), number), number, prev, (), sealer)
        lines.append(line)
    return lines


def verdict_of(log: Path, lines: list[bytes], sealer: Sealer | None = SEALER) -> LogVerdict:
    log.write_bytes(b"".join(lines))
    return verify_log(str(log), checks=LineChecks(str(log), sealer=sealer))


def problems(verdict: LogVerdict) -> list[tuple[str, int]]:
    return [(one.kind, one.line) for one in verdict.findings if one.level == "problem"]


def test_a_seal_is_the_hmac_of_the_bodys_hash_and_of_the_chain_fields() -> None:
    line, digest = seal(b'{"code":"x"', 7, "ab" * 32, [UnreadablePiece(10, 20)], SEALER)
    fields = json.loads(line)
    assert list(fields) == ["code", "seal", "recovered", "n", "prev", "hash"]
    assert hashlib.sha256(line[:-76]).hexdigest() == fields["hash"] == digest
    assert read_link(line[:-1]) is not None
    chain = b',"recovered":[{"at":10,"bytes":20}],"n":7,"prev":"%b"' % (b"ab" * 32)
    own_key = hmac.digest(KEY, b"task-log seal of lines, version 1", "sha256")
    code = hmac.digest(own_key, hashlib.sha256(b'{"code":"x"').digest() + chain, "sha256").hex()
    assert fields["seal"] == f"{SEALER.key_id}.{code}"
    found = seal_of(line[:-1])
    assert found is not None
    assert SEALER.is_right(found)
    assert not Sealer(bytes(32)).is_right(found)


def test_a_line_without_a_seal_has_none() -> None:
    for body in (b'{"code":"x"', b'{"tags":{"seal":"0123456789abcdef.%b"}' % (b"0" * 64), b'{"a":[{}]'):
        assert seal_of(seal(body, 1, FIRST_PREV)[0][:-1]) is None
        assert seal_of(seal(body, 1, FIRST_PREV, [UnreadablePiece(1, 2)])[0][:-1]) is None


def test_sealed_lines_are_a_yes_with_their_key(log: Path) -> None:
    verdict = verdict_of(log, sealed(20))
    assert verdict.keyed == ("seal",)
    assert problems(verdict) == []


def test_a_whole_chain_made_anew_without_the_key_is_found_and_without_seals_it_is_not(log: Path) -> None:
    forger = Sealer(os.urandom(32))
    assert problems(verdict_of(log, sealed(20, forger, "y"))) == [("other_seal_key", 1)]
    forger.key_id = SEALER.key_id
    forger._prefix = SEALER._prefix  # as one who has seen lines would
    assert problems(verdict_of(log, sealed(20, forger, "y"))) == [("forged", n) for n in range(1, 21)]
    assert problems(verdict_of(log, sealed(20, None, "y"))) == [("not_sealed", 0)]
    assert problems(verdict_of(log, sealed(20, None, "y"), None)) == []


@pytest.mark.parametrize("place", [0, 1, 10, 18, 19])
def test_any_line_made_anew_with_all_behind_it_is_found(log: Path, place: int) -> None:
    whole = sealed(20)
    prev = json.loads(whole[place - 1])["hash"] if place else FIRST_PREV
    lines = whole[:place]
    for number in range(place + 1, 21):
        old = whole[number - 1]
        at = old.index(b',"n":')
        body = old[:at].replace(b"x =", b"y =") if number == place + 1 else old[:at]
        line, prev = seal(body, number, prev)
        lines.append(line)
    found = problems(verdict_of(log, lines))
    assert found == [("forged", number) for number in range(place + 1, 21)]


def test_lines_without_a_seal_behind_sealed_ones_are_named(log: Path) -> None:
    lines = sealed(5)
    prev = json.loads(lines[-1])["hash"]
    for number in range(6, 9):
        line, prev = seal(b'{"code":"forged"', number, prev)
        lines.append(line)
    verdict = verdict_of(log, lines)
    assert problems(verdict) == [("not_sealed", 6)]
    assert "3 lines from here on" in next(one for one in verdict.findings if one.line == 6).reason
    without_key = verdict_of(log, lines, None)
    assert problems(without_key) == []
    assert {"not_sealed", "seal_unchecked"} <= {one.kind for one in without_key.findings}
    assert not without_key.is_yes(strict=True)


def test_a_seal_proves_the_lines_before_sealing_began_as_they_were_then(log: Path) -> None:
    plain = LogFile(str(log))
    for _ in range(3):
        plain.append(b'{"code":"x"')
    plain.close()
    sealing = LogFile(str(log), sealer=SEALER)
    sealing.append(b'{"code":"y"')
    sealing.close()
    verdict = verify_log(str(log), checks=LineChecks(str(log), sealer=SEALER))
    assert problems(verdict) == []
    whole = log.read_bytes().splitlines(keepends=True)
    first, prev = seal(b'{"code":"z"', 1, FIRST_PREV)
    anew = [first]
    for number, line in enumerate(whole[1:], 2):
        made, prev = seal(line[: line.index(b',"n":')], number, prev)
        anew.append(made)
    assert problems(verdict_of(log, anew)) == [("forged", 4)]


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "seal key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    monkeypatch.setenv("TASK_LOG_SEAL_KEY", f"file:{path}")
    return path


@pytest.mark.parametrize("route", ["local", "worker"])
def test_a_session_seals_each_line_and_its_worker_never_sees_the_key(
    key_file: Path, tmp_path: Path, route: Literal["local", "worker"]
) -> None:
    code = "import os\n'TASK_LOG_SEAL_KEY' in os.environ"
    with Session(
        route=route, plan_id="P-1", log_dir=tmp_path / "logs", pass_env=["TASK_LOG_SEAL_KEY"]
    ) as one:
        reply = one.execute_code(code)
    if route == "worker":
        assert reply["result"]["text/plain"] == "False"
    path = reply["debug_info"]["log"]["path"]
    verdict = verify_log(path, checks=LineChecks(path, sealer=sealer_from_environment()))
    assert verdict.keyed == ("seal",)
    assert problems(verdict) == []
    (record,) = read_records(path)
    assert not getattr(record, "extra", None), "a seal is the log's, not the execution's"


def test_a_programs_own_lines_are_sealed_and_may_have_no_seal_of_their_own(
    key_file: Path, tmp_path: Path
) -> None:
    with TaskLogger("P-1", 7, "x", log_dir=tmp_path / "logs") as own:
        with pytest.raises(InvalidField):
            own.write({"seal": "0"})
        own.write({"code": "make"})
    verdict = verify_log(own.path, checks=LineChecks(own.path, sealer=SEALER))
    assert (verdict.keyed, problems(verdict)) == (("seal",), [])


def test_keys_that_make_no_good_seals_are_refused(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file.chmod(0o644)
    with pytest.raises(KeyPermissions):
        sealer_from_environment()
    monkeypatch.setenv("TASK_LOG_SEAL_KEY", "correct horse battery staple")
    with pytest.raises(KeyMalformed, match="file:PATH"):
        sealer_from_environment()
    monkeypatch.delenv("TASK_LOG_SEAL_KEY")
    assert sealer_from_environment() is None
