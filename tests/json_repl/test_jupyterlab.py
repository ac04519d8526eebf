"""JupyterLab in a browser: the kernels are chosen in its menus, run cells, crash, and go back.

Chromium --> JupyterLab --> the kernels as the package ships them --> task log

WRITE_SCREENSHOT=1 python -m pytest tests/json_repl/test_jupyterlab.py   renews the picture in docs/images
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent.parent
SCREENSHOT = PROJECT / "docs" / "images" / "jupyterlab.png"

RECORDED = "Python 3 (recorded)"
ISOLATED = "Python 3 (recorded, isolated)"

PATIENCE_S = 60.0
"""After this, what must show is taken for lost."""

TOKEN = "for-this-test"


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs, and the folder that all of its files are in."""

    url: str
    folder: Path

    def lines(self) -> list[dict[str, Any]]:
        """What is in the task logs, the oldest first."""
        found = [
            json.loads(line)
            for path in (self.folder / "logs").glob("*/*.jsonl")
            for line in path.read_text(encoding="utf-8").split("\n")
            if line
        ]
        return sorted(found, key=lambda line: str(line["timestamp"]))


def _environment(folder: Path) -> dict[str, str]:
    ours = ("FLOW_", "TASK_LOG", "JPY_", "JUPYTER", "PYTEST_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "HOME": str(folder / "home"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "TASK_LOG_DIR": str(folder / "logs"),
    }


@pytest.fixture
def chromium() -> str:
    """The path of the browser; skips the test where it, or what drives it, is not installed."""
    for name in ("jupyterlab", "playwright"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt install chromium")
    return path


@pytest.fixture
def lab(tmp_path: Path, chromium: str) -> Iterator[Lab]:
    """A JupyterLab of this environment with empty folders, on a port that was free."""
    shutil.copytree(PROJECT / "json_repl" / "data" / "kernels", tmp_path / "jupyter" / "kernels")
    for name in ("home", "runtime", "work"):
        (tmp_path / name).mkdir()
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}', encoding="utf-8")
    command = (
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.port=0", f"--ServerApp.root_dir={tmp_path / 'work'}", f"--ServerApp.token={TOKEN}"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    )
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=_environment(tmp_path), cwd=tmp_path / "work", stdout=log, stderr=log
        )
    try:
        described = tmp_path / "runtime" / f"jpserver-{server.pid}.json"
        yield Lab(_url(server, described, tmp_path / "lab.log"), tmp_path)
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def _url(server: subprocess.Popen[bytes], described: Path, log: Path) -> str:
    """Where the server is, once it has written that down, which it does when it listens."""
    deadline = time.monotonic() + PATIENCE_S
    while not (described.exists() and described.read_text(encoding="utf-8").rstrip().endswith("}")):
        assert server.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    return str(json.loads(described.read_text(encoding="utf-8"))["url"])


@pytest.fixture
def page(lab: Lab, chromium: str) -> Iterator[Page]:
    """JupyterLab in a window; at the end nothing must have gone wrong in the page."""
    from playwright.sync_api import expect, sync_playwright

    wrong: list[str] = []
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root can't have one
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=sandbox)
        page: Page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(PATIENCE_S * 1000)
        expect.set_options(timeout=PATIENCE_S * 1000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(f"{lab.url}lab?token={TOKEN}")
        yield page
        browser.close()
    assert wrong == []


def _wait_for_kernel(page: Page, name: str) -> None:
    page.locator(".jp-KernelName", has_text=name).wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()


def _run(page: Page, code: str) -> Locator:
    """Type code into the last cell and run it; returns what the cell shows, once it has ended."""
    from playwright.sync_api import expect

    cell = page.locator(".jp-Notebook .jp-CodeCell").last
    cell.locator(".cm-content").click()
    page.keyboard.insert_text(code)
    number = page.locator(".jp-Notebook .jp-CodeCell").count()
    page.keyboard.press("Shift+Enter")
    ran = page.locator(".jp-Notebook .jp-CodeCell").nth(number - 1)
    expect(ran.locator(".jp-InputPrompt")).to_have_text(re.compile(r"^\[\d+\]:$"))
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    return ran.locator(".jp-OutputArea").first


@pytest.mark.filterwarnings("ignore")  # of playwright's event loop
def test_the_kernels_are_chosen_in_the_menus_and_a_crash_costs_nothing(
    lab: Lab, page: Page, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page.locator(f".jp-LauncherCard[data-category=Notebook][title='{RECORDED}']").click()
    _wait_for_kernel(page, RECORDED)
    expect(_run(page, "6 * 7")).to_contain_text("42")

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Change Kernel…").click()
    page.locator(".jp-Dialog select").select_option(label=ISOLATED)
    page.locator(".jp-Dialog").get_by_role("button", name="Select Kernel").click()
    _wait_for_kernel(page, ISOLATED)
    page.locator(".jp-Notebook .jp-InputPrompt").first.click()
    for key in "dd":  # that cell was the other kernel's
        page.keyboard.press(key)
    expect(page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(1)
    page.keyboard.press("Control+B")  # more room for the notebook

    expect(_run(page, "primes = [2, 3, 5, 7, 11]")).to_have_text("")
    crashed = _run(page, "import ctypes\nctypes.memset(0, 1, 1)  # writes to address 0")
    expect(crashed).to_contain_text("WorkerCrashed: the worker was killed by SIGSEGV")
    expect(crashed).to_contain_text("the state after execution 1 is live; lost with it: 2")
    expect(_run(page, "primes.append(13); primes")).to_contain_text("[2, 3, 5, 7, 11, 13]")
    expect(_run(page, "%snapshots")).to_contain_text("states that %rewind and %branch can go to")
    expect(_run(page, "%rewind 1")).to_contain_text("the state after cell 1 is live")
    expect(_run(page, "primes")).to_have_text(re.compile(r"\[2, 3, 5, 7, 11\]$"))

    page.keyboard.press("Control+S")  # the first time it asks for a name
    page.locator(".jp-Dialog input[type=text]").fill("primes.ipynb")
    page.keyboard.press("Enter")
    page.locator(".jp-mod-dirty").wait_for(state="hidden")
    picture = SCREENSHOT if os.environ.get("WRITE_SCREENSHOT") else tmp_path / "jupyterlab.png"
    picture.parent.mkdir(exist_ok=True)
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000

    again = _run(page, "import ctypes; ctypes.string_at(0)")
    expect(again).to_contain_text("the state after execution 6 is live; lost with it: 7")
    expect(_run(page, "sum(primes)")).to_contain_text("28")

    lines = lab.lines()
    assert {(line["task_name"], line["actor"], line["n"]) for line in lines} == {
        ("Untitled", "jupyter", n) for n in range(1, 10)
    }
    assert [(line["seq"], line["route"], line["status"]) for line in lines] == [
        (1, "local", "ok"),
        *((seq, "worker", "crashed" if seq in (2, 7) else "ok") for seq in range(1, 9)),
    ]
