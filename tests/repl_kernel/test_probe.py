"""The probe tells a layer that holds from one that doesn't: outside of a sandbox nearly nothing is denied."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from repl_kernel.outside import Outside
from repl_kernel.probe import probe_process, probe_sandbox
from tests.ordinary_user import ordinary_user

ROOT = Path(__file__).parents[2]

MUST_WORK_OUTSIDE = {
    "read a file outside",
    "signal a process outside",
    "the session's pid namespace",
    "the session's net namespace",
    "the session's mnt namespace",
    "TCP to this machine",
    "abstract socket",
    "UNIX socket of the session",
    "open_by_handle_at",
    "pidfd_getfd",
    "setns",
    "ioctl TIOCSTI",
    "personality",
}
"""What any user may try without a sandbox: it gets through, even where it then fails for its arguments."""


PROBE = (
    "import sys, orjson\nfrom repl_kernel.probe import probe_sandbox\n"
    "print(orjson.dumps(probe_sandbox(orjson.loads(sys.argv[1]))).decode())"
)


def test_without_a_sandbox_the_attempts_are_not_denied_and_change_nothing() -> None:
    mounted = _mounted_from_nothing()
    with Outside(network=False) as outside:
        found = subprocess.run(
            [sys.executable, "-c", PROBE, orjson.dumps(outside.targets).decode()],
            cwd=ROOT, capture_output=True, check=True,
        )  # fmt: skip
        assert outside.was_reached
    assert _mounted_from_nothing() == mounted
    attempts = {attempt["name"]: attempt for attempt in orjson.loads(found.stdout)}
    assert len(attempts) > 40
    assert {name for name in MUST_WORK_OUTSIDE if attempts[name]["denied"]} == set()


def _mounted_from_nothing() -> list[str]:
    """What the probe's attempt to mount would add; other tests mount their disks meanwhile."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("none ")]


def test_the_attempts_of_an_ordinary_user_are_not_denied_either() -> None:
    code = (
        "import subprocess, sys, orjson\nfrom repl_kernel.outside import Outside\n"
        "with Outside(network=False) as outside:\n"
        "    targets = orjson.dumps(outside.targets).decode()\n"
        f"    found = subprocess.run([sys.executable, '-c', {PROBE!r}, targets], stdout=-1, check=True)\n"
        "    print(orjson.dumps([outside.was_reached, orjson.loads(found.stdout)]).decode())"
    )
    with ordinary_user() as user:
        was_reached, found = user.value(code)
    assert was_reached
    attempts = {attempt["name"]: attempt for attempt in found}
    assert {name for name in MUST_WORK_OUTSIDE if attempts[name]["denied"]} == set()


def test_an_ordinary_user_proves_the_process_tier() -> None:
    code = (
        "import orjson\nfrom json_repl import Session\n"
        "with Session(route='worker') as session:\n"
        "    print(orjson.dumps(session.isolation_probe).decode())"
    )
    with ordinary_user() as user:
        attempts = user.value(code, SOME_TOKEN="hush")
    names = {attempt["name"] for attempt in attempts}
    assert {"secrets in the environment", "the session's descriptors"} <= names
    assert all(attempt["denied"] for attempt in attempts)


def test_what_is_put_up_for_a_probe_is_taken_down(no_leaks: None) -> None:
    with Outside(network=False) as outside:
        folder = os.path.dirname(outside.targets["secret"])
        assert sorted(os.listdir(folder)) == ["secret", "socket"]
        assert not outside.was_reached
    assert not os.path.exists(folder)


def test_a_probe_that_dies_has_proven_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from repl_kernel import probe

    monkeypatch.setattr(probe, "_attempts", lambda _target: os._exit(1))
    (attempt,) = probe_sandbox({})
    assert (attempt["name"], attempt["denied"]) == ("the probe itself", False)


def test_an_attempt_that_fails_for_another_reason_proves_nothing() -> None:
    from repl_kernel import probe

    def fail() -> None:
        raise OSError(22, "Invalid argument")

    def break_down() -> None:
        raise ValueError("what?")

    assert not probe._try("call", fail, {1})["denied"]
    assert probe._try("call", fail, {1, 22})["denied"]
    assert not probe._try("call", break_down, {1})["denied"]


def test_descriptors_that_programs_would_inherit_are_found() -> None:
    with socket.socket() as own, open(os.devnull, "rb") as file:
        fcntl.fcntl(file.fileno(), fcntl.F_SETFD, 0)
        attempts = {found["name"]: found for found in probe_process({own.fileno()}, ())}
    assert not attempts["the session's descriptors"]["denied"]
    assert "open: [" in attempts["the session's descriptors"]["detail"]


def test_secrets_are_found_unless_they_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush")
    for pass_env, denied in (((), False), (("SOME_TOKEN",), True)):
        known = {name for name in os.environ if name != "SOME_TOKEN"} | set(pass_env)
        attempts = {found["name"]: found for found in probe_process((), known)}
        assert attempts["secrets in the environment"]["denied"] is denied
