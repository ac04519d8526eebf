"""Warm sessions: ready at once, with their libraries, and none the worse for what happens to another."""

from __future__ import annotations

import ast
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from json_repl.errors import InvalidRequest, PoolClosed, SessionClosed
from json_repl.pool import SessionPool
from json_repl.session import Session
from repl_kernel.errors import KernelError, PreloadFailed, SandboxUnavailable
from repl_kernel.process_tree import read_stat
from task_logger.errors import ConfigurationError, TaskLogError
from tests.ordinary_user import ordinary_user

WaitUntil = Callable[[Callable[[], object]], None]

pytestmark = pytest.mark.usefixtures("log_root")

SLEEPERS = """
import os, subprocess
def double_forked():
    read_fd, write_fd = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write_fd, str(os.getpid()).encode())
            os.close(write_fd)
            os.execvp("sleep", ["sleep", "600"])
        os._exit(0)
    os.wait()
    return int(os.read(read_fd, 20))
own = subprocess.Popen(["setsid", "-w", "sleep", "600"], start_new_session=True).pid
[own, double_forked(), os.getpid(), os.getppid()]
"""


def value_of(session: Session, code: str) -> Any:
    outcome = session.execute_code(code)
    assert outcome["success"], outcome["stderr"]
    return ast.literal_eval(outcome["result"]["text/plain"])


def is_alive(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


def all_gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(map(is_alive, pids))


def parent_of(pid: int) -> int:
    stat = read_stat(pid)
    assert stat is not None
    return stat.parent_pid


@pytest.mark.usefixtures("no_leaks")
def test_a_warm_session_has_its_libraries_and_they_work() -> None:
    with SessionPool(1, preload=["numpy"]) as pool, pool.session() as session:
        assert value_of(session, "import sys; 'numpy' in sys.modules")
        assert value_of(session, "import numpy as np; a = np.ones((300, 300)); float((a @ a).sum())") == 27e6
        assert session.snapshot() == {"seq": 2}
        assert value_of(session, "b = a @ a; float(b.sum())") == 27e6
        session.rewind(2)
        assert value_of(session, "'b' in globals(), float((a @ a).sum())") == (False, 27e6)


def test_no_two_sessions_draw_the_same_numbers() -> None:
    code = "import random, numpy as np; random.random(), float(np.random.random())"
    with SessionPool(2, preload=["numpy.random", "random"]) as pool:
        drawn = [value_of(pool.session(), code) for _ in range(5)]
        assert len({ours for ours, _ in drawn}) == 5
        assert len({numpys for _, numpys in drawn}) == 5


def test_a_session_of_a_pool_is_recorded_as_any_other(log_root: Path) -> None:
    with SessionPool(1, task_name="all", actor="pool") as pool:
        with pool.session(plan_id="P-1", task_id="T-1") as first:
            assert value_of(first, "import os; os.environ['FLOW_TASK_ID']") == "T-1"
        with pool.session(plan_id="P-1", task_id="T-2", task_name="one", snapshots="off") as second:
            assert value_of(second, "import os; os.environ['FLOW_TASK_NAME']") == "one"
    (line,) = (log_root / "P-1" / "1.all.jsonl").read_text().splitlines()
    assert (json.loads(line)["route"], json.loads(line)["actor"], json.loads(line)["seq"]) == (
        "worker",
        "pool",
        1,
    )
    (line,) = (log_root / "P-1" / "2.one.jsonl").read_text().splitlines()
    assert json.loads(line)["snapshot"] is None


def test_a_session_that_crashes_leaves_the_others_alone_and_starts_warm_again() -> None:
    with SessionPool(2, preload=["colorsys"]) as pool, pool.session() as one, pool.session() as other:
        value_of(other, "x = 1; x")
        for code in ("import os; os._exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"):
            assert one.execute_code(code)["debug_info"]["execution"] == "crashed"
            one.restart()
            assert value_of(one, "import sys; 'colorsys' in sys.modules, 'x' in globals()") == (True, False)
        assert value_of(other, "x") == 1


def test_a_session_that_is_closed_takes_its_programs_along_and_no_others(wait_until: WaitUntil) -> None:
    with SessionPool(1) as pool, pool.session() as one:
        others_pids = value_of(one, SLEEPERS)
        with pool.session() as other:
            pids = value_of(other, SLEEPERS)
            assert all(map(is_alive, pids))
        wait_until(all_gone(pids))
        assert all(map(is_alive, others_pids))
        assert value_of(one, "1") == 1
    wait_until(all_gone(others_pids))


def test_what_a_killed_keeper_leaves_behind_is_killed_and_other_sessions_go_on(wait_until: WaitUntil) -> None:
    with SessionPool(1) as pool, pool.session() as one, pool.session() as other:
        pids = value_of(one, SLEEPERS)
        value_of(other, "x = 1; x")
        os.kill(pids[-1], signal.SIGKILL)
        wait_until(all_gone(pids))
        assert value_of(other, "x") == 1
        assert value_of(one, "1") == 1  # in a new worker, of a new keeper


def test_a_pool_whose_zygote_was_killed_goes_on_with_another() -> None:
    with SessionPool(1, preload=["colorsys"]) as pool, pool.session() as one:
        keeper = value_of(one, "import os; x = 1; os.getppid()")
        zygote = parent_of(keeper)
        assert parent_of(zygote) == os.getpid()
        os.kill(zygote, signal.SIGKILL)
        with pool.session() as waiting, pool.session() as other:
            code = "import sys, os; ('colorsys' in sys.modules, os.getppid())"
            assert {value_of(session, code)[0] for session in (waiting, other)} == {True}
            assert parent_of(value_of(other, code)[1]) not in (zygote, os.getpid())
        assert value_of(one, "x") == 1


def test_a_zygote_that_executed_code_has_stopped_is_had_to_go_on(no_leaks: None) -> None:
    began = time.monotonic()
    with SessionPool(1) as pool:
        for _ in range(2):
            os.kill(pool._zygote.pid, signal.SIGSTOP)
            with pool.session() as session:
                assert value_of(session, "1") == 1
        os.kill(pool._zygote.pid, signal.SIGSTOP)
    assert time.monotonic() - began < 4  # s; close() alone has waited for 5


@pytest.mark.parametrize("which", ["keeper", "worker"])
def test_a_session_that_died_while_it_waited_is_passed_over(wait_until: WaitUntil, which: str) -> None:
    with SessionPool(2) as pool, pool.session() as session:
        zygote = parent_of(value_of(session, "import os; os.getppid()"))
        own_keeper = value_of(session, "os.getppid()")

        def waiting() -> dict[int, list[int]]:
            """The workers of each keeper whose session waits."""
            found = _descendants(zygote)
            keepers = [stat.pid for stat in found if stat.parent_pid == zygote and stat.pid != own_keeper]
            return {keeper: [stat.pid for stat in found if stat.parent_pid == keeper] for keeper in keepers}

        wait_until(lambda: [len(workers) for workers in waiting().values()] == [1, 1])
        found = waiting()
        victims = [*found] if which == "keeper" else [pid for workers in found.values() for pid in workers]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_until(all_gone(victims))
        sessions = [pool.session() for _ in range(3)]
        assert [value_of(each, "1 + 1") for each in sessions] == [2, 2, 2]
        assert [each.execute_code("1")["notices"] for each in sessions] == [[], [], []]


def test_a_session_of_a_pool_that_nobody_holds_goes_on() -> None:
    session = SessionPool(1).session()
    gc.collect()
    assert value_of(session, "1 + 1") == 2
    session.close()


def test_a_branch_of_a_pools_session_that_nobody_else_holds_goes_on() -> None:
    with SessionPool(1).session() as session:
        session.execute_code("x = 5")
        branch = session.branch(1)
    del session
    gc.collect()
    assert value_of(branch, "x") == 5
    branch.close()


def test_a_crashed_session_of_a_pool_is_restored_from_its_snapshot() -> None:
    with SessionPool(1, preload=["numpy"]) as pool, pool.session() as session:
        session.execute_code("import numpy as np; a = np.arange(5); g = iter(a)")
        assert session.snapshot() == {"seq": 1}
        outcome = session.execute_code("import os; next(g); os.abort()")
        assert "the state after execution 1 is live" in outcome["notices"][0]
        assert value_of(session, "int(next(g)), int(a.sum())") == (0, 10)
        with session.branch(1) as branch:
            assert value_of(branch, "int(next(g))") == 0


def test_a_pool_of_an_ordinary_user_gives_warm_sessions_that_can_crash() -> None:
    code = """
import json, os, sys
from json_repl.pool import SessionPool
found = []
with SessionPool(2, preload=["colorsys"]) as pool:
    for session in (pool.session(), pool.session(), pool.session()):
        session.execute_code("import os, sys; x = 5")
        session.snapshot()
        status = session.execute_code("os.abort()")["debug_info"]["execution"]
        value = session.execute_code("x, 'colorsys' in sys.modules, os.getuid()")["result"]["text/plain"]
        found.append([status, value, len(session.isolation_probe) > 2])
print(json.dumps(found))
"""
    with ordinary_user() as user:
        assert user.value(code) == [["crashed", f"(5, True, {user.uid})", True]] * 3


def test_a_session_that_can_not_begin_costs_no_warm_one() -> None:
    with SessionPool(1) as pool:
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                pool.session(time_limit_s=-1)
            with pytest.raises(ConfigurationError, match="spawned: is no setting"):
                pool.session(spawned=None)
        with pool.session() as session:
            assert value_of(session, "1") == 1


@pytest.mark.usefixtures("no_leaks")
def test_closing_a_pool_ends_all_its_sessions(wait_until: WaitUntil) -> None:
    pool = SessionPool(2)
    sessions = [pool.session() for _ in range(3)]
    pids = [pid for session in sessions for pid in value_of(session, SLEEPERS)]
    zygote = parent_of(pids[3])
    pool.close()
    pool.close()
    wait_until(all_gone([zygote, *pids]))
    with pytest.raises(PoolClosed):
        pool.session()
    for session in sessions:
        with pytest.raises(SessionClosed):
            session.execute_code("1")


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise OSError('broken here')", "OSError: broken here"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(60,), name='mine').start()",
            "mine",
        ),
        ("f = open('/etc/passwd')", "/etc/passwd open"),
        ("import os; os._exit(3)", "ended without a word"),
    ],
)
def test_a_module_that_can_not_be_preloaded_is_named_with_the_reason(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfit.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreloadFailed, match="'unfit' can't be preloaded") as caught:
        SessionPool(1, preload=["colorsys", "unfit"])
    assert says in str(caught.value)
    with pytest.raises(PreloadFailed, match="'unfit' can't be preloaded"):
        Session("worker", preload=["unfit"])


def test_what_a_module_prints_while_it_is_preloaded_is_nobodys_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud.py").write_text(
        "import os; print('buffered'); os.write(1, b'raw'); os.write(2, b'raw')"
    )
    monkeypatch.chdir(tmp_path)
    with SessionPool(1, preload=["loud"]) as pool, pool.session() as session:
        outcome = session.execute_code("import loud; print('hi')")
        assert (outcome["stdout"], outcome["stderr"]) == ("hi\n", "")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"preload": "numpy"}, "preload"),
        ({"preload": ["a b"]}, "'a b'"),
        ({"preload": [1]}, "preload"),
        ({"isolation": "sandbox"}, "isolation='sandbox'"),
        ({"isolation": "nonsense"}, "nonsense"),
        ({"route": "local"}, "route"),
        ({"snapshot": "off"}, "snapshot: is no setting of a pool's sessions; those are actor, limits"),
        ({"network": True}, "network: is no setting"),
        ({"snapshots": "never"}, "snapshots: must be 'auto'"),
        ({"task_id": 7}, "task_id: must be a text"),
        ({"log_dir": ""}, "log_dir"),
        ({"actor": 1}, "actor"),
        ({"limits": {"memory_bytes": 1}}, "limits: memory_bytes is 1"),
        ({"limits": {"work_folder_files": 99}}, "isolation='sandbox'"),
        ({"redact": {"NAME": 1}}, "redact"),
        ({"time_limit_s": 0}, "time_limit_s"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigurationError, InvalidRequest), match=says):
        SessionPool(**settings)


def test_the_settings_of_processes_that_are_there_can_not_be_overridden() -> None:
    with SessionPool(1) as pool, pytest.raises(ConfigurationError, match="pass_env"):
        pool.session(pass_env=["A_TOKEN"])


def test_a_pool_with_ipythons_shell_gives_sessions_that_run_magics() -> None:
    with SessionPool(1, shell="ipython") as pool, pool.session() as session:
        assert session.execute_code("%precision 2")["success"]
        with pytest.raises(ConfigurationError, match="shell: is that of the whole pool"):
            pool.session(shell="plain")


def test_secrets_are_withheld_from_a_pool_but_for_those_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_TOKEN", "1")
    monkeypatch.setenv("OTHER_TOKEN", "2")
    with SessionPool(1, pass_env=["ONE_TOKEN"]) as pool, pool.session() as session:
        code = "import os; [name for name in os.environ if name.endswith('_TOKEN')]"
        assert value_of(session, code) == ["ONE_TOKEN"]


def test_many_threads_each_get_a_session_of_their_own() -> None:
    with SessionPool(2) as pool:

        def use(number: int) -> tuple[int, int]:
            with pool.session() as session:
                x, pid = value_of(session, f"import os; x = {number}; (x, os.getpid())")
                return x, pid

        with ThreadPoolExecutor(8) as threads:
            used = list(threads.map(use, range(24)))
    assert [number for number, _ in used] == list(range(24))
    assert len({pid for _, pid in used}) == 24


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_sessions_come_and_go_without_a_trace(wait_until: WaitUntil, count: int) -> None:
    with SessionPool(2) as pool:
        zygote = only_child()
        for _ in range(3):
            pool.session().close()
        before, before_kib = len(os.listdir("/proc/self/fd")), resident_kib(os.getpid(), zygote)
        for _ in range(count):
            with pool.session() as session:
                keeper = value_of(session, "import os; os.getppid()")
            children = Path(f"/proc/{zygote}/task/{zygote}/children")
            wait_until(lambda: str(keeper) not in children.read_text().split())  # noqa: B023 -- at once
        assert len(os.listdir("/proc/self/fd")) == before
        assert resident_kib(os.getpid(), zygote) - before_kib < 10 << 10


def resident_kib(*pids: int) -> int:
    """The resident memory of these processes."""
    found = (re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids)
    return sum(int(match[1]) for match in found if match)


def only_child() -> int:
    (pid,) = {
        int(pid)
        for thread in Path("/proc/self/task").iterdir()
        for pid in (thread / "children").read_text().split()
    }
    return pid


HOST = """
import os, sys, time
from json_repl.pool import SessionPool
pool = SessionPool(2, preload=["colorsys"])
pids = []
for _ in range(2):
    session = pool.session()
    session.execute_code(SLEEPERS)
    outcome = session.execute_code("[os.getpid(), os.getppid()]")
    pids += eval(outcome["result"]["text/plain"])
    session.snapshot()
print(pids, flush=True)
time.sleep(600)
"""


def start_host(source: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, cwd=folder)


def test_nothing_outlives_a_host_that_is_killed(wait_until: WaitUntil, tmp_path: Path) -> None:
    with start_host(f"SLEEPERS = {SLEEPERS!r}\n{HOST}", tmp_path) as host:
        assert host.stdout is not None
        pids = ast.literal_eval(host.stdout.readline())
        zygote = parent_of(pids[1])
        # And those that wait, which may still be starting, the sleepers, the snapshots.
        wait_until(lambda: len(_descendants(host.pid)) >= 3 + 4 * 2 + 4)
        session_wide = [stat.pid for stat in _descendants(host.pid)]
        assert {zygote, *pids} <= set(session_wide)
        host.kill()
    wait_until(all_gone(session_wide))


def test_a_host_that_is_killed_amid_an_import_takes_the_zygote_along(
    wait_until: WaitUntil, tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text(
        "import subprocess, time\nsubprocess.Popen(['sleep', '600'])\n"
        "open('loading', 'w').close()\nwhile True: time.sleep(600)\n"
    )
    source = "from json_repl.pool import SessionPool\nSessionPool(1, preload=['endless'])"
    with start_host(source, tmp_path) as host:
        wait_until((tmp_path / "loading").exists)
        pids = [stat.pid for stat in _descendants(host.pid)]
        assert len(pids) == 2
        host.kill()
    wait_until(all_gone(pids))


def _descendants(pid: int) -> list[Any]:
    from repl_kernel.process_tree import descendants

    return descendants(pid)


def test_a_fork_of_the_host_can_not_use_its_pool() -> None:
    with SessionPool(1) as pool:
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                pool.session()
            except PoolClosed:
                os.write(write_fd, b"refused")
            finally:
                pool.close()
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write_fd)
        with open(read_fd, "rb") as answer:
            assert answer.read() == b"refused"
        with pool.session() as session:
            assert value_of(session, "1") == 1


@pytest.mark.usefixtures("no_leaks")
def test_a_host_without_descriptors_is_told_so_and_goes_on_when_it_has_some() -> None:
    with SessionPool(1) as pool:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        refused = 0
        sessions: list[Session] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 24, limits[1]))
        try:
            while refused < 3 and len(sessions) < 10:
                try:
                    sessions.append(pool.session())
                except (KernelError, TaskLogError):
                    refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert refused == 3
        sessions += [pool.session() for _ in range(3)]
        assert [value_of(session, "1") for session in sessions] == [1] * len(sessions)


@pytest.mark.usefixtures("no_leaks")
def test_one_session_can_be_warm_without_a_pool() -> None:
    with Session("worker", preload=["colorsys"]) as session:
        assert value_of(session, "import sys; 'colorsys' in sys.modules")
        keeper = value_of(session, "import os; os.getppid()")
        assert parent_of(keeper) == os.getpid()  # no zygote beside it
        session.restart()
        assert value_of(session, "import sys; 'colorsys' in sys.modules")
        os.kill(keeper, signal.SIGKILL)
        session.execute_code("1")
        session.restart()
        assert value_of(session, "import sys; 'colorsys' in sys.modules")


def test_a_sandboxed_session_can_be_warm() -> None:
    try:
        session = Session("worker", isolation="sandbox", preload=["colorsys"])
    except SandboxUnavailable as exc:
        pytest.skip(f"no sandbox here: {exc}")
    with session:
        for _ in range(2):
            assert value_of(session, "import sys, os; 'colorsys' in sys.modules, os.getppid()") == (True, 1)
            session.restart()


def test_the_local_route_refuses_to_preload() -> None:
    with pytest.raises(ConfigurationError, match="route='worker'"):
        Session("local", preload=["colorsys"])


def test_the_server_preloads(tmp_path: Path) -> None:
    request = {"code": "import sys; 'colorsys' in sys.modules, 'wave' in sys.modules"}
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "execute", "params": request})
    done = subprocess.run(
        [sys.executable, "-m", "json_repl", "serve", "--preload", "colorsys, wave"],
        input=f"{message}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"TASK_LOG_DIR": str(tmp_path)},
    )
    ready, reply = map(json.loads, done.stdout.splitlines())
    assert ready["params"]["route"] == "worker"
    assert reply["result"]["result"] == {"text/plain": "(True, True)"}
    assert (done.returncode, done.stderr) == (0, "")
