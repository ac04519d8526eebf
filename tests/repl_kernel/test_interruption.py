"""How what runs is made to stop, where signals meet forks, and where everything stalls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ordinary_user import ordinary_user
from tests.repl_kernel.timeline_world import World


def test_an_interrupt_that_comes_while_the_code_forks_is_told(world: World) -> None:
    outcome = world.run(
        "import ctypes, functools, os, signal\n"
        "interrupt = functools.partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGINT)  # in C alone\n"
        "os.register_at_fork(before=interrupt)\n"
        "try:\n    if not os.fork(): os._exit(0)\n    print('lost')\n"
        "except KeyboardInterrupt:\n    print('told')\n"
        "pid, status = os.wait()"
    )
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "told\n", "")


_SURVIVORS = """
import json, time
from json_repl import Session
with Session(route="worker", snapshots="off", limits={"processes": 3}) as session:
    # Before each fork comes something long in C: the interrupt comes then, and is raised after the fork.
    code = (
        "import functools, hashlib, os, time\\n"
        "os.register_at_fork(before=functools.partial(hashlib.pbkdf2_hmac, 'sha256', b'', b'', 100_000))\\n"
        "while os.fork() or time.sleep(1000): pass"
    )
    verdict = session.execute_code(code)["error"]["type"]
    code = "os.getpid(), open(f'/proc/self/task/{os.getpid()}/children').read().split()"
    pid, children = eval(session.execute_code(code)["result"]["text/plain"])
    until = time.monotonic() + 10
    while time.monotonic() < until:
        stats = [open(f"/proc/{child}/stat").read() for child in children]
        living = [stat for stat in stats if stat.rpartition(")")[2].split()[0] not in "ZX"]
        if not living:
            break
    print(json.dumps([verdict, len(living)]))
"""


def test_no_fork_outlives_the_limit_of_processes_where_nothing_but_a_look_finds_them() -> None:
    with ordinary_user() as user:
        assert user.value(_SURVIVORS) == ["ProcessLimitExceeded", 0]


_STALLED = """
import json, os, sys
from json_repl import Session
with Session(**json.loads(sys.argv[1])) as session:
    session.execute_code("import os, signal, time")
    # What goes on once this process is stopped: the handling of the first interrupt, and its end.
    code = (
        "try:\\n    time.sleep(60)\\nexcept KeyboardInterrupt:\\n"
        f"    os.kill({os.getpid()}, signal.SIGSTOP)\\n"
        "    time.sleep(3.5)\\n"
        f"    os.kill({os.getpid()}, signal.SIGCONT)\\n"
        "    for _ in range(2):\\n"
        "        try: time.sleep(0.1)\\n"
        "        except KeyboardInterrupt: pass\\n"
        "kept = 1"
    )
    status = session.execute_code(code, time_limit_s=2)["debug_info"]["execution"]
    print(json.dumps([status, session.execute_code("kept")["success"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("session", "status"),
    [
        ({"route": "worker", "snapshots": "off"}, "timeout"),
        ({"route": "jupyter", "kernel": "python3"}, "ok"),
    ],
    ids=["worker", "jupyter"],
)
def test_a_session_that_was_stopped_leaves_its_code_the_time_between_two_steps(
    session: dict[str, str], status: str, log_root: Path
) -> None:
    command = [sys.executable, "-c", _STALLED, json.dumps(session)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120, text=True)
    assert (done.stdout, done.stderr) == (f'["{status}", true]\n', "")
