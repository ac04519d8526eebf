"""Where the key of encrypted logs comes from, and what is said where it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path

import pytest

from task_logger.errors import ConfigurationError, KeyMalformed, KeyMissing, KeyPermissions
from task_logger.keys import KeySource, PassphraseCost, key_from_environment

_SECRET = bytes(range(100, 132))


def _file(tmp_path: Path, content: bytes, mode: int = 0o600) -> KeySource:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return KeySource(f"file:{path}")


@pytest.mark.parametrize(
    "content",
    [
        _SECRET,
        _SECRET.hex().encode(),
        _SECRET.hex().upper().encode() + b"\n",
        b64encode(_SECRET),
        b64encode(_SECRET) + b"\r\n",
        urlsafe_b64encode(_SECRET).rstrip(b"="),
    ],
)
def test_a_key_file_holds_32_bytes_raw_or_in_hex_or_base64(tmp_path: Path, content: bytes) -> None:
    assert _file(tmp_path, content).wrapping_key(None) == _SECRET


@pytest.mark.parametrize(
    "content",
    [
        b"",
        _SECRET[:31],
        _SECRET + b"\n",
        b"0123456789abcdef0123456789abcdef",  # 16 bytes in hex, not 32 random ones
        b"correct horse battery staple 123",
        b"g" * 64,
        b"*" * 44,
        b64encode(_SECRET)[:-4],
        _SECRET * 100,
    ],
)
def test_what_is_no_key_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(KeyMalformed) as caught:
        _file(tmp_path, content).wrapping_key(None)
    assert str(tmp_path / "key") in str(caught.value)
    assert not content or content[:20].decode("latin-1") not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o601, 0o620, 0o602, 0o777])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeyPermissions, match="chmod 600"):
        _file(tmp_path, _SECRET, mode).wrapping_key(None)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_of_its_owner_alone_is_taken(tmp_path: Path, mode: int) -> None:
    assert _file(tmp_path, _SECRET, mode).wrapping_key(None) == _SECRET


def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    key = _file(tmp_path, _SECRET)
    os.chown(tmp_path / "key", 12345, -1)
    with pytest.raises(KeyPermissions, match="user 12345"):
        key.wrapping_key(None)


def test_a_missing_key_file_is_missing_and_what_is_no_file_is_no_key(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "nothing" / "below"):
        with pytest.raises(KeyMissing):
            KeySource(f"file:{path}").wrapping_key(None)
    with pytest.raises(KeyMissing):
        KeySource("file:with\0nul").wrapping_key(None)
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path, tmp_path / "fifo"):  # neither blocks
        with pytest.raises(KeyMalformed, match="no regular file"):
            KeySource(f"file:{path}").wrapping_key(None)


@pytest.mark.parametrize("text", ["file:", "keyring:"])
def test_a_source_that_names_nothing_is_malformed(text: str) -> None:
    with pytest.raises(KeyMalformed):
        KeySource(text)


def test_an_empty_setting_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_LOG_KEY", "")
    assert key_from_environment() is None


def test_a_passphrase_depends_on_the_salt_and_may_have_a_colon() -> None:
    cheap = [PassphraseCost(salt, n=2, r=1, p=1) for salt in (b"salt", b"other salt")]
    keys = {KeySource(text).wrapping_key(cost) for text in ("a:b", "c") for cost in cheap}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    new = KeySource("a:b").new_cost()
    assert new is not None
    assert new.is_bearable
    assert new != KeySource("a:b").new_cost()


def test_scrypt_is_that_of_the_rfc() -> None:
    cost = PassphraseCost(b"NaCl", n=1024, r=8, p=16)  # RFC 7914, 12, second vector
    assert (
        KeySource("password").wrapping_key(cost).hex().startswith("fdbabe1c9d3472007856e7190d01e9fe7c6ad7cb")
    )


_KEYRING = """
from keyring import errors

def get_password(service, name):
    if name == "locked":
        raise errors.KeyringError("it is locked")
    return {"mine": SECRET, "short": "abc"}.get(name) if service == "json-repl" else None
"""


def _with_keyring(folder: Path, name: str) -> str:
    (folder / "keyring").mkdir(exist_ok=True)
    (folder / "keyring" / "__init__.py").write_text(_KEYRING.replace("SECRET", repr(_SECRET.hex())))
    (folder / "keyring" / "errors.py").write_text("class KeyringError(Exception): pass")
    code = (
        "import sys; from task_logger.errors import ConfigurationError\n"
        "from task_logger.keys import KeySource\n"
        "try: print(KeySource('keyring:' + sys.argv[1]).wrapping_key(None).hex())\n"
        "except ConfigurationError as exc: print(type(exc).__name__, exc)"
    )
    environment = os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(
        [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_a_key_comes_from_the_systems_keyring(tmp_path: Path) -> None:
    assert _with_keyring(tmp_path, "mine") == _SECRET.hex()
    assert _with_keyring(tmp_path, "other").startswith("KeyMissing ")
    assert _with_keyring(tmp_path, "locked").startswith("KeyMissing ")
    assert _with_keyring(tmp_path, "short").startswith("KeyMalformed ")


def test_without_the_keyrings_package_its_name_is_said() -> None:
    code = (
        "import sys; sys.modules['keyring'] = None\n"
        "from task_logger.keys import KeySource; KeySource('keyring:x').wrapping_key(None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ConfigurationError.__name__ in run.stderr
    assert "pip install keyring" in run.stderr
