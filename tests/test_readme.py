"""What the README shows is what happens: its examples are typed into one shell, and their output is compared.

README.md --fenced blocks--> steps: a command, and what it shows --> bash on a terminal --> what it printed
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent.parent
README = PROJECT / "README.md"
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("notebooks/*.md")])

PATIENCE_S = 600.0
"""After this the shell is taken for stuck."""

LINES_COLUMNS = (40, 100)
"""Size of the terminal: the README's tables were copied from one of this width."""

MARK = "\x1e"
"""Ends what a command printed, and its exit code; no example prints it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page: its kind, its text, and the line of the page where it begins."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command of the README, what the README says that it prints, and on which line."""

    command: str
    shown: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(kind=found[1], text=found[2], line=text[: found.start()].count("\n") + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def console_steps(block: Block) -> Iterator[Step]:
    """`$ ` begins a command, `> ` goes on with it, and what follows is what it prints."""
    step: Step | None = None
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        if line.startswith("$ "):
            if step:
                yield step
            step = Step(command=line[2:], shown="", line=number)
        elif step and line.startswith("> ") and not step.shown:
            step = replace(step, command=f"{step.command}\n{line[2:]}")
        else:
            assert step, f"README.md, line {number}: output before any command"
            step = replace(step, shown=f"{step.shown}{line}\n")
    if step:
        yield step


def readme_steps() -> list[Step]:
    """What a reader would type, from top to bottom; a Python dialogue is one step, which `doctest` checks."""
    steps: list[Step] = []
    for block in blocks_of(README):
        if block.kind == "console":
            steps.extend(console_steps(block))
        elif block.kind == "pycon":
            dialogue = block.text.replace("…", "...")
            write = f"printf %s {shlex.quote(dialogue)} > dialogue.txt"
            command = f"{write}; python -m doctest -o ELLIPSIS dialogue.txt"
            steps.append(Step(command=command, shown="", line=block.line))
    return steps


STEPS = readme_steps()


def needs_jq(step: Step) -> bool:
    return re.search(r"\bjq\b", step.command) is not None


def as_parameters(steps: Sequence[Step]) -> list[Any]:
    no_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
    return [
        pytest.param(step, marks=[no_jq] if needs_jq(step) else [], id=f"line {step.line}") for step in steps
    ]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, line_schema: Any) -> dict[Step, tuple[str, int]]:
    """What each step printed on a terminal, and its exit code, when all were typed into one shell."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "home").mkdir()
    assert (Path(sys.prefix) / "bin" / "activate").exists(), (
        "the README's examples need a venv: run make test"
    )
    (folder / ".venv").symlink_to(sys.prefix)
    typed = [step for step in STEPS if shutil.which("jq") or not needs_jq(step)]
    script = folder / "script"
    end = f"printf '{MARK}%d{MARK}' $?"
    script.write_text("\n".join(f"{step.command}\n{end}" for step in typed) + "\n", encoding="utf-8")
    pieces = on_a_terminal(["bash", str(script)], folder).split(MARK)
    assert len(pieces) == 2 * len(typed) + 1, f"the shell ended early; its last words: {pieces[-1]}"
    for path in folder.rglob("*.jsonl"):
        if path.name.endswith(".events.jsonl"):
            continue
        for line in path.read_bytes().split(b"\n")[:-1]:
            line_schema.validate(json.loads(line))
    return {
        step: (output, int(code))
        for step, output, code in zip(typed, pieces[::2], pieces[1::2], strict=False)
    }


def on_a_terminal(command: Sequence[str], folder: Path) -> str:
    """Run a command with the terminal as its output, and return what it printed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "LANG": "C.UTF-8", "TERM": "xterm"}
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, LINES_COLUMNS)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its, stderr=its, cwd=folder, env=env)
    os.close(its)
    deadline = time.monotonic() + PATIENCE_S
    data = b""
    try:
        while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                data += os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        else:
            pytest.fail(f"the shell was not done within {PATIENCE_S} s; so far it printed {data.decode()}")
    finally:
        os.close(ours)
        process.kill()
        process.wait()
    return data.decode().replace("\r\n", "\n")


VARIES = (
    (r"\x1b\[[0-9;]*m", ""),  # colours
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{3}Z)?", "TIME"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "SESSION"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r'"elapsed_ms":\s*[\d.]+', '"elapsed_ms": MS'),
    (r"\b(ok|error|timeout)\s+[\d.]+", r"\1 MS"),  # in a table
    (r"\b[\d.]+ ms\b", "MS ms"),
    (r"─+", "─"),  # a table is as wide as its contents
    (r"[ \t]+", " "),
)
"""What differs from run to run, and what stands for it when two outputs are compared."""


def settled(output: str) -> str:
    for pattern, stands_for in VARIES:
        output = re.sub(pattern, stands_for, output)
    return "\n".join(line.strip() for line in output.splitlines() if line.strip())


def is_as_shown(step: Step, output: str) -> bool:
    """Whether a step printed what the README shows; a `…` there stands for any part of a line."""
    pattern = "[^\n]*".join(re.escape(piece) for piece in settled(step.shown).split("…"))
    return re.fullmatch(pattern, settled(output)) is not None


@pytest.mark.parametrize("step", as_parameters(STEPS))
def test_a_command_of_the_readme_prints_what_the_readme_shows(
    step: Step, printed: dict[Step, tuple[str, int]]
) -> None:
    output, exit_code = printed[step]
    assert exit_code == 0, output
    assert is_as_shown(step, output), f"README.md, line {step.line}: {step.command}\nprints:\n{output}"


@pytest.mark.parametrize("step", as_parameters([step for step in STEPS if step.shown]))
def test_output_that_is_not_what_the_readme_shows_would_be_noticed(
    step: Step, printed: dict[Step, tuple[str, int]]
) -> None:
    output, _ = printed[step]
    lines = settled(output).splitlines()
    assert not is_as_shown(step, "")
    assert not is_as_shown(step, "\n".join([*lines, "one line more"]))
    assert not is_as_shown(step, "\n".join(lines[:-1]))
    assert not is_as_shown(replace(step, shown=step.shown.replace("…", "") + "!"), output)


def test_every_example_of_the_readme_is_of_a_kind_that_is_checked() -> None:
    found = blocks_of(README)
    assert {block.kind for block in found} == {"sh", "console", "pycon"}
    assert README.read_text(encoding="utf-8").count("```") == 2 * len(found)
    lines = [line for block in found if block.kind == "sh" for line in block.text.splitlines()]
    assert [line for line in lines if not line.startswith("make ")] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make (?:\w+=\S+ )?([a-z-]+)", text, re.MULTILINE))
    assert "test" in targets
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for target in sorted(targets):
        command = ["make", "-n", target]
        make = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
        assert make.returncode == 0, make.stderr


def test_the_hash_that_sha256sum_finds_is_the_one_that_the_line_carries(
    printed: dict[Step, tuple[str, int]],
) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    (place,) = [place for place, step in enumerate(STEPS) if "sha256sum" in step.command]
    found, carried = (printed[step][0].split()[0] for step in STEPS[place : place + 2])
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert found == carried


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and most renderers make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(linked), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_file_and_module_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    rooms = "json_repl|repl_kernel|task_logger|tests|benchmarks|docs|notebooks"
    for named in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
        assert (PROJECT / named).exists(), f"{page.name} names {named}"
    for named in re.findall(r"python3? -m ([\w.]+)", text):
        assert find_spec(named) is not None, f"{page.name} names {named}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_python_example_of_a_page_is_python(page: Path) -> None:
    for block in blocks_of(page):
        if block.kind == "python":
            compile(block.text, f"{page.name}, line {block.line}", "exec")


def test_every_page_of_the_documentation_is_linked_from_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PROJECT.glob("docs/*.md") if f"(docs/{page.name})" not in text] == []
