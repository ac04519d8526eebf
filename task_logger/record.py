"""What one execution was asked to do and what came of it: values only, no I/O.

    ExecutionRequest  -- what is asked --------------+
                                                     +--> ExecutionRecord: both, as kept in the log
    ExecutionOutcome  -- what came of it ------------+

The text rules at the end say how a text that is too long, or isn't Unicode, is kept.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import field as dataclass_field
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses

    def dataclass(*, frozen, slots, kw_only):
        """As the original, but that only the type checker holds a value frozen.

        Four of these are made for every execution: holding them frozen at run time would take a tenth of all
        the time that a session adds to it.
        """
        return dataclasses.dataclass(slots=slots, kw_only=kw_only, unsafe_hash=frozen)


Status = Literal["ok", "error", "timeout", "interrupted", "crashed", "unknown"]
Route = Literal["local", "worker", "jupyter", "ray"]
Isolation = Literal["none", "process", "sandbox", "external"]
OutputName = Literal["stdout", "stderr"]

MAX_TEXT_BYTES = 1 << 20
"""A text field of a line that is longer keeps only its ends; all of it becomes an artifact."""

LOSSY_ERRORS = "record-lossy"
"""The error handler that decodes as `decode_output` does: registered here, for decoders that take pieces."""

KEPT_TEXT_BYTES = 64 << 10
"""How much of each end of such a text stays in the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskIds:
    """The plan and the task that an execution belongs to, as given; `task_name` is a title for people."""

    plan_id: str
    task_id: str
    task_name: str


Content = bytes | IO[bytes]
"""Bytes, or an open file of exactly them, positioned anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A piece of a record that did not fit its line, named by its content.

    `field` is the field of the line it belongs to, `bytes` its length. `content` is there
    until it is stored, `None` from then on.
    """

    field: str
    sha256: str
    bytes: int
    mime: str
    content: Content | None = dataclass_field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionError:
    """Why an execution did not end well, in parts.

    `traceback` is as Python prints it, the user's own frames only; `line` is the 1-based line of the
    code that raised, `None` where there is none; `signal` (such as `SIGSEGV`) or `exit_code` tell how a
    process died, both `None` where none did.
    """

    type: str
    message: str
    traceback: str
    line: int | None = None
    signal: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceChanges:
    """What an execution did to the names of its namespace; every list is sorted.

    `variables` describes each added or changed name (`type`, and `shape`, `dtype`, `length` or `bytes`
    where cheap). `diff_complete` is false when the search for mutation in place ran out of time; added,
    removed and rebound names are complete even then.
    """

    added_vars: Sequence[str] = ()
    changed_vars: Sequence[str] = ()
    removed_vars: Sequence[str] = ()
    added_imports: Sequence[str] = ()
    variables: Mapping[str, Mapping[str, object]] = dataclass_field(default_factory=dict)
    diff_complete: bool = True


NO_CHANGES = NamespaceChanges()


@dataclass(frozen=True, slots=True, kw_only=True)
class LateOutput:
    """Output of a thread, task or program of an earlier execution; `seq` is that execution, `None` if
    unknown."""

    name: OutputName
    text: str
    seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRequest:
    """One `execute_code` call: what is asked.

    `timestamp` is the start, UTC, as the log has it. `time_limit_s` of `None` means no limit.
    `allow_input` says whether `input()` may ask the caller, `atomic` that whatever is not `ok` must leave the
    namespace as it was. `tags` are JSON values by name.
    """

    code: str
    session_id: str
    seq: int
    task: TaskIds
    timestamp: str
    tags: Mapping[str, object] = dataclass_field(default_factory=dict)
    time_limit_s: float | None = None
    allow_input: bool = False
    atomic: bool = False
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionOutcome:
    """What came of a request.

    `elapsed_ms` is the wall time of the user's code. `stderr` ends with the traceback when the code
    raised. `result` is the MIME bundle of the last expression, `None` where it had no value; `displays` are
    those shown on the way, in order. `lossy` names
    the text fields that are backslashreplace text, `artifacts` what did not fit the line. `notices` are
    sentences for the caller; they are not kept. `parent` names the `session_id:seq` whose state the code
    started from, where that is not the execution before; `snapshot` the copy that will hold the state after
    it, `None` where there can't be one; `rolled_back` says that it left the namespace as it was. `cpu_ms` and
    `peak_rss_bytes` are `None` where unmeasured.
    """

    status: Status
    route: Route
    isolation: Isolation
    elapsed_ms: float
    stdout: str = ""
    stderr: str = ""
    result: Mapping[str, object] | None = None
    displays: Sequence[Mapping[str, object]] = ()
    error: ExecutionError | None = None
    changes: NamespaceChanges = NO_CHANGES
    artifacts: tuple[Artifact, ...] = ()
    lossy: tuple[str, ...] = ()
    late_output: tuple[LateOutput, ...] = ()
    notices: tuple[str, ...] = ()
    parent: str | None = None
    snapshot: str | None = None
    rolled_back: bool = False
    cpu_ms: float | None = None
    peak_rss_bytes: int | None = None

    @property
    def success(self) -> bool:
        """Whether the code ran to its end without raising."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHead:
    """The last line of a task log: its number and its hash; with it a cut tail can be proven."""

    path: str
    n: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRecord:
    """One execution as the log keeps it.

    `head` is the line it became, `None` while it could not be written; `notices` are what the caller must
    know about that, and about the execution. `extra` holds fields of a line that this version doesn't know.
    """

    request: ExecutionRequest
    outcome: ExecutionOutcome
    head: LogHead | None = None
    notices: tuple[str, ...] = ()
    extra: Mapping[str, object] = dataclass_field(default_factory=dict)


def decode_output(data: bytes) -> tuple[str, bool]:
    """Turn bytes into text that any JSON reader accepts.

    Returns the text, and whether it is lossy: bytes that aren't UTF-8, and lone surrogates (which Python
    writes as three bytes), come out as `backslashreplace` text.
    """
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode("utf-8", LOSSY_ERRORS), True


def _escape_bytes(exc: UnicodeError) -> tuple[str, int]:
    assert isinstance(exc, UnicodeDecodeError)
    piece = exc.object[exc.start : exc.start + 3]
    if len(piece) == 3 and piece[0] == 0xED and 0xA0 <= piece[1] <= 0xBF and piece[2] & 0xC0 == 0x80:
        return f"\\u{0xD000 | (piece[1] & 0x3F) << 6 | piece[2] & 0x3F:04x}", exc.start + 3
    text, end = codecs.backslashreplace_errors(exc)
    return str(text), end


codecs.register_error(LOSSY_ERRORS, _escape_bytes)


def keep_text(
    field_name: str, text: str, mime: str = "text/plain; charset=utf-8"
) -> tuple[str, Artifact | None, bool]:
    """Make a text fit for a line.

    Returns the text for the line, the artifact with its exact bytes (`None` if the line has them all), and
    whether the line's text is lossy. Lone surrogates are kept in the artifact as Python's `surrogatepass`.
    """
    try:
        data, lossy = text.encode(), False
    except UnicodeEncodeError:
        data, lossy = text.encode("utf-8", "surrogatepass"), True
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > MAX_TEXT_BYTES or len(data) > MAX_TEXT_BYTES:
        text, lossy = elide(
            data[:KEPT_TEXT_BYTES], data[-KEPT_TEXT_BYTES:], total_bytes=len(data), lossy=lossy
        )
    elif not lossy:
        return text, None, False
    import hashlib  # 2 ms: not for processes that never get here

    digest = hashlib.sha256(data).hexdigest()
    return text, Artifact(field=field_name, sha256=digest, bytes=len(data), mime=mime, content=data), lossy


def elide(first: bytes, last: bytes, *, total_bytes: int, lossy: bool = False) -> tuple[str, bool]:
    """Join the ends of a long text around a line that says how many bytes are left out.

    Characters that the cut would split are left out whole. Returns the text, and whether it is lossy.
    """
    first, last = _without_split_end(first), _without_split_start(last)
    left_out = total_bytes - len(first) - len(last)
    (head, head_lossy), (tail, tail_lossy) = decode_output(first), decode_output(last)
    text = f"{head}\n… {left_out} bytes left out; all {total_bytes} are in the artifact …\n{tail}"
    return text, lossy or head_lossy or tail_lossy


def _without_split_end(data: bytes) -> bytes:
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return data[:-back] if needed > back else data
    return data


def _without_split_start(data: bytes) -> bytes:
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]
