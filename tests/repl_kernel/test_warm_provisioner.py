"""The warm provisioner with real managers and kernels: a kernel from a spare is a kernel like any other.

manager --start_kernel--> our provisioner --> spare or new process --> a client's executions
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from jupyter_client.manager import AsyncKernelManager, KernelManager
from traitlets.config import Config

import json_repl
from repl_kernel.jupyter import private_folder, spare_pool
from repl_kernel.jupyter.provisioner import SPARE_MODULE
from repl_kernel.jupyter.spare_pool import SparePool, pool_of_process

PATIENCE_S = 30
ISOLATED = "json_repl_isolated"

SHIPPED = Path(json_repl.__file__).parent / "data"

WHERE = """
import os, sys, signal
{"cwd": os.getcwd(), "session": os.environ.get("JPY_SESSION_NAME"), "task": os.environ.get("FLOW_TASK_ID"),
 "environment": sorted(os.environ),
 "path": sys.path, "arguments": sys.argv[1:2], "executable": sys.executable, "flags": str(sys.flags),
 "name": __name__, "is_main": sys.modules["__main__"].__dict__ is globals(),
 "scheduler": os.sched_getscheduler(0), "interrupt": str(signal.getsignal(signal.SIGINT)),
 "leads_session": os.getsid(0) == os.getpid(), "stdin": os.fstat(0).st_mode, "umask": os.umask(0o22)}
"""

WaitUntil = Callable[[Callable[[], object]], None]


@pytest.fixture
def pool(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SparePool]:
    """The pool of this process, empty; a spare is started as soon as one is wanted."""
    monkeypatch.setenv("JUPYTER_PATH", str(SHIPPED))
    monkeypatch.setattr(spare_pool, "_REFILL_AFTER_S", 0.0)
    monkeypatch.setattr(spare_pool, "_pool", None)
    pool = pool_of_process(SPARE_MODULE)
    yield pool
    pool.close()


class Kernel:
    """A kernel that a manager has started, and a client of it."""

    def __init__(
        self,
        config: Config | None = None,
        kernel_name: str = "json_repl",
        context: zmq.Context[Any] | None = None,
        **launch: Any,
    ) -> None:
        shared = {} if context is None else {"context": context}
        self.manager = KernelManager(kernel_name=kernel_name, config=config or Config(), **shared)
        self.manager.start_kernel(**launch)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE_S)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = self.manager.provisioner.process  # type: ignore[union-attr]
        return process

    @property
    def is_warm(self) -> bool:
        return SPARE_MODULE in Path(f"/proc/{self.process.pid}/cmdline").read_text().split("\0")

    def value(self, code: str) -> Any:
        """The value of an expression that the kernel evaluates, by its repr."""
        shown: list[str] = []

        def take(message: Mapping[str, Any]) -> None:
            if message["msg_type"] == "execute_result":
                shown.append(message["content"]["data"]["text/plain"])

        reply = self.client.execute_interactive(code, timeout=PATIENCE_S, output_hook=take)
        assert reply["content"]["status"] == "ok", reply["content"]
        return eval(shown[0])

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


Start = Callable[..., Kernel]


@pytest.fixture
def start(pool: SparePool) -> Iterator[Start]:
    """Starts kernels that end with the test."""
    kernels: list[Kernel] = []

    def start(*args: Any, **launch: Any) -> Kernel:
        kernels.append(Kernel(*args, **launch))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.end()


@pytest.fixture
def warm_up(start: Start, pool: SparePool, wait_until: WaitUntil) -> Callable[..., Kernel]:
    """Starts a kernel, and returns it once there is a spare beside it."""

    def warm_up(**launch: Any) -> Kernel:
        kernel = start(**launch)
        wait_until(lambda: pool.is_ready)
        return kernel

    return warm_up


def test_a_kernel_from_a_spare_differs_in_nothing_from_one_that_was_started_cold(
    warm_up: Callable[..., Kernel], start: Start, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "FLOW_TASK_ID": "T-1", "ONLY_ONCE": "1"}
    cold = warm_up(cwd=str(tmp_path / "one"), env={**environment, "JPY_SESSION_NAME": "one.ipynb"})
    del environment["ONLY_ONCE"]
    environment.update(FLOW_TASK_ID="T-2", ONLY_NOW="ü\udcff")
    warm = start(cwd=str(tmp_path / "other"), env={**environment, "JPY_SESSION_NAME": "other.ipynb"})
    assert (cold.is_warm, warm.is_warm) == (False, True)
    of_cold, of_warm = cold.value(WHERE), warm.value(WHERE)
    assert (of_cold["cwd"], of_warm["cwd"]) == (str(tmp_path / "one"), str(tmp_path / "other"))
    assert (of_cold["session"], of_warm["session"]) == ("one.ipynb", "other.ipynb")
    assert (of_cold["task"], of_warm["task"]) == ("T-1", "T-2")
    assert set(of_cold["environment"]) ^ set(of_warm["environment"]) == {"ONLY_ONCE", "ONLY_NOW"}
    assert warm.value("os.environ['ONLY_NOW']") == "ü\udcff"
    same = of_cold.keys() - {"cwd", "session", "task", "environment"}
    assert {name: of_warm[name] for name in same} == {name: of_cold[name] for name in same}


def test_the_log_of_a_kernel_from_a_spare_is_that_of_its_own_plan_and_task(
    warm_up: Callable[..., Kernel], start: Start, log_root: Path
) -> None:
    warm_up()
    ids = {"FLOW_PLAN_ID": "P-9", "FLOW_TASK_ID": "T-3", "FLOW_TASK_NAME": "warm"}
    kernel = start(env={**os.environ, **ids})
    assert kernel.is_warm
    assert kernel.value("6 * 7") == 42
    (path,) = log_root.glob("P-9/*.jsonl")
    assert path.name == "3.warm.jsonl"
    assert "6 * 7" in [json.loads(line)["code"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_isolated_kernel_starts_from_the_same_spare(warm_up: Callable[..., Kernel], start: Start) -> None:
    warm_up()
    kernel = start(kernel_name="json_repl_isolated")
    assert kernel.is_warm
    assert kernel.value("6 * 7") == 42


ENVIRONMENT = "import os\n{**os.environ}"

FOLDERS = """
import subprocess
[os.getcwd(), str(_dh), get_ipython().starting_dir, os.fsdecode(subprocess.check_output(["pwd", "-P"]))]
"""


def test_the_worker_of_a_spare_moves_to_the_notebooks_folder_and_environment(
    warm_up: Callable[..., Kernel], start: Start, tmp_path: Path
) -> None:
    for name in ("one", "\udcffother"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "ONLY_ONCE": "1", "MPLBACKEND": "agg", "GONE_TOKEN": "x", "TERM": "xterm"}
    cold = warm_up(kernel_name=ISOLATED, cwd=str(tmp_path / "one"), env=environment)
    for name in ("ONLY_ONCE", "MPLBACKEND"):
        del environment[name]
    environment |= {"ONLY_NOW": "ü\udcff", "A_TOKEN": "secret", "TASK_LOG_KEY": "00" * 32}
    environment["TASK_LOG_DIR"] = str(tmp_path / "encrypted")
    warm = start(kernel_name=ISOLATED, cwd=str(tmp_path / "\udcffother"), env=environment)
    assert (cold.is_warm, warm.is_warm) == (False, True)
    of_cold, of_warm = cold.value(ENVIRONMENT), warm.value(ENVIRONMENT)
    assert of_cold.keys() ^ of_warm.keys() == {"ONLY_ONCE", "ONLY_NOW"}
    assert of_warm["ONLY_NOW"] == "ü\udcff"
    assert (of_cold["MPLBACKEND"], of_warm["MPLBACKEND"][:7]) == ("agg", "module:")
    folder = str(tmp_path / "\udcffother")
    assert warm.value(FOLDERS) == [folder, str([Path(folder)]), folder, folder + "\n"]
    assert cold.value(FOLDERS)[0] == str(tmp_path / "one")


def test_a_worker_that_begins_anew_is_where_the_one_before_it_was(
    warm_up: Callable[..., Kernel], start: Start, tmp_path: Path
) -> None:
    warm_up()
    environment = {**os.environ, "ONLY_NOW": "1", "A_TOKEN": "secret"}
    kernel = start(kernel_name=ISOLATED, cwd=str(tmp_path), env=environment)
    assert kernel.is_warm
    kill_workers(kernel)
    assert kernel.value("import os\n[os.getcwd(), os.environ['ONLY_NOW'], 'A_TOKEN' in os.environ]") == [
        str(tmp_path),
        "1",
        False,
    ]


def test_an_isolated_kernel_starts_though_the_worker_in_reserve_has_died(
    warm_up: Callable[..., Kernel], start: Start, tmp_path: Path, wait_until: WaitUntil
) -> None:
    warm_up()
    (spare,) = spares_below(os.getpid())
    (keeper,) = spare.children()
    (worker,) = keeper.children()
    worker.kill()
    wait_until(lambda: not lives(worker))
    kernel = start(kernel_name=ISOLATED, cwd=str(tmp_path))
    assert kernel.is_warm
    assert kernel.value("import os\nos.getcwd()") == str(tmp_path)


def test_a_kernel_that_needs_no_worker_has_none_of_its_spares(
    warm_up: Callable[..., Kernel], start: Start
) -> None:
    warm_up()
    (spare,) = spares_below(os.getpid())
    reserve = spare.children(recursive=True)
    kernel = start()
    assert kernel.is_warm
    assert kernel.process.pid == spare.pid
    assert len(reserve) == 2
    assert not any(map(lives, reserve))
    waits = "import os\ntry:\n    os.wait()\nexcept ChildProcessError as exc:\n    told = exc.errno\ntold"
    assert kernel.value(waits) == errno.ECHILD


def test_a_restarted_kernel_keeps_its_connection_and_its_clients(
    warm_up: Callable[..., Kernel], start: Start, pool: SparePool, wait_until: WaitUntil
) -> None:
    warm_up()
    kernel = start()
    wait_until(lambda: pool.is_ready)
    connection = kernel.manager.get_connection_info()
    first_pid = kernel.process.pid
    kernel.client.execute("x = 1", reply=True, timeout=PATIENCE_S)
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=PATIENCE_S)
    assert kernel.manager.get_connection_info() == connection
    assert kernel.process.pid != first_pid
    assert kernel.is_warm
    assert kernel.value("'x' in globals()") is False


@pytest.mark.slow
def test_a_kernel_that_is_shut_down_can_be_started_again_by_its_manager(pool: SparePool) -> None:
    kernel = Kernel(context=zmq.Context.instance())  # one of its own is gone with the first kernel
    kernel.end()
    kernel.manager.start_kernel()
    kernel.client = kernel.manager.blocking_client()
    kernel.client.start_channels()
    kernel.client.wait_for_ready(timeout=PATIENCE_S)
    assert kernel.value("6 * 7") == 42
    kernel.end()


def test_an_interrupt_reaches_a_kernel_from_a_spare(warm_up: Callable[..., Kernel], start: Start) -> None:
    warm_up()
    kernel = start()
    assert kernel.is_warm
    asked = kernel.client.execute("import time\nprint('runs', flush=True)\ntime.sleep(600)")
    while kernel.client.get_iopub_msg(timeout=PATIENCE_S)["msg_type"] != "stream":
        pass
    kernel.manager.interrupt_kernel()
    while (reply := kernel.client.get_shell_msg(timeout=PATIENCE_S))["parent_header"]["msg_id"] != asked:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("name", ["json_repl", "json_repl_isolated"])
def test_only_this_user_reaches_a_kernel_and_nothing_of_its_connection_is_left_behind(
    name: str, start: Start
) -> None:
    kernel = start(kernel_name=name)
    manager = kernel.manager
    folder = os.path.dirname(manager.ip)
    assert manager.transport == "ipc"
    assert stat.S_IMODE(os.stat(folder).st_mode) & 0o777 == 0o700
    assert stat.S_IMODE(os.stat(manager.connection_file).st_mode) == 0o600
    assert os.path.dirname(manager.connection_file) == folder
    assert psutil.Process(kernel.process.pid).net_connections(kind="inet") == []
    kernel.end()
    assert not os.path.exists(folder)


def test_what_a_forked_child_prints_arrives_without_a_port(start: Start) -> None:
    kernel = start()
    shown: list[str] = []

    def take(message: Mapping[str, Any]) -> None:
        if message["msg_type"] == "stream":
            shown.append(message["content"]["text"])

    code = """
import os
if not (child := os.fork()):
    print("from below", flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    kernel.client.execute_interactive(code, timeout=PATIENCE_S, output_hook=take)
    while "from below" not in "".join(shown):
        take(kernel.client.get_iopub_msg(timeout=PATIENCE_S))


def test_a_manager_that_was_told_a_transport_has_its_way(
    warm_up: Callable[..., Kernel], start: Start
) -> None:
    warm_up()
    kernel = start(Config(KernelManager={"transport": "tcp"}))
    assert (kernel.manager.transport, kernel.manager.ip) == ("tcp", "127.0.0.1")
    assert kernel.is_warm
    assert kernel.value("6 * 7") == 42


def test_a_connection_file_that_the_manager_names_stays_where_it_says(
    pool: SparePool, tmp_path: Path
) -> None:
    manager = KernelManager(kernel_name="json_repl", connection_file=str(tmp_path / "kernel-1.json"))
    manager.start_kernel()
    assert json.loads((tmp_path / "kernel-1.json").read_text())["transport"] == "ipc"
    manager.shutdown_kernel(now=True)
    assert not (tmp_path / "kernel-1.json").exists()


@pytest.mark.slow
def test_variables_that_an_interpreter_reads_as_it_starts_hold_though_there_is_a_spare(
    warm_up: Callable[..., Kernel], start: Start
) -> None:
    warm_up()
    kernel = start(env={**os.environ, "PYTHONHASHSEED": "7"})
    assert not kernel.is_warm
    code = "import sys; print(hash('a'))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert kernel.value("hash('a')") == int(told.stdout)


@pytest.mark.slow
def test_a_spare_that_is_older_than_what_it_was_loaded_from_is_not_used(
    warm_up: Callable[..., Kernel], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "usercustomize.py").write_text("", encoding="utf-8")
    (packages / "sitecustomize.py").write_text("", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    warm_up()
    (packages / "installed.py").write_text("", encoding="utf-8")
    assert not start().is_warm


def test_a_spare_that_has_died_is_no_loss(
    warm_up: Callable[..., Kernel], start: Start, pool: SparePool, wait_until: WaitUntil
) -> None:
    warm_up()
    (spare,) = spares_below(os.getpid())
    spare.kill()
    wait_until(lambda: spare.status() == psutil.STATUS_ZOMBIE)
    kernel = start()
    assert not kernel.is_warm
    assert kernel.value("6 * 7") == 42


def test_a_folder_that_is_not_there_is_the_error_that_it_always_is(
    warm_up: Callable[..., Kernel], tmp_path: Path
) -> None:
    warm_up()
    manager = KernelManager(kernel_name="json_repl")
    with pytest.raises(FileNotFoundError):
        manager.start_kernel(cwd=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["json_repl", "json_repl_isolated"])
def test_a_notebooks_folder_may_hold_modules_that_are_named_as_the_standard_librarys(
    start: Start, tmp_path: Path, name: str
) -> None:
    for module in ("logging", "random", "typing", "zmq"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (tmp_path / "mine.py").write_text("answer = 42", encoding="utf-8")
    kernel = start(kernel_name=name, cwd=str(tmp_path))
    assert kernel.value("import mine\nmine.answer") == 42


def test_asyncio_managers_start_kernels_from_the_spare_too(
    warm_up: Callable[..., Kernel], pool: SparePool
) -> None:
    warm_up()

    async def run() -> tuple[bool, str]:
        manager = AsyncKernelManager(kernel_name="json_repl")
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=PATIENCE_S)
        reply = await client.execute("6 * 7", reply=True, timeout=PATIENCE_S)
        process: Any = manager.provisioner.process  # type: ignore[union-attr]
        is_warm = SPARE_MODULE in Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        return is_warm, reply["content"]["status"]

    assert asyncio.run(run()) == (True, "ok")


def test_a_kernel_of_others_is_started_as_if_we_were_not_there(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "kernels" / "theirs"
    folder.mkdir(parents=True)
    spec = json.loads((SHIPPED / "kernels" / "json_repl" / "kernel.json").read_text(encoding="utf-8"))
    spec["argv"] = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    kernel = start(kernel_name="theirs", stderr=subprocess.DEVNULL)
    assert kernel.manager.transport == "tcp"
    assert kernel.value("6 * 7") == 42


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a name that is short enough for sockets."""
    folder = Path(f"/tmp/jr-{os.getpid()}")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ended_pid() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_managers_that_start_at_once_remove_what_is_left_without_minding_each_other(
    short: Path, ended_pid: int
) -> None:
    for number in range(300):
        folder = short / f"json-repl-{ended_pid}-left{number}"
        folder.mkdir()
        os.utime(folder, (0, 0))
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(private_folder.make_private_folder) for _ in range(4)]
    assert sorted(short.iterdir()) == sorted(Path(str(each.result())) for each in made)


MANAGER = """
import sys, time
from jupyter_client.manager import KernelManager
from repl_kernel.jupyter import spare_pool
from repl_kernel.jupyter.provisioner import SPARE_MODULE
spare_pool._REFILL_AFTER_S = 0.0
manager = KernelManager(kernel_name="json_repl")
manager.start_kernel()
while not spare_pool.pool_of_process(SPARE_MODULE).is_ready:
    time.sleep(0.01)
print(manager.ip, flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["ends", "is killed"])
def test_nothing_outlives_a_manager_that_shuts_nothing_down(
    is_killed: bool, log_root: Path, wait_until: WaitUntil
) -> None:
    environment = {**os.environ, "JUPYTER_PATH": str(SHIPPED)}
    manager = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", MANAGER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert manager.stdin is not None
    assert manager.stdout is not None
    assert manager.stderr is not None
    folder = Path(manager.stdout.readline().decode().strip()).parent
    below = psutil.Process(manager.pid).children(recursive=True)
    assert len(below) == 4  # kernel, spare, and the spare's keeper and worker
    if is_killed:
        manager.kill()
    manager.stdin.close()
    manager.wait(PATIENCE_S)
    wait_until(lambda: not any(map(lives, below)))
    assert folder.exists() is is_killed  # the next manager removes it
    for stream in (manager.stdout, manager.stderr):
        stream.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_spare_that_is_still_loading_ends_with_its_manager_too(
    log_root: Path, wait_until: WaitUntil
) -> None:
    code = MANAGER.partition("while not")[0] + (
        "while spare_pool.pool_of_process(SPARE_MODULE)._spare is None:\n    time.sleep(0.001)\n"
        "print('spawned', flush=True)\nsys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "JUPYTER_PATH": str(SHIPPED)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as manager:
        assert manager.stdout is not None
        assert manager.stdout.readline() == b"spawned\n"
        below = psutil.Process(manager.pid).children(recursive=True)
        manager.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(lives, below)))


def test_a_folder_left_by_a_killed_manager_is_removed_one_in_use_stays(short: Path, ended_pid: int) -> None:
    left, living, young = (short / f"json-repl-{pid}-{name}" for pid, name in (
        (ended_pid, "left"), (os.getpid(), "living"), (ended_pid, "young")
    ))  # fmt: skip
    for path in (left, living, young):
        path.mkdir()
        (path / "kernel.json").write_text("{}", encoding="utf-8")
    for path in (left, living):
        os.utime(path, (0, 0))
    made = private_folder.make_private_folder()
    assert made is not None
    assert sorted(path.name for path in short.iterdir()) == sorted(
        [living.name, young.name, os.path.basename(made)]
    )


def lives(process: psutil.Process) -> bool:
    """Whether it is there, and hasn't only to be reaped: by its parent, or by whoever adopted it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def spares_below(pid: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(pid).children() if SPARE_MODULE in process.cmdline()]


def kill_workers(kernel: Kernel) -> None:
    """Kill the copies too: what comes next is forked by the keeper."""
    kernel.value("1")  # so that no snapshot is asked for any more
    (keeper,) = psutil.Process(kernel.process.pid).children()
    while workers := keeper.children():
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(workers, timeout=PATIENCE_S)
