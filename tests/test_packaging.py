"""What is shipped: the wheel, what is in it, and that it works where nothing but it is installed.

the tree --hatchling--> wheel --pip--> a fresh virtual environment --> its commands, run far from the tree
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest

from json_repl import __version__

PROJECT = Path(__file__).parent.parent
PACKAGES = ("json_repl", "repl_kernel", "task_logger")
INFO = f"json_repl-{__version__}.dist-info"
DATA = f"json_repl-{__version__}.data"
KERNELS = ("json_repl", "json_repl_isolated")

REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"6 * 7"}}\n'

START_KERNEL = """
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="json_repl")
client.execute_interactive("import json_repl; print(json_repl.__file__)", timeout=60)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


def build(kind: str, tree: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", PROJECT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_three_packages_one_module_two_kernels_and_nothing_else(names: set[str]) -> None:
    top = {name.partition("/")[0] for name in names}
    assert top == {*PACKAGES, "json_repl_session.py", INFO, DATA}
    assert {name for name in names if name.startswith(DATA)} == {
        f"{DATA}/data/share/jupyter/kernels/{name}/kernel.json" for name in KERNELS
    }


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_that_was_made_from_them(
    names: set[str],
) -> None:
    in_tree = {
        str(path.relative_to(PROJECT))
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*")
        if path.parent.name != "__pycache__" and path.is_file()  # whoever imports now writes in there
    }
    in_wheel = {name for name in names if name.partition("/")[0] in PACKAGES}
    assert in_wheel == in_tree - {"json_repl/_session_entry.py"}  # which became json_repl_session.py
    assert {f"{package}/py.typed" for package in PACKAGES} <= in_wheel
    assert {"json_repl/data/planets.csv", "json_repl/data/tour.py"} <= in_wheel


def test_the_wheel_names_its_commands_its_version_its_license_and_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        commands = ConfigParser()
        commands.read_string(archive.read(f"{INFO}/entry_points.txt").decode())
        metadata = message_from_bytes(archive.read(f"{INFO}/METADATA"))
        assert f"{INFO}/licenses/LICENSE" in archive.namelist()
    assert dict(commands["console_scripts"]) == {
        "json-repl": "json_repl.cli:main",
        "task-log": "task_logger.cli:main",
    }
    assert dict(commands["jupyter_client.kernel_provisioners"]) == {
        "json-repl-warm": "repl_kernel.jupyter.provisioner:WarmProvisioner"
    }
    assert dict(commands["pytest11"]) == {"json_repl.pytest_plugin": "json_repl.pytest_plugin"}
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload().strip().startswith("# json-repl")  # type: ignore[union-attr]  # it is text


def test_the_source_distribution_builds_the_same_wheel(names: set[str], tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    source = build("sdist", PROJECT, tmp_path / "dist")
    # By tar: before 3.11.4 `tarfile` knows no filter, and from 3.12 on it warns without one.
    subprocess.run(["tar", "--extract", "--file", source, "--directory", tmp_path], check=True)
    (tree,) = tmp_path.glob("json_repl-*")
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "tests/test_packaging.py", "docs"):
        assert (tree / name).exists(), name
    with zipfile.ZipFile(build("wheel", tree, tmp_path / "again")) as archive:
        assert set(archive.namelist()) == names


BASE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def new_environment(folder: Path) -> None:
    prepare(str(BASE), "-m", "venv", "--without-pip", str(folder))


def install(folder: Path, *what: str) -> None:
    """Install into a virtual environment, with no package index."""
    options = ["install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", *what]
    prepare(str(BASE), "-m", "pip", "--python", str(folder / "bin" / "python"), *options)


def borrow_dependencies(folder: Path) -> None:
    """Let a virtual environment import what this one can."""
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Of that folder only the packages count: its own .pth files, which lead to this tree, aren't read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def prepare(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Installed:
    """The wheel in a virtual environment of its own, which borrows the dependencies of this one."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        new_environment(folder / "venv")
        install(folder / "venv", str(wheel))
        borrow_dependencies(folder / "venv")

    def run(self, command: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        env = {"PATH": os.defpath, "HOME": str(self.folder), "TASK_LOG_DIR": str(self.folder / "logs")}
        return subprocess.run(
            [str(self.bin / command), *arguments],
            input=given,
            cwd=self.folder,
            env=env,
            capture_output=True,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


def test_the_installed_packages_are_those_of_the_wheel(installed: Installed) -> None:
    code = "import sys, importlib.util as u; print(*(u.find_spec(name).origin for name in sys.argv[1:]))"
    paths = installed.run("python", "-c", code, *PACKAGES, "json_repl_session").stdout.decode().split()
    assert [Path(path).is_relative_to(installed.folder) for path in paths] == [True] * 4


@pytest.mark.parametrize("module", ["json_repl", "json_repl_session"])
def test_an_installed_session_serves_under_both_of_its_names(module: str, installed: Installed) -> None:
    served = installed.run("python", "-m", module, given=REQUEST)
    assert (served.returncode, served.stderr) == (0, b"")
    ready, reply = (json.loads(line) for line in served.stdout.splitlines())
    assert ready["params"]["signal"] == "__READY__"
    assert reply["result"]["result"] == {"text/plain": "42"}


def test_the_installed_commands_say_what_they_are(installed: Installed) -> None:
    assert installed.run("json-repl", "--version").stdout == f"json-repl {__version__}\n".encode()
    assert installed.run("task-log", "--help").stdout.startswith(b"Usage: task-log")
    path = installed.run("python", "-m", "task_logger", "path")
    assert path.stdout == f"{installed.folder}/logs/local/unknown.adhoc.jsonl\n".encode()


def test_the_installed_demo_finds_its_data_and_its_worker(installed: Installed) -> None:
    demo = installed.run("json-repl", "demo")
    assert (demo.returncode, demo.stderr) == (0, b"")
    assert b"8 planets" in demo.stdout


def test_the_installed_kernels_are_found_and_run_what_is_installed(installed: Installed) -> None:
    listed = json.loads(installed.run("json-repl", "kernel", "list", "--json").stdout)
    folder = installed.folder / "venv" / "share" / "jupyter" / "kernels"
    assert [(spec["folder"], spec["problem"]) for spec in listed if spec["is_ours"]] == [
        (str(folder / name), None) for name in KERNELS
    ]
    started = installed.run("python", "-c", START_KERNEL)
    assert started.returncode == 0, started.stderr
    assert Path(started.stdout.decode().strip()).is_relative_to(installed.folder)


def test_kernels_for_this_environment_alone_start_its_interpreter_and_through_our_provisioner(
    installed: Installed,
) -> None:
    done = installed.run("json-repl", "kernel", "install", "--sys-prefix")
    assert done.returncode == 0, done.stderr
    path = installed.folder / "venv" / "share" / "jupyter" / "kernels" / "json_repl" / "kernel.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    assert spec["argv"][0] == str(installed.bin / "python")
    assert spec["metadata"]["kernel_provisioner"] == {"provisioner_name": "json-repl-warm"}
    started = installed.run("python", "-c", START_KERNEL)
    assert started.returncode == 0, started.stderr


@pytest.mark.slow
def test_an_editable_installation_has_the_kernels_too(tmp_path: Path) -> None:
    new_environment(tmp_path / "venv")
    borrow_dependencies(tmp_path / "venv")  # of which one builds it
    install(tmp_path / "venv", "--no-build-isolation", "--editable", str(PROJECT))
    kernels = tmp_path / "venv" / "share" / "jupyter" / "kernels"
    assert sorted(path.parent.name for path in kernels.glob("*/kernel.json")) == list(KERNELS)


def test_a_worker_that_no_session_has_started_says_so_in_one_line(installed: Installed) -> None:
    worker = installed.run("python", "-m", "repl_kernel.worker")
    assert (worker.returncode, worker.stdout) == (2, b"")
    assert worker.stderr.decode().count("\n") == 1
    assert "started by a session" in worker.stderr.decode()
