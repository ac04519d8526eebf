"""The pytest plugin, in pytest runs of their own: recordings as tests, and sessions that answer from them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import task_logger
from json_repl import Session
from json_repl.session_settings import SessionRoute
from task_logger.codec import read_link, seal
from task_logger.task import events_beside

RunPytest = Callable[..., pytest.RunResult]

PLUGIN = ("-p", "json_repl.pytest_plugin", "-W", "error", "-p", "no:cacheprovider")

CALLS = ("x = 20", "print('on the way')\nx + 1", "y = x * 2\ny")

AGENT = """
def agent(session):
    for code in CALLS:
        outcome = session.execute_code(code)
    return outcome

CALLS = ["x = 20", "print('on the way')\\nx + 1", "y = x * 2\\ny"]
"""

IN_ORDER = """
def test_agent(replay_session):
    outcome = agent(replay_session("agent.exec.jsonl"))
    assert outcome["result"] == {"text/plain": "40"}
"""


@pytest.fixture
def run_pytest(pytester: pytest.Pytester, log_root: Path, monkeypatch: pytest.MonkeyPatch) -> RunPytest:
    """Runs pytest with the plugin in the test's folder, in a process of its own."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others take longer than the tests

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*PLUGIN, *arguments)

    return run


@pytest.fixture
def recording(pytester: pytest.Pytester, log_root: Path) -> Path:
    """A recording of three calls, with two responses of a model beside it."""
    return record(pytester.path / "agent.exec.jsonl", CALLS)


def record(path: Path, codes: tuple[str, ...], route: SessionRoute = "local") -> Path:
    root = path.parent / f"{path.name} logs"
    with Session(route, log_dir=root) as session:
        for number, code in enumerate(codes):
            session.execute_code(code)
            if number < 2:
                task_logger.llm_response(
                    "some-model",
                    correlation_id=str(number),
                    cost_usd=0.25,
                    dimensions={"text": f"say {number}"},
                )
    shutil.copy(session.log_path, path)
    events = Path(events_beside(str(path)))
    events.parent.mkdir(exist_ok=True)
    shutil.copy(events_beside(session.log_path), events)
    shutil.rmtree(root)
    return path


def test_a_recording_is_collected_with_a_test_for_each_line(recording: Path, run_pytest: RunPytest) -> None:
    result = run_pytest("-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*agent.exec.jsonl::line 1 PASSED*", "*agent.exec.jsonl::line 3 PASSED*"])


def test_a_line_that_was_changed_fails_at_its_number(recording: Path, run_pytest: RunPytest) -> None:
    recording.write_bytes(recording.read_bytes().replace(b"on the way", b"on the wax"))
    result = run_pytest()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "agent.exec.jsonl:2: unreadable: it is not a whole line with a right hash",
            "agent.exec.jsonl:3: chain_break: *",
        ]
    )


def test_code_that_doesnt_compile_fails_unless_it_was_recorded_so(
    pytester: pytest.Pytester, log_root: Path, run_pytest: RunPytest
) -> None:
    path = record(pytester.path / "broken.exec.jsonl", ("1 +", "x = 1", "await_me = 2"))
    lines = path.read_bytes().splitlines(keepends=True)
    link = read_link(lines[1].removesuffix(b"\n"))
    assert link is not None
    changed = sealed_anew(lines[2], b'"code":"await_me = 2"', b'"code":"await_me = "', prev=link.hash)
    path.write_bytes(lines[0] + lines[1] + changed)
    result = run_pytest()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["broken.exec.jsonl:3: its code was run, but doesn't compile: line 1: SyntaxError: *"]
    )


def sealed_anew(line: bytes, old: bytes, new: bytes, *, prev: str) -> bytes:
    """The line with a change, and with a hash that is right for it."""
    assert old in line
    link = read_link(line.removesuffix(b"\n"))
    assert link is not None
    body = line[: line.rindex(b',"n":')].replace(old, new)
    return seal(body, n=link.n, prev=prev)[0]


def test_what_ended_otherwise_than_by_itself_is_skipped(
    pytester: pytest.Pytester, log_root: Path, run_pytest: RunPytest
) -> None:
    record(pytester.path / "crash.exec.jsonl", ("x = 1", "import os; os._exit(3)", "2"), "worker")
    result = run_pytest("-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*crash.exec.jsonl:2: its execution ended as crashed, which isn't replayed"])


@pytest.mark.foreign_lines
@pytest.mark.parametrize("arguments", [(), ("-p", "xdist", "-n", "2")])
def test_a_recording_answers_in_order_and_nothing_runs(
    arguments: tuple[str, ...], pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest
) -> None:
    source = recording.read_bytes()
    pytester.makepyfile(
        AGENT
        + IN_ORDER
        + """
def test_the_session_of_the_recording_is_named(replay_session):
    with replay_session("agent.exec.jsonl") as session:
        debug_info = agent(session)["debug_info"]
    assert debug_info["session_id"] == session.session_id
    assert debug_info["log"]["path"] == session.log_path
def test_output_is_streamed(replay_session):
    session, seen = replay_session("agent.exec.jsonl"), []
    for code in CALLS:
        outcome = session.execute_code(code, on_output=lambda *each: seen.append(each))
    assert seen == [("stdout", "on the way\\n")]
    assert outcome["debug_info"]["added_vars"] == ["y"]
    assert outcome["debug_info"]["log"]["n"] == 3
"""
    )
    result = run_pytest(*arguments)
    result.assert_outcomes(passed=6)
    assert recording.read_bytes() == source


DIFFERENCES = {
    "another code": (
        """
    session.execute_code("x = 20")
    session.execute_code("print('on the way')\\nx - 1")  # here
""",
        ["*# here", "*agent.exec.jsonl:2: the code differs from what was recorded, line 2, column 3",
         "*recorded | x + 1", "*called   | x - 1", "*         |   ^"],
    ),
    "one too many": (
        """
    agent(session)
    session.execute_code("print('more')")  # here
""",
        ["*# here", "*agent.exec.jsonl:3: the recorded session ends here, and one more call is made: *more*"],
    ),
    "restarted": (
        """
    session.execute_code("x = 20")
    session.restart()
    session.execute_code(CALLS[1])  # here
""",
        ["*# here", "*agent.exec.jsonl:2: the session was restarted before this call; it wasn't then"],
    ),
    "swallowed": (
        """
    try:
        session.execute_code("x = 21")
    except BaseException:
        pass
""",
        ["*agent.exec.jsonl:1: the code differs from what was recorded, line 1, column 6"],
    ),
    "one never made": (
        """
    session.execute_code("x = 20")
""",
        ["*agent.exec.jsonl:2: this call was never made, and 1 after it: *on the way*"],
    ),
    "one session more": (
        """
    agent(session)
    replay_session("agent.exec.jsonl")  # here
""",
        ["*# here", "*agent.exec.jsonl: one more session is asked for than was recorded"],
    ),
    "what no recording holds": (
        """
    session.variables()  # here
""",
        ["*# here", "*AttributeError: a recording doesn't hold what Session.variables gives*"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_call_that_differs_fails_there_and_names_the_line(
    what: str, pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest
) -> None:
    body, shown = DIFFERENCES[what]
    if what == "restarted":  # only workers tell
        record(recording, CALLS, "worker")
    pytester.makepyfile(
        AGENT + f"\ndef test_agent(replay_session):\n    session = replay_session('agent.exec.jsonl')\n{body}"
    )
    result = run_pytest("test_a_call_that_differs_fails_there_and_names_the_line.py")
    is_at_the_end = what in ("one never made", "swallowed")
    result.assert_outcomes(
        passed=int(is_at_the_end), errors=int(is_at_the_end), failed=int(not is_at_the_end)
    )
    result.stdout.fnmatch_lines(shown)
    assert "json_repl/testing" not in result.stdout.str(), "our own frames are hidden"


@pytest.mark.parametrize("ending", ["pytest.skip('not today')", "assert 0", "pytest.xfail('not yet')"])
def test_a_test_that_ends_early_isnt_told_of_calls_never_made(
    ending: str, pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest
) -> None:
    test = """
import pytest

def test_agent(replay_session):
    replay_session('agent.exec.jsonl')
"""
    pytester.makepyfile(test_early=f"{test}    {ending}")
    result = run_pytest("test_early.py")
    assert result.parseoutcomes().keys() <= {"skipped", "failed", "xfailed"}


@pytest.mark.parametrize("route", ["local", "worker"])
def test_live_runs_each_call_on_its_route_and_compares(
    route: SessionRoute, pytester: pytest.Pytester, log_root: Path, run_pytest: RunPytest
) -> None:
    path = record(
        pytester.path / "agent.exec.jsonl", (*CALLS, "import os; os.environ.get('SOME_SETTING')"), route
    )
    source = path.read_bytes()
    pytester.makepyfile(
        test_live=AGENT
        + f"""
def test_agent(replay_session, monkeypatch, ignore=()):
    monkeypatch.setenv("SOME_SETTING", "changed")
    with replay_session("agent.exec.jsonl", mode="live", ignore=ignore) as session:
        agent(session)
        assert session.variables()[0]["name"] == "x"
        assert session.route == {route!r}
        session.execute_code("import os; os.environ.get('SOME_SETTING')")

def test_ignored(replay_session, monkeypatch):
    test_agent(replay_session, monkeypatch, ["result"])
"""
    )
    result = run_pytest("test_live.py")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*agent.exec.jsonl:4: result[[]text/plain] differs from what was recorded, line 1, column 1",
         "*recorded | (nothing)", "*now      | 'changed'"]
    )  # fmt: skip
    assert path.read_bytes() == source
    assert not log_root.exists()


MODEL = """
import task_logger

def run(session, model):
    code = "'plan it'"
    while code != "done":
        session.execute_code(code)
        code = model()
    return "finished"

def real_model(answers=iter(["6 * 7", "done"])):
    text = next(answers)
    task_logger.llm_response("m", correlation_id="c", cost_usd=0.1, dimensions={"text": text})
    return text

def test_agent(replay_session):
    session = replay_session("recordings/agent.exec.jsonl")
    replies = iter(session.llm_responses())
    model = real_model if session.is_recording else lambda: next(replies)["dimensions"]["text"]
    assert run(session, model) == "finished"
    session.assert_calls(["'plan it'", "6 * 7"])
    session.assert_final_text("done")
    session.assert_total_cost(0.2)
"""


def test_an_agent_is_recorded_once_and_then_driven_by_its_recorded_model(
    pytester: pytest.Pytester, run_pytest: RunPytest
) -> None:
    pytester.makepyfile(test_agent=MODEL)
    result = run_pytest("test_agent.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*agent.exec.jsonl: there is no recording; pytest --record=new makes one"])
    run_pytest("--record=new", "test_agent.py").assert_outcomes(passed=1)
    folder = pytester.path / "recordings"
    kept = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {str(name) for name in kept} == {"agent.exec.jsonl", "events/agent.exec.events.jsonl"}
    pytester.makepyfile(test_agent=MODEL.replace("text = next(answers)", "raise AssertionError"))
    for mode in ("none", "new"):
        run_pytest(f"--record={mode}", "test_agent.py").assert_outcomes(passed=1)
    assert {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == kept


@pytest.mark.parametrize(
    ("assertion", "shown"),
    [
        (
            "assert_calls(['x = 20', CALLS[1], 'y'])",
            "*agent.exec.jsonl: the calls aren't the expected ones, line 3*",
        ),
        (
            "assert_final_text('say 2')",
            "*events/agent.exec.events.jsonl:2: the final text differs, line 1, column 5",
        ),
        (
            "assert_total_cost(0.4)",
            "*events/agent.exec.events.jsonl: the responses cost 0.5 USD in all, not 0.4",
        ),
        (
            "assert_total_cost(float('nan'))",
            "*events/agent.exec.events.jsonl: the responses cost 0.5 USD in all, not nan",
        ),
        (
            "assert_final_text(None)",
            "*events/agent.exec.events.jsonl:2: the final text is None now, and was 'say 1'",
        ),
    ],
)
def test_the_helpers_fail_where_it_isnt_so(
    assertion: str, shown: str, pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest
) -> None:
    test = f"""
def test_agent(replay_session):
    session = replay_session("agent.exec.jsonl")
    agent(session)
    session.{assertion}
"""
    pytester.makepyfile(test_helper=AGENT + test)
    result = run_pytest("test_helper.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([shown])


def test_recording_all_replaces_what_can_be_read_once_the_test_has_passed(
    pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest
) -> None:
    before = recording.read_bytes()
    failing = AGENT.replace("x = 20", "x = 30") + IN_ORDER
    pytester.makepyfile(test_all=failing)
    run_pytest("--record=all", "test_all.py").assert_outcomes(failed=1)
    assert recording.read_bytes() == before, "a test that failed records nothing"
    pytester.makepyfile(test_all=failing.replace('"40"', '"60"'))
    run_pytest("--record=all", "test_all.py").assert_outcomes(passed=1)
    assert b"x = 30" in recording.read_bytes()
    assert not Path(events_beside(str(recording))).exists(), "they were of the recording before"
    run_pytest().assert_outcomes(passed=4)
    assert [path.name for path in pytester.path.rglob("*.exec.jsonl*")] == [recording.name]


def test_a_recording_that_cant_be_put_in_its_place_leaves_the_one_before(
    pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest
) -> None:
    (pytester.path / "artifacts").write_text("no folder")
    before = {path: path.read_bytes() for path in pytester.path.rglob("agent.exec.*jsonl")}
    pytester.makepyfile(
        test_all="""
def test_it(replay_session):
    replay_session("agent.exec.jsonl").execute_code("print('x' * (2 << 20))")
"""
    )
    result = run_pytest("--record=all", "test_all.py")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*agent.exec.jsonl: the recording can't be put in its place: *untouched"])
    assert {path: path.read_bytes() for path in pytester.path.rglob("*agent.exec.*jsonl")} == before


def test_long_output_is_recorded_with_its_artifact(pytester: pytest.Pytester, run_pytest: RunPytest) -> None:
    pytester.makepyfile(
        test_long="""
def test_it(replay_session):
    outcome = replay_session("long.exec.jsonl").execute_code("print('x' * (2 << 20))")
    assert outcome["artifacts"][0]["field"] == "stdout"

def test_it_live(replay_session):
    replay_session("long.exec.jsonl", mode="live").execute_code("print('x' * (2 << 20))")
"""
    )
    run_pytest("--record=new", "test_long.py").assert_outcomes(passed=2)
    (kept,) = pytester.path.glob("artifacts/*/*")
    assert kept.read_bytes() == b"x" * (2 << 20) + b"\n"
    run_pytest().assert_outcomes(passed=3)


def test_two_sessions_are_recorded_and_answered_in_their_order(
    pytester: pytest.Pytester, run_pytest: RunPytest
) -> None:
    pytester.makepyfile(
        test_two="""
def test_it(replay_session):
    one, other = (replay_session("two.exec.jsonl") for _ in range(2))
    assert other.execute_code("'x' in globals()")["result"] == {"text/plain": "False"}
    assert one.execute_code("x = 1; x")["result"] == {"text/plain": "1"}
    assert one.execute_code("x + 1")["result"] == {"text/plain": "2"}
    one.restart()
    assert one.execute_code("'x' in globals()")["result"] == {"text/plain": "False"}
"""
    )
    for mode in ("new", "none"):
        run_pytest(f"--record={mode}", "test_two.py").assert_outcomes(passed=1)
    text = (pytester.path / "test_two.py").read_text(encoding="utf-8")
    pytester.makepyfile(test_two=text.replace("mode=", "").replace('jsonl")', 'jsonl", "live")'))
    run_pytest("test_two.py").assert_outcomes(passed=1)


def test_a_session_that_executed_nothing_cant_be_recorded(
    pytester: pytest.Pytester, run_pytest: RunPytest
) -> None:
    pytester.makepyfile(
        test_two="""
def test_it(replay_session):
    unused, used = (replay_session("two.exec.jsonl") for _ in range(2))
    used.execute_code("1")
"""
    )
    result = run_pytest("--record=new", "test_two.py")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*a session of it has executed nothing*"])
    assert not (pytester.path / "two.exec.jsonl").exists()


def test_a_secret_in_the_code_matches_its_placeholder(
    pytester: pytest.Pytester, run_pytest: RunPytest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "correct-horse-battery")
    pytester.makepyfile(
        test_secret="""
def test_it(replay_session):
    replay_session("secret.exec.jsonl").execute_code("token = 'correct-horse-battery'; len(token)")
"""
    )
    run_pytest("--record=new", "test_secret.py").assert_outcomes(passed=1)
    assert b"battery" not in (pytester.path / "secret.exec.jsonl").read_bytes()
    run_pytest("test_secret.py").assert_outcomes(passed=1)


def torn(line: bytes) -> bytes:
    return line[: len(line) // 2]


def changed(line: bytes) -> bytes:
    return line.replace(b'"x = 20"', b'"x = 21"')


def newer(line: bytes) -> bytes:
    fields: dict[str, Any] = json.loads(line)
    return sealed_anew(line, b'"schema":%d' % fields["schema"], b'"schema":99', prev="0" * 64)


def no_log(line: bytes) -> bytes:
    return b"something of somebody's\n"


def empty(line: bytes) -> bytes:
    return b""


def encrypted(line: bytes) -> bytes:
    return sealed_anew(line, line[: line.rindex(b',"n":')], b'{"enc":"AAAA","key_id":"00"', prev="0" * 64)


@pytest.mark.foreign_lines
@pytest.mark.parametrize("spoil", [torn, changed, newer, no_log, empty, encrypted])
@pytest.mark.parametrize("mode", ["none", "all"])
def test_what_cant_be_read_is_named_and_left_untouched(
    mode: str,
    spoil: Callable[[bytes], bytes],
    pytester: pytest.Pytester,
    recording: Path,
    run_pytest: RunPytest,
) -> None:
    spoilt = spoil(recording.read_bytes().splitlines(keepends=True)[0])
    recording.write_bytes(spoilt)
    pytester.makepyfile(test_it=AGENT + IN_ORDER)
    result = run_pytest(f"--record={mode}", "test_it.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*agent.exec.jsonl*: the recording *; it is untouched"])
    assert recording.read_bytes() == spoilt


def test_a_really_encrypted_recording_needs_its_key(
    pytester: pytest.Pytester, log_root: Path, run_pytest: RunPytest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASK_LOG_KEY", "a long enough passphrase")
    with Session("local", log_dir=pytester.path) as session:
        for code in CALLS:
            session.execute_code(code)
    folder = Path(session.log_path).parent
    os.rename(session.log_path, folder / "agent.exec.jsonl")
    (header,) = folder.glob("keys/unknown*.key")
    header.rename(header.with_name("agent.exec.key"))
    source = (folder / "agent.exec.jsonl").read_bytes()
    pytester.makepyfile(test_it=(AGENT + IN_ORDER).replace('"agent.exec', '"local/agent.exec'))
    run_pytest().assert_outcomes(passed=4)
    result = run_pytest("--record=all", "test_it.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TASK_LOG_KEY is set*"])
    monkeypatch.delenv("TASK_LOG_KEY")
    for mode in ("none", "all"):
        result = run_pytest(f"--record={mode}", "test_it.py")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*TASK_LOG_KEY*"])
    run_pytest("local").assert_outcomes(errors=1)
    assert (folder / "agent.exec.jsonl").read_bytes() == source


def test_nothing_is_recorded_in_ci(
    pytester: pytest.Pytester, recording: Path, run_pytest: RunPytest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run_pytest("--record=all")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--record=all is refused where CI is set*"])
    run_pytest().assert_outcomes(passed=3)


def test_a_run_without_recordings_imports_nothing_of_ours_but_the_plugin(
    pytester: pytest.Pytester, run_pytest: RunPytest
) -> None:
    pytester.makepyfile(
        test_it="""
import sys

def test_what_is_loaded():
    packages = ("json_repl", "repl_kernel", "task_logger")
    ours = [name for name in sys.modules if name.partition(".")[0] in packages]
    assert sorted(ours) == ["json_repl", "json_repl.pytest_plugin"]
    assert "orjson" not in sys.modules
"""
    )
    run_pytest().assert_outcomes(passed=1)


def test_normalizers_hide_what_may_differ_live(
    pytester: pytest.Pytester, log_root: Path, run_pytest: RunPytest
) -> None:
    record(pytester.path / "pid.exec.jsonl", ("import os; print('pid', os.getpid())",), "worker")
    pytester.makepyfile(
        test_live="""
import pytest

@pytest.mark.parametrize("normalizers", [(), ["/[0-9]+/a number/"], ["/[a-z]+/a word/"]])
def test_agent(replay_session, normalizers):
    with replay_session("pid.exec.jsonl", mode="live", normalizers=normalizers) as session:
        session.execute_code("import os; print('pid', os.getpid())")
"""
    )
    run_pytest().assert_outcomes(passed=2, failed=2)  # the recording's own line is a test, too
