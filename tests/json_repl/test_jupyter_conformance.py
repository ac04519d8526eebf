"""The recorded kernel beside stock ipykernel: suites and notebooks that others wrote, run on both."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jupyter_kernel_test as jkt
import pytest
from jupyter_client.manager import KernelManager

from tests.json_repl.conftest import in_time
from tests.kernel_host import PATIENCE_S, RECORDED, STOCK, register

_DISPLAY = "from IPython.display import HTML, Math, display; "


def _prepare(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have front ends in this process find the kernels `recorded` and `stock`; all theirs is in `folder`."""
    register(folder / "jupyter", "recorded", RECORDED)
    # As nbclient starts a stock kernel by its own name; one of its notebooks looks.
    register(folder / "jupyter", "stock", (*STOCK, "--HistoryManager.hist_file=:memory:"))
    for name in list(os.environ):
        if name.startswith(("FLOW_", "TASK_LOG", "JPY_", "PYTEST_")):
            patch.delenv(name)
    patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    patch.setenv("TASK_LOG_DIR", str(folder / "logs"))


class TestRecordedKernel(jkt.KernelTests):  # type: ignore[misc]  # it is untyped
    """Jupyter's own test of a kernel, with what it is to expect of Python, and with more patience.

    It takes a message that isn't there within 0.1 s for none.
    """

    kernel_name = "recorded"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    )
    code_display_data = (
        {"code": f"{_DISPLAY}display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": f"{_DISPLAY}display(Math('x^2'))", "mime": "text/latex"},
    )
    supported_history_operations = ("tail", "search")
    code_history_pattern = "1?2*"
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        cls._folder = tempfile.mkdtemp(prefix="conformance-")
        cls._patch = pytest.MonkeyPatch()
        _prepare(cls._patch, Path(cls._folder))
        cls.km = KernelManager(
            kernel_name=cls.kernel_name,
            transport="ipc",
            ip=f"{cls._folder}/s",
            shutdown_wait_time=PATIENCE_S,
        )
        cls.km.start_kernel()
        cls.kc = cls.km.blocking_client()
        cls.kc.start_channels()
        cls.kc.wait_for_ready(timeout=PATIENCE_S)
        for channel in (cls.kc.shell_channel, cls.kc.iopub_channel):
            channel.get_msg = partial(_get_patiently, channel.get_msg)

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        cls.km.cleanup_resources()
        cls._patch.undo()
        shutil.rmtree(cls._folder)

    def flush_channels(self) -> None:
        """Take in all that is left of the requests until now: what comes ahead of the idle of one more."""
        msg_id = self.kc.kernel_info()
        while self.kc.get_shell_msg()["parent_header"].get("msg_id") != msg_id:
            pass
        is_idle = False
        while not is_idle:
            message = self.kc.get_iopub_msg()
            is_its = message["parent_header"].get("msg_id") == msg_id
            is_idle = is_its and message["content"].get("execution_state") == "idle"

    def test_completion(self) -> None:
        """As Jupyter's; asked again where the machine stood still until the kernel gave it up."""
        for sample in self.completion_samples:
            reply = in_time(partial(self._reply_to_completion, str(sample["text"])))
            assert set(reply["matches"]) == set(sample["matches"])

    def test_inspect(self) -> None:
        """The same."""
        reply = in_time(lambda: self._reply_to(self.kc.inspect(self.code_inspect_sample)))
        assert (reply["status"], reply["found"]) == ("ok", True)
        assert reply["data"]

    def _reply_to_completion(self, text: str) -> Any:
        return self._reply_to(self.kc.complete(text))

    def _reply_to(self, msg_id: str) -> Any:
        reply = self.get_non_kernel_info_reply()
        jkt.validate_message(reply, reply["msg_type"], msg_id)
        return reply["content"]


def _get_patiently(get_message: Callable[..., Any], timeout: float | None = None) -> Any:
    del timeout
    return get_message(timeout=PATIENCE_S)


_SUITE_NEEDS = (
    "flaky",
    "pytest-asyncio",
    "pytest-cov",
    "coverage",
    "pytest-timeout",
    "trio",
    "outcome",
    "sniffio",
)
_BUILD_NEEDS = ("hatchling", "setuptools", "wheel")


def _pip(*arguments: str, **environment: str) -> None:
    """Run the pip of the Python that is on the path for this one; skips the test without one, or an index."""
    base = shutil.which("python3")
    if base is None:
        pytest.skip("there is no python3 whose pip could download anything")
    command = [base, "-m", "pip", "--python", sys.executable, *arguments, "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        pytest.skip(f"pip could not download what others wrote: {done.stderr[-300:]}")


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with what building, and ipykernel's tests, need beside our own."""
    folder = tmp_path_factory.mktemp("tools")
    _pip("install", "--no-deps", "--target", str(folder), *_BUILD_NEEDS, *_SUITE_NEEDS)
    return folder


Unpack = Callable[[str], Path]


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Unpack:
    """Downloads and unpacks the source distribution of an installed package; returns its folder."""

    def unpack(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        wanted = f"{name}=={version(name)}"
        options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder))
        _pip("download", *options, wanted, PYTHONPATH=str(tools))
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
        return unpacked

    return unpack


EXCEPTIONS: dict[str, str] = {}
"""Tests of ipykernel's that pass on stock and not on ours, each with its cause. None is known."""


@pytest.mark.slow
def test_no_test_of_ipykernels_own_fails_that_passes_on_stock(
    tmp_path: Path, sdist: Unpack, tools: Path
) -> None:
    tree = sdist("ipykernel")
    failed = _failures(tree, tmp_path / "first", tools, RECORDED)
    assert len(failed.run) > 200  # it has run
    # Some of them hang on time: what fails must fail again, and pass on stock.
    again = _failures(tree, tmp_path / "again", tools, RECORDED, failed.names) if failed.names else failed
    stock = _failures(tree, tmp_path / "stock", tools, STOCK, again.names) if again.names else again
    assert again.names - stock.names == set(EXCEPTIONS)


class _Results:
    """Which tests have run, and which of them have failed, as pytest names them."""

    def __init__(self, report: Path) -> None:
        self.run: set[str] = set()
        self.names: set[str] = set()
        for case in ElementTree.parse(report).iter("testcase"):
            module, _, inside = case.attrib["classname"].partition("tests.")[2].partition(".")
            name = "::".join((f"tests/{module}.py", *filter(None, inside.split(".")), case.attrib["name"]))
            self.run.add(name)
            if case.find("failure") is not None or case.find("error") is not None:
                self.names.add(name)


def _failures(
    tree: Path, folder: Path, tools: Path, argv: tuple[str, ...], only: set[str] | None = None
) -> _Results:
    """Run ipykernel's suite, or some of it, with a kernel registered as `python3`."""
    register(folder / "jupyter", "python3", argv, "Python 3")
    (folder / "home").mkdir()
    report = folder / "report.xml"
    options = ("-q", "-o", "addopts=", "-W", "ignore", "-p", "no:cacheprovider", "--timeout=60")
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *(sorted(only or ("tests",)))],
        cwd=tree,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "HOME": str(folder / "home"),
            "JUPYTER_PATH": str(folder / "jupyter"),
            "TASK_LOG_DIR": str(folder / "logs"),
            "PYTHONPATH": str(tools),
        },
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=1800,
    )
    return _Results(report)


NOT_ALONE = frozenset(("Parallel Execute A.ipynb", "Parallel Execute B.ipynb"))
"""They wait for each other, and for a cell that nbclient's tests put in front."""

TO_INTERRUPT = frozenset(("Interrupt.ipynb", "keyboard_interrupt.ipynb"))
"""They sleep until they are interrupted; the latter for 60 s at most."""

_CHANGES_WHAT_IS_SHOWN = ("clear_output", "with output", "display_with_id")
"""The line keeps what was shown first, the notebook what was left of it."""

_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?"), "<time>"),
    (re.compile(r"0x[0-9a-f]{6,}"), "<address>"),
    (re.compile(r"ipykernel_\d+"), "<kernel>"),
    (re.compile(r"\d+(\.\d+)? ?(seconds|s|ms|µs|ns)\b"), "<duration>"),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "folder"), [("nbclient", "tests/files"), ("papermill", "papermill/tests/notebooks")]
)
def test_notebooks_of_others_show_the_same_as_on_stock_and_have_a_line_for_each_cell(
    package: str, folder: str, tmp_path: Path, sdist: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _prepare(monkeypatch, tmp_path)
    paths = [
        path for path in sorted((sdist(package) / folder).rglob("*.ipynb")) if path.name not in NOT_ALONE
    ]
    assert len(paths) >= 20
    cells = 0
    for path in paths:
        monkeypatch.setenv("FLOW_TASK_NAME", path.stem)
        stock, recorded = _run(path, "stock"), _run(path, "recorded")
        assert _outputs(recorded) == _outputs(stock), path.name
        cells += _check_log(path, recorded, tmp_path / "logs")
    assert cells > 30


_KINDS_OF_CELLS = (
    "print('{n}')\nprint('error {n}', file=__import__('sys').stderr)",
    "{n}",
    "raise ValueError('{n}')",
    "for i in range({n}):\n    print(i, end=' ', flush=i % 7 == 0)",
    "import os\nos.system('echo {n}');",
    "'ä€😀' * {n}",
    "await __import__('asyncio').sleep(0)\nprint({n})",
    "!echo {n}",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_hundred_cells_have_the_text_in_the_log_that_the_notebook_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat.v4

    _prepare(monkeypatch, tmp_path)
    codes = [_KINDS_OF_CELLS[n % len(_KINDS_OF_CELLS)].format(n=n) for n in range(200)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])  # type: ignore[no-untyped-call]
    path = tmp_path / "cells.ipynb"
    path.write_text(nbformat.v4.writes_json(notebook), encoding="utf-8")  # type: ignore[no-untyped-call]
    monkeypatch.setenv("FLOW_TASK_NAME", path.stem)
    assert _check_log(path, _run(path, "recorded"), tmp_path / "logs") == 200


def _run(path: Path, kernel_name: str) -> Any:
    """The notebook as nbclient leaves it; a kernel that dies under it leaves it where it was."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    sockets = tempfile.mkdtemp(prefix="k-")
    manager = AsyncKernelManager(kernel_name=kernel_name, transport="ipc", ip=f"{sockets}/s")
    client = NotebookClient(
        notebook,
        km=manager,
        allow_errors=True,
        timeout=5 if path.name in TO_INTERRUPT else 120,
        interrupt_on_timeout=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute(cleanup_kc=True)  # it leaves a manager that it is given alone otherwise
    except DeadKernelError:
        notebook.metadata["died"] = True
    finally:
        manager.context.destroy(linger=0)
        shutil.rmtree(sockets)
        gc.collect()  # nbclient leaves sockets to it
    return notebook


def _code_cells(notebook: Any) -> list[Any]:
    skipped = "skip-execution"
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip() and skipped not in cell.metadata.get("tags", [])
    ]


def _outputs(notebook: Any) -> list[Any]:
    return [_comparable([dict(output) for output in cell.outputs]) for cell in _code_cells(notebook)]


def _comparable(outputs: list[dict[str, Any]]) -> Any:
    """Outputs without what differs from run to run; how a stream is cut into messages does."""
    streams = {"stdout": "", "stderr": ""}
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]] += output["text"]
    others = [output for output in outputs if output["output_type"] != "stream"]
    text = json.dumps([streams, others], sort_keys=True)
    for varying, instead in _VARYING:
        text = varying.sub(instead, text)
    return json.loads(text)


def _check_log(path: Path, notebook: Any, root: Path) -> int:
    """A line for each cell that ran, with the text that is shown; returns how many."""
    lines = [
        line
        for log in root.glob("*/*.jsonl")
        for line in map(json.loads, log.read_text(encoding="utf-8").splitlines())
        if line["task_name"] == path.stem
    ]
    cells = _code_cells(notebook)
    if notebook.metadata.get("died"):
        cells = cells[: len(lines)]  # the one that killed it has its line from the next writer
    assert [line["code"] for line in lines] == [cell.source for cell in cells], path.name
    for cell, line in zip(cells, lines, strict=True):
        if any(word in cell.source for word in _CHANGES_WHAT_IS_SHOWN):
            continue
        for name in ("stdout", "stderr"):
            shown = "".join(
                out.text for out in cell.outputs if out.output_type == "stream" and out.name == name
            )
            raised = line["error"]["traceback"] if line["error"] and name == "stderr" else ""
            assert line[name] in (shown + raised, shown) if raised else line[name] == shown, path.name
        results = [out.data["text/plain"] for out in cell.outputs if out.output_type == "execute_result"]
        assert results == ([line["result"]["text/plain"]] if line["result"] else []), path.name
        errors = [out.ename for out in cell.outputs if out.output_type == "error"]
        if line["error"] and line["error"]["type"] == "UsageError":
            assert errors == [], path.name  # IPython prints it; only the reply says that it is an error
        else:
            assert errors == ([line["error"]["type"]] if line["error"] else []), path.name
    return len(lines)
