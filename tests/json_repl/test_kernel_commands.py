"""`json-repl kernel`: what it writes, what it finds, what it removes, and what Jupyter makes of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = ["json_repl", "json_repl_isolated"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command of this environment with a home of its own, whose Jupyter folders are empty."""
    home = tmp_path / "home"
    home.mkdir()
    jupyter = {
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PREFER_ENV_PATH": "0",  # else the kernels of this environment would be found first
        "IPYTHONDIR": str(home / "ipython"),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]],
            env={**environment, "HOME": str(home), **jupyter},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def spec_in(folder: Path, name: str = "json_repl") -> Any:
    return json.loads((folder / name / "kernel.json").read_text(encoding="utf-8"))


def test_installed_for_the_user_jupyter_lists_both_kernels_and_their_interpreter_is_absolute(
    run: Run, tmp_path: Path
) -> None:
    done = run("json-repl", "kernel", "install", "--user")
    folder = tmp_path / "home" / "data" / "kernels"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"installed {folder / name}" for name in NAMES]
    listed = json.loads(run("jupyter-kernelspec", "list", "--json").stdout)["kernelspecs"]
    assert {name: listed[name]["resource_dir"] for name in NAMES} == {
        name: str(folder / name) for name in NAMES
    }
    arguments = ["-m", "json_repl.jupyter", "-f", "{connection_file}"]
    assert listed["json_repl"]["spec"]["argv"] == [sys.executable, *arguments]
    assert listed["json_repl_isolated"]["spec"]["argv"] == [sys.executable, *arguments, "--isolated"]
    assert listed["json_repl"]["spec"]["display_name"] == "Python 3 (recorded)"


def test_the_interpreter_is_the_link_of_its_virtual_environment_not_what_it_leads_to(
    run: Run, tmp_path: Path
) -> None:
    assert run("json-repl", "kernel", "install").returncode == 0
    assert spec_in(tmp_path / "home" / "data" / "kernels")["argv"][0] == sys.executable


def test_a_place_that_other_environments_see_names_no_provisioner_that_they_may_lack(
    run: Run, tmp_path: Path
) -> None:
    assert run("json-repl", "kernel", "install", "--prefix", str(tmp_path / "elsewhere")).returncode == 0
    spec = spec_in(tmp_path / "elsewhere" / "share" / "jupyter" / "kernels")
    assert "kernel_provisioner" not in spec["metadata"]


def test_the_specifications_of_the_wheel_name_our_provisioner_and_no_fixed_interpreter() -> None:
    import json_repl

    shipped = Path(json_repl.__file__).parent / "data" / "kernels"
    assert sorted(path.name for path in shipped.iterdir()) == NAMES
    for name in NAMES:
        spec = spec_in(shipped, name)
        assert spec["argv"][0] == "python"
        assert spec["metadata"]["kernel_provisioner"] == {"provisioner_name": "json-repl-warm"}


def test_our_provisioner_is_registered_under_the_name_that_the_specifications_use() -> None:
    from importlib.metadata import entry_points

    from repl_kernel.jupyter.provisioner import WarmProvisioner

    (entry,) = entry_points(group="jupyter_client.kernel_provisioners", name="json-repl-warm")
    assert entry.load() is WarmProvisioner


def test_variables_are_written_as_given_a_reference_stays_for_the_manager_to_fill_in(
    run: Run, tmp_path: Path
) -> None:
    assert (
        run(
            "json-repl", "kernel", "install", "--env", "A=1=2", "--env", "B=${HOME}/x", "--env", "C="
        ).returncode
        == 0
    )
    spec = spec_in(tmp_path / "home" / "data" / "kernels")
    assert spec["env"] == {"A": "1=2", "B": "${HOME}/x", "C": ""}


@pytest.mark.parametrize("assignment", ["A", "=1", "1A=2", "A B=1"])
def test_a_variable_without_name_or_value_is_a_usage_error_and_writes_nothing(
    assignment: str, run: Run, tmp_path: Path
) -> None:
    done = run("json-repl", "kernel", "install", "--env", assignment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"json-repl: --env {assignment!r} is not NAME=VALUE (see json-repl --help)\n"
    assert not (tmp_path / "home" / "data").exists()


def test_two_places_at_once_are_a_usage_error(run: Run) -> None:
    done = run("json-repl", "kernel", "install", "--user", "--sys-prefix")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "give one of them" in done.stderr


def test_an_empty_prefix_is_a_usage_error_and_not_the_folder_at_hand(run: Run) -> None:
    done = run("json-repl", "kernel", "install", "--prefix", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--prefix is empty" in done.stderr


def test_a_place_that_cannot_be_written_is_one_line_that_says_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    done = run("json-repl", "kernel", "install", "--prefix", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "choose another place with --user" in done.stderr


def test_installing_again_replaces_what_was_there(run: Run, tmp_path: Path) -> None:
    assert run("json-repl", "kernel", "install", "--env", "A=1").returncode == 0
    assert run("json-repl", "kernel", "install").returncode == 0
    folder = tmp_path / "home" / "data" / "kernels"
    assert spec_in(folder)["env"] == {}
    assert os.listdir(folder / "json_repl") == ["kernel.json"]


def test_removed_kernels_are_gone_and_removing_them_again_says_where_to_look(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "data" / "kernels"
    run("json-repl", "kernel", "install")
    done = run("json-repl", "kernel", "remove")
    assert done.stdout.splitlines() == [f"removed {folder / name}" for name in NAMES]
    assert os.listdir(folder) == []
    again = run("json-repl", "kernel", "remove")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == (
        f"json-repl: not installed in {folder}; `json-repl kernel list` shows where they are\n"
    )


def test_the_list_tells_ours_from_others_and_names_what_is_broken(run: Run, tmp_path: Path) -> None:
    run("json-repl", "kernel", "install")
    folder = tmp_path / "home" / "data" / "kernels"
    spec = spec_in(folder)
    changes: dict[str, dict[str, object]] = {
        "gone": {"argv": ["/nowhere/python", *spec["argv"][1:]]},
        "unknown": {"metadata": {"kernel_provisioner": {"provisioner_name": "nobody-has-it"}}},
        "other": {"argv": [sys.executable, "-m", "other_kernel"]},
        "older": {"argv": ["python1.5", *spec["argv"][1:]]},
    }
    for name, change in changes.items():
        (folder / name).mkdir()
        (folder / name / "kernel.json").write_text(json.dumps({**spec, **change}), encoding="utf-8")
    damaged = {
        "damaged": "[",
        "nested": "[" * 10**5,
        "odd": '{"argv": [5]}',
        "line": '{"argv": "python -m x"}',
    }
    for name, text in damaged.items():
        (folder / name).mkdir()
        (folder / name / "kernel.json").write_text(text, encoding="utf-8")
    done = run("json-repl", "kernel", "list", "--json")
    found = {spec["name"]: spec for spec in json.loads(done.stdout)}
    assert done.returncode == 0
    assert {
        name: (found[name]["is_ours"], found[name]["problem"]) for name in found if name != "python3"
    } == {
        "json_repl": (True, None),
        "json_repl_isolated": (True, None),
        "gone": (True, "/nowhere/python is not there, or can't be run"),
        "unknown": (True, "its provisioner nobody-has-it is not installed in this environment"),
        "other": (False, None),
        "older": (True, "python1.5 is not there, or can't be run"),
        **dict.fromkeys(
            damaged,
            (False, "kernel.json can't be read: it is no kernel specification"),
        ),
    }
    table = [line.split("\t") for line in run("json-repl", "kernel", "list").stdout.splitlines()]
    assert table[0] == ["kernel", "ours", "state", "interpreter", "folder"]
    assert ["json_repl", "yes", "ok", sys.executable, str(folder / "json_repl")] in table
