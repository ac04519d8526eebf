"""Processes of ours keep others of the same user out; a host program stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ordinary_user import OrdinaryUser, ordinary_user

LOOK = """
import ctypes, json, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def read(name):
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return b"hush" in file.read(1 << 16) if name == "environ" else True
def trace():
    if libc.ptrace(0x4206, pid, None, None):  # seized: let go when this program ends
        raise OSError(ctypes.get_errno(), "ptrace")
    return True
found = {}
for name, attempt in {
    "environ": lambda: read("environ"),
    "descriptors": lambda: bool(os.listdir(f"/proc/{pid}/fd")),
    "memory": lambda: read("maps") and open(f"/proc/{pid}/mem", "rb").close() is None,
    "trace": trace,
}.items():
    try:
        found[name] = attempt()
    except PermissionError:
        found[name] = "denied"
print(json.dumps(found))
"""
"""What a program of the same user can find out about a process."""

CODE = f"""
import json, os, subprocess, sys
def look(pid):
    shown = subprocess.run([sys.executable, "-c", {LOOK!r}, str(pid)], capture_output=True, check=True)
    return json.loads(shown.stdout)
keeper = os.getppid()
with open(f"/proc/{{keeper}}/stat") as file:
    session = int(file.read().rpartition(")")[2].split()[1])
print(json.dumps([look(session), look(keeper), look(os.getpid())]))
"""
"""Has a worker look at its session, its keeper and itself."""

DENIED = dict.fromkeys(("environ", "descriptors", "memory", "trace"), "denied")

HOST = f"""
from json_repl import Session
with Session(route="worker") as session:
    print(session.execute_code({CODE!r})["stdout"])
"""


def execute(user: OrdinaryUser, route: str, *codes: str) -> list[dict[str, Any]]:
    """What `python -m json_repl` of that user answers."""
    requests = [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": "execute", "params": {"code": code}})
        for number, code in enumerate(codes)
    ]
    served = user.run(
        "-m",
        "json_repl",
        given="\n".join(requests) + "\n",
        USE_SUBPROCESS_WORKER=str(int(route == "worker")),
        SOME_TOKEN="hush",
    )
    assert served.returncode == 0, served.stderr
    return [json.loads(line)["result"] for line in served.stdout.splitlines()[1:]]


def _is_tracing_free() -> bool:
    """Whether this system lets a program trace any process of its user."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return not scope.exists() or scope.read_text().strip() == "0"


def test_executed_code_can_look_into_its_session_in_a_host_program_but_not_in_ours() -> None:
    with ordinary_user() as user:
        of_host, _, _ = user.value(HOST, SOME_TOKEN="hush")
        (outcome,) = execute(user, "worker", CODE)
    if not _is_tracing_free():  # then what the system forbids anyway says nothing about us
        of_host |= {"memory": True, "trace": True}
    assert of_host == dict.fromkeys(DENIED, True)
    assert outcome["success"], outcome["stderr"]
    of_session, of_keeper, of_worker = json.loads(outcome["stdout"])
    assert of_session == DENIED
    for found in (of_keeper, of_worker):  # they have no secrets, and can be looked into
        assert (found["environ"], found["descriptors"]) == (False, True)


@pytest.mark.parametrize("route", ["local", "worker"])
def test_a_shielded_server_does_all_that_needs_its_own_descriptors(route: str) -> None:
    with ordinary_user() as user:
        large, program, device, last = execute(
            user,
            route,
            "print('x' * (2 << 20))",
            "import subprocess; subprocess.run(['echo', 'hi'], capture_output=True).stdout",
            "print('to the device', file=open('/dev/stdout', 'w'))",
            "import os; os.listdir('/proc/self/fd') != []",
        )
        (artifact,) = large["artifacts"]
        assert artifact["bytes"] == (2 << 20) + 1
        (file,) = (user.folder / "logs").rglob(f"{artifact['sha256']}*")
        assert file.stat().st_size == artifact["bytes"]
    assert [notice.partition(" is too long")[0] for notice in large["notices"]] == ["stdout"]
    assert program["result"] == {"text/plain": "b'hi\\n'"}
    assert device["stdout"] == "to the device\n"
    assert last["result"] == {"text/plain": "True"}


TIMELINE = """
import json, sys
from json_repl import Session
from json_repl.own_process import shield_process
shield_process()
with Session(route="worker", isolation=sys.argv[1]) as session:
    def run(code, **more):
        outcome = session.execute_code(code, **more)
        return outcome["debug_info"]["execution"], (outcome["result"] or {}).get("text/plain")
    found = [run("import os; x = 5"), session.snapshot(), run("os.abort()"), run("x")]
    session.rewind(1)
    found += [[one["debug_info"]["execution"] for one in session.speculate(["x + 1", "x + 2"])]]
    session.discard()
    found += [run("while True: pass", time_limit_s=0.2)[0], run("x")]
    session.restart()
    print(json.dumps([*found, run("'x' in globals()")]))
"""


@pytest.mark.parametrize(
    "isolation",
    [
        "none",
        "process",
        pytest.param(
            "sandbox",
            marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
        ),
    ],
)
def test_a_shielded_session_keeps_states_and_has_them_back(isolation: str) -> None:
    with ordinary_user() as user:
        done = user.run("-c", TIMELINE, isolation)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["ok", None],
        {"seq": 1},
        ["crashed", None],
        ["ok", "5"],
        ["ok", "ok"],
        "timeout",
        ["ok", "5"],
        ["ok", "False"],
    ]


def test_run_is_shielded_and_a_program_that_it_starts_is_not(tmp_path: Path) -> None:
    look = "import ctypes, subprocess, sys; print(ctypes.CDLL(None).prctl(3))"  # PR_GET_DUMPABLE
    source = f"{look}\n_ = subprocess.run([sys.executable, '-c', {look!r}], check=True)\n"
    shown = subprocess.run(
        [sys.executable, "-m", "json_repl", "run", "--route", "local", "-"],
        input=source,
        env={"TASK_LOG_DIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["0", "1"]


KERNEL = """
import ctypes, sys
from json_repl.isolated_kernel import run_isolated
try:
    run_isolated(["--version"])
except SystemExit:
    pass
sys.exit(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


def test_an_isolated_kernel_is_shielded_as_our_commands_are(tmp_path: Path) -> None:
    environment = {**os.environ, "TASK_LOG_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
