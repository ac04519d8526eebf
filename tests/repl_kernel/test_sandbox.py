"""What a sandboxed worker can do, what it can't, and that nothing of it outlives its session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import lives
from json_repl import Session
from repl_kernel import outside
from repl_kernel.errors import IsolationUnavailable, SandboxUnavailable, WorkerStartFailed
from repl_kernel.isolation import worker_environment
from repl_kernel.process_tree import descendants
from repl_kernel.sandbox import Sandbox, explained
from task_logger.errors import ConfigurationError
from tests.conftest import WaitUntil
from tests.ordinary_user import ordinary_user

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


FROM_A_DAEMON = """
import os, sys
for fd in (0, 1, 2):
    os.close(fd)
from json_repl import Session
with Session("worker", isolation=sys.argv[1]) as session:
    os._exit(0 if session.execute_code("print('here')")["stdout"] == "here\\n" else 3)
"""


@pytest.fixture
def session(log_root: Path) -> Iterator[Session]:
    with Session(route="worker", isolation="sandbox") as session:
        yield session


def value(session: Session, code: str) -> Any:
    """The value of a last expression that is JSON, as code in the session's worker sees it."""
    outcome = session.execute_code(code)
    assert outcome["success"], outcome["stderr"]
    return json.loads(json.loads(outcome["result"]["text/plain"].replace("'", '"')))


def status(session: Session, code: str, **more: Any) -> str:
    return str(session.execute_code(code, **more)["debug_info"]["execution"])


def wait_for_snapshot(session: Session, seq: int, wait_until: WaitUntil) -> None:
    wait_until(lambda: seq in [kept["seq"] for kept in session.snapshots()])


@pytest.mark.parametrize("isolation", ["process", "sandbox"])
def test_a_program_without_standard_descriptors_has_workers(isolation: str, log_root: Path) -> None:
    command = [sys.executable, "-c", FROM_A_DAEMON, isolation]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0


def test_code_runs_and_its_records_name_the_sandbox(session: Session) -> None:
    outcome = session.execute_code("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert (outcome["stdout"], outcome["stderr"]) == ("out\n", "err\n")
    assert outcome["result"] == {"text/plain": "42"}
    (line,) = session.history()
    assert line["isolation"] == "sandbox"


def test_a_long_path_for_temporary_files_is_no_hindrance(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Session(route="worker", isolation="sandbox") as session:
        assert value(session, "'[6]'") == [6]


def test_where_no_socket_can_be_put_up_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_SOCKET_PATH_BYTES", 20)  # as if /tmp were too long as well
    with pytest.raises(SandboxUnavailable, match="set TMPDIR to a short path"):
        outside.Outside(network=False)


def test_the_worker_sees_only_processes_of_its_own(session: Session) -> None:
    pids = session.execute_code("import os; sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[:2]")
    assert pids["result"] == {"text/plain": "[1, 2]"}


def test_files_are_written_to_the_work_folder_and_stay_there(log_root: Path) -> None:
    with Session(route="worker", isolation="sandbox") as session:
        assert session.work_folder is not None
        folder = Path(session.work_folder)
        assert session.execute_code("open('kept.txt', 'w').write('of use')")["success"]
        for path in ("/usr/x", "/etc/x", "/x", "/dev/x", "/proc/sys/kernel/core_pattern"):
            assert not session.execute_code(f"open({path!r}, 'w')")["success"], path
        session.execute_code(
            f"open({str(log_root / 'x')!r}, 'w')"
        )  # where there is a private /tmp, or nothing
    assert not (log_root / "x").exists()
    assert (folder / "kept.txt").read_text() == "of use"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_work_folder_that_nothing_was_left_in_is_removed(session: Session) -> None:
    assert session.work_folder is not None
    assert os.path.isdir(session.work_folder)
    session.close()
    assert not os.path.exists(session.work_folder)


def test_a_given_work_folder_is_used_and_left_alone(log_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "data.csv").write_text("1,2")
    with Session(route="worker", isolation="sandbox", work_folder=folder) as session:
        assert session.execute_code("open('data.csv').read()")["result"] == {"text/plain": "'1,2'"}
    assert (folder / "data.csv").exists()


@pytest.mark.parametrize("folder", ["", "a\0b", 5, b"/tmp"])
def test_a_work_folder_that_is_no_path_is_named(folder: Any) -> None:
    with pytest.raises(ConfigurationError, match="work_folder: must be the path of a folder"):
        Session("worker", isolation="sandbox", work_folder=folder)


def test_a_work_folder_that_holds_the_log_is_refused(log_root: Path) -> None:
    log_root.mkdir(parents=True)
    for folder in (log_root, log_root.parent, Path("/")):
        with pytest.raises(ConfigurationError, match="holds the task log"):
            Session(route="worker", isolation="sandbox", work_folder=folder)


def test_tmp_is_private_and_bounded(session: Session, tmp_path: Path) -> None:
    outcome = session.execute_code(
        "import os, shutil\nfound = os.path.exists(" + repr(str(tmp_path)) + ")\n"
        "sizes = [shutil.disk_usage(p).total for p in ('/tmp', '/dev/shm')]\n"
        "with open('/tmp/of mine', 'w') as file: file.write('x')\n"
        "with open('/dev/shm/of mine', 'w') as file: file.write('x')\n"
        "sizes, os.listdir('/dev/shm')"
    )
    assert outcome["result"] == {"text/plain": "([1073741824, 1073741824], ['of mine'])"}
    assert not os.path.exists("/tmp/of mine")
    assert not os.path.exists("/dev/shm/of mine")


def test_there_is_no_network_unless_it_is_asked_for(log_root: Path) -> None:
    code = "open('/proc/net/dev').read()"
    with Session(route="worker", isolation="sandbox") as without:
        inside = without.execute_code(code)["result"]["text/plain"]
    with Session(route="worker", isolation="sandbox", network=True) as within:
        shared = within.execute_code("import os; os.readlink('/proc/self/ns/net')")["result"]["text/plain"]
        assert not any(attempt["name"].startswith("TCP") for attempt in within.isolation_probe)
    assert inside.count(":") == 1  # the loopback alone
    assert shared == repr(os.readlink("/proc/self/ns/net"))


@pytest.mark.parametrize(
    "program", ["unshare -Ur true", "bwrap --unshare-user --ro-bind / / true", "mount -t tmpfs x /tmp"]
)
def test_no_sandbox_or_namespace_can_be_made_inside(session: Session, program: str) -> None:
    outcome = session.execute_code(f"import subprocess; subprocess.run({program.split()}).returncode")
    assert outcome["result"] != {"text/plain": "0"}


def test_programs_and_their_pipes_work_inside(session: Session) -> None:
    outcome = session.execute_code(
        "import subprocess; subprocess.check_output('echo a | cat; nproc', shell=True)"
    )
    assert outcome["success"], outcome["stderr"]


def test_multiprocessing_works_inside(session: Session) -> None:
    code = "import multiprocessing\nwith multiprocessing.Pool(2) as pool: found = pool.map(abs, [-1])\nfound"
    assert session.execute_code(code)["result"] == {"text/plain": "[1]"}


def test_a_crash_is_told_and_the_state_before_it_is_restored(session: Session, wait_until: WaitUntil) -> None:
    session.execute_code("x = [1, 2]\ng = (n for n in range(9))\nnext(g)")
    wait_for_snapshot(session, 1, wait_until)
    crash = session.execute_code("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert crash["debug_info"]["execution"] == "crashed"
    assert crash["error"]["signal"] == "SIGSEGV"
    assert session.execute_code("x, next(g)")["result"] == {"text/plain": "([1, 2], 1)"}
    assert session.execute_code("import os; os._exit(7)")["error"]["exit_code"] == 7


def test_rewinding_branching_and_speculating_work_inside(session: Session, wait_until: WaitUntil) -> None:
    session.execute_code("x = 1")
    wait_for_snapshot(session, 1, wait_until)
    session.execute_code("x = 2")
    assert [o["stdout"] for o in session.speculate(["x += 1; print(x)", "x += 2; print(x)"])] == [
        "3\n",
        "4\n",
    ]
    session.adopt(1)
    assert session.execute_code("x")["result"] == {"text/plain": "4"}
    session.rewind(1)
    with session.branch(1) as other:
        other.execute_code("x = 'other'")
        assert other.isolation == "sandbox"
        assert [line["isolation"] for line in other.history()] == ["sandbox"]
        assert session.execute_code("x")["result"] == {"text/plain": "1"}
        assert other.execute_code("x")["result"] == {"text/plain": "'other'"}


def test_a_branch_keeps_the_work_folder_that_it_shares(log_root: Path, wait_until: WaitUntil) -> None:
    with Session(route="worker", isolation="sandbox") as session:
        session.execute_code("x = 1")
        wait_for_snapshot(session, 1, wait_until)
        branch = session.branch(1)
    with branch:
        assert branch.work_folder == session.work_folder
        assert branch.execute_code("open('late', 'w').close()\nimport os; os.remove('late')")["success"]
    assert session.work_folder is not None
    assert not os.path.exists(session.work_folder)


def test_an_interrupt_reaches_the_programs_of_its_execution_and_no_others(session: Session) -> None:
    session.execute_code("import subprocess, time\nold = subprocess.Popen(['sleep', '100'])")
    assert status(session, "subprocess.run(['sleep', '100'])", time_limit_s=0.2) == "timeout"
    assert session.execute_code("old.poll()")["result"] is None
    assert status(session, "while True: pass", time_limit_s=0.2) == "timeout"


def test_a_restart_empties_the_namespace_and_ends_all_programs(session: Session) -> None:
    session.execute_code("import subprocess\np = subprocess.Popen(['sleep', '100'])")
    session.restart()
    outcome = session.execute_code("import os; 'p' in dir(), sum(e.isdigit() for e in os.listdir('/proc'))")
    assert outcome["result"] == {"text/plain": "(False, 2)"}  # the keeper, and this worker


def test_the_keeper_can_be_neither_killed_nor_stopped_nor_written_to_from_inside(session: Session) -> None:
    session.execute_code("import os, signal\nos.kill(1, signal.SIGKILL)\nos.kill(1, signal.SIGSTOP)")
    assert not session.execute_code("open('/proc/1/mem', 'r+b')")["success"]
    assert not session.execute_code("os.readlink('/proc/1/fd/0')")["success"]
    session.restart()
    assert session.execute_code("1")["success"]


def test_secrets_and_the_home_folder_are_not_there(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    with Session(route="worker", isolation="sandbox") as session:
        outcome = session.execute_code(
            "import os\n"
            "{'SOME_TOKEN', 'SSH_AUTH_SOCK'} & {*os.environ}, os.path.expanduser('~') == os.getcwd()"
        )
    assert outcome["result"] == {"text/plain": "(set(), True)"}


def test_nothing_leaks_from_sessions_that_are_closed(log_root: Path, no_leaks: None) -> None:
    for _ in range(3):
        with Session(route="worker", isolation="sandbox") as session:
            session.execute_code(
                "import subprocess; subprocess.Popen(['sleep', '100'], start_new_session=True)"
            )


HOST = """
import os, sys
from json_repl import Session
session = Session(route="worker", isolation="sandbox")
session.execute_code('''
import os, subprocess
subprocess.Popen(["sleep", "999.5"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "999.5"])
    os._exit(0)
''')
print("ready", flush=True)
session.execute_code(sys.argv[1])
"""


@pytest.mark.parametrize("code", ["sum(range(10**12))", "import time; time.sleep(99)"])
def test_nothing_outlives_a_session_that_is_killed(log_root: Path, wait_until: WaitUntil, code: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOST, code], stdout=subprocess.PIPE, cwd=ROOT) as host:
        try:
            assert host.stdout
            assert host.stdout.readline() == b"ready\n"
            wait_until(lambda: [stat.name for stat in descendants(host.pid)].count("sleep") == 2)
            # Those that were orphaned too, since they stay below bwrap.
            left = descendants(host.pid)
            assert len(left) >= 5  # bwrap, keeper, worker, two programs
        finally:
            host.kill()
    wait_until(lambda: not any(map(lives, left)))


def test_a_sandbox_outlives_the_thread_that_made_it(log_root: Path) -> None:
    import threading

    made: list[Session] = []
    thread = threading.Thread(target=lambda: made.append(Session(route="worker", isolation="sandbox")))
    thread.start()
    thread.join()
    with made[0] as session:
        pid = session.execute_code("import os; os.getpid()")["result"]
        time.sleep(0.2)  # a signal at the thread's end would have come by now
        assert session.execute_code("os.getpid()")["result"] == pid


# What is missing is named, and no code runs.


def refused(**more: Any) -> SandboxUnavailable:
    with pytest.raises(SandboxUnavailable) as caught:
        Session(route="worker", isolation="sandbox", **more)
    return caught.value


def test_without_bubblewrap_the_error_says_how_to_get_it(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused()
    assert error.layer == "bubblewrap"
    assert "apt install bubblewrap" in error.fix
    assert not list(log_root.glob("*/work/*"))


def test_a_bubblewrap_that_is_too_old_is_named(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: Unknown option --disable-userns' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused()
    assert (error.layer, error.fix) == ("bubblewrap", "install bubblewrap 0.8 or newer")


def test_without_libseccomp_the_error_says_how_to_get_it(
    log_root: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    import ctypes

    whole = ctypes.CDLL

    def without(name: str | None, *args: Any, **more: Any) -> ctypes.CDLL:
        if name is not None and "seccomp" in name:
            raise OSError("cannot open shared object file")
        return whole(name, *args, **more)

    monkeypatch.setattr(ctypes, "CDLL", without)
    error = refused()
    assert error.layer == "seccomp"
    assert "libseccomp2" in error.fix


def test_without_user_namespaces_the_error_says_how_to_allow_them(log_root: Path) -> None:
    """Inside of bubblewrap with --disable-userns there are none."""
    code = (
        "from json_repl import Session\n"
        "from repl_kernel.errors import SandboxUnavailable\n"
        "try: Session(route='worker', isolation='sandbox')\n"
        "except SandboxUnavailable as exc: print(exc.layer, '|', exc.fix)\n"
    )
    found = subprocess.run(
        ["bwrap", "--unshare-user", "--disable-userns", "--dev-bind", "/", "/", sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    layer, _, fix = found.stdout.partition(" | ")
    assert layer == "user namespaces", found
    assert "max_user_namespaces" in fix


def test_what_bubblewrap_says_of_a_masked_proc_is_passed_on() -> None:
    said = WorkerStartFailed("gone", "bwrap: Can't mount proc on /newroot/proc: Operation not permitted")
    error = explained(said)
    assert isinstance(error, SandboxUnavailable)
    assert "Can't mount proc" in str(error)


def test_a_work_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="is not a folder"):
        Sandbox(work_folder=str(tmp_path / "gone")).launcher()


def test_an_attempt_that_succeeds_means_that_no_code_runs(
    log_root: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """Without its filter, the sandbox's probe finds system calls that nothing denies."""
    plain = Sandbox.launcher

    def unfiltered(self: Sandbox) -> Any:
        launcher = plain(self)
        at = launcher.command.index("--seccomp")
        del launcher.command[at : at + 2]
        return launcher

    monkeypatch.setattr(Sandbox, "launcher", unfiltered)
    error = refused()
    assert "not denied" in error.reason
    assert not list(log_root.glob("*/*.jsonl"))


def test_settings_of_the_sandbox_need_the_sandbox(log_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs isolation='sandbox'"):
        Session(route="worker", network=True)
    with pytest.raises(ConfigurationError, match="needs isolation='sandbox'"):
        Session(route="worker", isolation="none", work_folder=tmp_path)
    with pytest.raises(ConfigurationError, match="needs route='worker'"):
        Session(route="local", isolation="sandbox")


def test_without_isolation_code_gets_the_environment_but_never_the_key(
    log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "passed on")
    assert "TASK_LOG_KEY" not in worker_environment({"TASK_LOG_KEY": "never"}, ("TASK_LOG_KEY",), "none")
    with Session(route="worker", isolation="none") as session:
        found = session.execute_code("import os; os.environ.get('SOME_TOKEN')")
        assert found["result"] == {"text/plain": "'passed on'"}
        assert session.isolation_probe == ()
        assert session.history()[0]["isolation"] == "none"


def test_a_layer_of_the_process_tier_that_does_not_hold_means_that_no_code_runs(
    log_root: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    from repl_kernel import confinement

    monkeypatch.setenv("SOME_TOKEN", "leaks")
    monkeypatch.setattr(confinement, "worker_environment", lambda environment, *_: dict(environment))
    with pytest.raises(IsolationUnavailable, match="SOME_TOKEN") as caught:
        Session(route="worker")
    assert caught.value.layer == "secrets in the environment"


# As an ordinary user.


def test_an_ordinary_user_gets_the_same_denials() -> None:
    code = (
        "import json, os\n"
        "from json_repl import Session\n"
        "with Session(route='worker', isolation='sandbox') as session:\n"
        "    session.execute_code('x = 5')\n"
        "    value = session.execute_code('import os; x, os.getuid()')['result']['text/plain']\n"
        "    print(json.dumps([os.getuid(), value, session.isolation_probe]))\n"
    )
    with ordinary_user() as user:
        found_uid, result, probe = user.value(code)
        assert (found_uid, result) == (user.uid, f"(5, {user.uid})")
    assert len(probe) > 40
    assert all(attempt["denied"] for attempt in probe)


def test_the_signal_that_kills_is_known_outside(session: Session) -> None:
    outcome = session.execute_code(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert outcome["error"]["signal"] == "SIGKILL"
