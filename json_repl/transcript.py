"""A session's history as messages for a model, with old heavy outputs replaced by handles to their lines.

records -> (code, outcome) each -> newest within the budget: whole, always
                                -> older, with a heavy outcome: a candidate
        enough to save? -> handles in the candidates' place -> event prune.fire
                     no -> all of it whole                  -> event prune.skip
usage of the request that followed, as its caller reports it -> event prune.post_request

Tokens are estimated: four characters are one, unless the caller counts them. An event that can't be written
changes nothing.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from json_repl.errors import InvalidRequest
from task_logger.events import event
from task_logger.reader import Damage
from task_logger.record import ExecutionOutcome, ExecutionRecord

SkipReason = Literal["no_candidates", "below_min_savings"]
CountTokens = Callable[[str], int]

_HEAVY_TOKENS = 100
"""An outcome with fewer isn't worth a handle, which takes about 30 itself."""

_CHARACTERS_PER_TOKEN = 4
_MAX_FIRST_LINE_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A history as messages, and what was left out of it.

    `messages` are dicts of `role` and `content`: the code as the `assistant`'s, what came of it as the
    `tool`'s. `candidate_count` outcomes could be replaced, `estimated_savings` are the tokens that they
    save in all, `protected_start` is the index of the first message within the budget. `skip_reason` says why
    none was replaced, `None` where they were. `correlation_id` is that of the projection's events.
    """

    messages: list[dict[str, str]]
    candidate_count: int
    protected_start: int
    estimated_savings: int
    skip_reason: SkipReason | None
    correlation_id: str

    def report_usage(
        self, *, input_tokens: int, output_tokens: int | None = None, cost_usd: float | None = None
    ) -> bool:
        """Write what the request with these messages used, as `prune.post_request`; whether it is written.

        `None` is for what isn't known. Never raises.
        """
        usage: dict[str, object] = {"input_tokens": input_tokens}
        if output_tokens is not None:
            usage["output_tokens"] = output_tokens
        if cost_usd is not None:
            usage["cost_usd"] = cost_usd
        return _write("prune.post_request", usage, self.correlation_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """One execution in the history: its code, what came of it, and the handle that can stand for that."""

    code: str | None
    content: str
    tokens: int  # of both
    handle: str | None
    savings: int


def project(
    records: Iterable[ExecutionRecord | Damage],
    *,
    protected_tokens: int = 40_000,
    min_savings: int = 20_000,
    count_tokens: CountTokens | None = None,
) -> Projection:
    """Turn records, oldest first, into messages for a model.

    The newest ones that fit `protected_tokens` stay whole. Before them, an outcome of 100 tokens or more is
    replaced by a handle (`path#n`, how much is left out, its first line), if that saves `min_savings` tokens
    in all; else nothing is. Code always stays. A record without a line in the log stays whole; of a damaged
    piece of a log a message says that it is there. `count_tokens` of `None` takes 4 characters for a token.
    What `count_tokens` raises comes through. Raises `InvalidRequest` for an argument that is none of these.
    """
    _check(protected_tokens, min_savings, count_tokens)
    count = count_tokens or _estimate
    turns = [_turn(record, count) for record in records]
    first_protected = _first_protected(turns, protected_tokens)
    candidates = [turn for turn in turns[:first_protected] if turn.handle is not None]
    savings = sum(turn.savings for turn in candidates)
    skip_reason: SkipReason | None = None
    if not candidates:
        skip_reason = "no_candidates"
    elif savings < min_savings:
        skip_reason = "below_min_savings"
    old = [_messages(turn, is_pruned=skip_reason is None) for turn in turns[:first_protected]]
    new = [_messages(turn, is_pruned=False) for turn in turns[first_protected:]]
    projection = Projection(
        messages=[message for messages in (*old, *new) for message in messages],
        candidate_count=len(candidates),
        protected_start=sum(len(messages) for messages in old),
        estimated_savings=savings,
        skip_reason=skip_reason,
        correlation_id=os.urandom(8).hex(),
    )
    _tell(projection, min_savings)
    return projection


def _check(protected_tokens: object, min_savings: object, count_tokens: object) -> None:
    for name, number in (("protected_tokens", protected_tokens), ("min_savings", min_savings)):
        if not isinstance(number, (int, float)) or math.isnan(number):
            raise InvalidRequest(name, f"must be a number of tokens, not {number!r}")
    if count_tokens is not None and not callable(count_tokens):
        raise InvalidRequest("count_tokens", f"must be a function of a text, not {count_tokens!r}")


def _estimate(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def _turn(record: object, count: CountTokens) -> _Turn:
    if isinstance(record, Damage):
        text = f"[{record.bytes} bytes at {record.at} of {record.path} can't be read: {record.reason}]"
        return _Turn(code=None, content=text, tokens=count(text), handle=None, savings=0)
    if not isinstance(record, ExecutionRecord):
        what = type(record).__name__
        raise InvalidRequest(
            "records", f"must be those of task_logger.reader.read_records(session.log_path), not a {what}"
        )
    code, content = record.request.code, _content(record.outcome)
    tokens = count(content)
    handle = None if tokens < _HEAVY_TOKENS else _handle(record, content, tokens)
    savings = 0 if handle is None else tokens - count(handle)
    return _Turn(
        code=code,
        content=content,
        tokens=tokens + count(code),
        handle=handle if savings > 0 else None,
        savings=max(savings, 0),
    )


def _content(outcome: ExecutionOutcome) -> str:
    """What came of an execution, as a model reads it: what was printed, the value, what went wrong."""
    parts = [outcome.stdout, outcome.stderr, _text_of(outcome.result)]
    parts += [_text_of(display) for display in outcome.displays]
    if outcome.error is not None and outcome.error.message not in outcome.stderr:
        parts.append(f"{outcome.error.type}: {outcome.error.message}")
    text = "\n".join(part.removesuffix("\n") for part in parts if part)
    if outcome.status not in ("ok", "error"):
        text = f"[{outcome.status}]\n{text}" if text else f"[{outcome.status}]"
    return text or "[no output]"


def _text_of(bundle: Mapping[str, object] | None) -> str:
    if not bundle:
        return ""
    text = bundle.get("text/plain")
    return text if isinstance(text, str) else f"[{', '.join(bundle)}]"


def _handle(record: ExecutionRecord, content: str, tokens: int) -> str | None:
    if record.head is None:
        return None  # nothing could be looked up
    first = next((line for line in content.splitlines() if line.strip()), "")
    if len(first) > _MAX_FIRST_LINE_CHARS:
        first = first[: _MAX_FIRST_LINE_CHARS - 1] + "…"
    return f"[{record.head.path}#{record.head.n}: about {tokens} tokens left out, which begin: {first}]"


def _first_protected(turns: Sequence[_Turn], protected_tokens: int) -> int:
    """The index of the oldest turn that, with all newer ones, fits the budget."""
    first, left = len(turns), protected_tokens
    while first and turns[first - 1].tokens <= left:
        first -= 1
        left -= turns[first].tokens
    return first


def _messages(turn: _Turn, *, is_pruned: bool) -> list[dict[str, str]]:
    if turn.code is None:  # no execution that a tool could answer
        return [{"role": "user", "content": turn.content}]
    content = turn.handle if is_pruned and turn.handle is not None else turn.content
    return [{"role": "assistant", "content": turn.code}, {"role": "tool", "content": content}]


def _tell(projection: Projection, min_savings: int) -> None:
    facts: dict[str, object] = {
        "candidate_count": projection.candidate_count,
        "protected_start": projection.protected_start,
        "estimated_savings": projection.estimated_savings,
    }
    if projection.skip_reason is None:
        _write("prune.fire", facts, projection.correlation_id)
    else:
        facts = {"reason": projection.skip_reason, **facts, "min_savings": min_savings}
        _write("prune.skip", facts, projection.correlation_id)


def _write(name: str, facts: Mapping[str, object], correlation_id: str) -> bool:
    try:
        return event(name, dimensions=facts, correlation_id=correlation_id)
    except Exception as exc:  # noqa: BLE001  # such as an id in the environment that is none: the run goes on
        if sys.stderr is not None:
            try:
                sys.stderr.write(f"json_repl.transcript: {name} is not written: {exc}\n")
            except (OSError, ValueError):
                pass  # it is closed: nobody would read it
        return False
