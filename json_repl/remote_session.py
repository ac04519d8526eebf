"""A session in another process, as a program here sees it: each method is one request.

RemoteSession.<method>() -> _request() -> SessionProcess -> Connection -> the process
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from repl_kernel.executor import OnInput, OnOutput

FOREVER = float("inf")

CONTROL_BOUND_S = 30.0
"""How long `ping`, `interrupt` and the end of an interrupted execution are waited for."""


class RemoteSession(ABC):
    """What can be asked of a session in another process; a context manager, usable from several threads."""

    @abstractmethod
    def close(self) -> None:
        """End the session; idempotent."""

    @abstractmethod
    def _request(
        self,
        method: str,
        params: Mapping[str, object],
        bound_s: float = FOREVER,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
    ) -> Any:
        """Send a request and return its result; raises as `execute_code` does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def execute_code(
        self,
        code: str,
        *,
        time_limit_s: float | None = None,
        tags: Mapping[str, object] | None = None,
        atomic: bool = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        reply_bound_s: float = FOREVER,
    ) -> dict[str, Any]:
        """Run code in the session and return the wire form of its outcome.

        `time_limit_s` is kept by the process. `atomic`: whatever is not `ok` leaves the
        namespace as it was. `on_output` takes output as it is written, `on_input` answers `input()` or raises
        `EOFError`; both run in this thread. A KeyboardInterrupt, and what a callback
        raises, interrupts the execution, waits until it is recorded, and is raised on.
        Raises `SessionProcessDied`, `RequestFailed`, `SessionClosed`, and `ReplyTimeout` after
        `reply_bound_s`: the code may run on then.
        """
        params: dict[str, object] = {"code": code}
        if time_limit_s is not None:
            params["time_limit_s"] = _checked_time_limit(time_limit_s)
        if tags:
            params["tags"] = tags
        if atomic:
            params["atomic"] = True
        if on_output is not None:
            params["stream"] = True
        if on_input is not None:
            params["allow_input"] = True
        outcome: dict[str, Any] = self._request("execute", params, reply_bound_s, on_output, on_input)
        return outcome

    def interrupt(self) -> bool:
        """Interrupt the running execution, from any thread; returns false where none runs."""
        return bool(self._request("interrupt", {}, CONTROL_BOUND_S)["interrupted"])

    def restart(self) -> None:
        """Empty the namespace; raises `RequestFailed` while an execution runs."""
        self._request("restart", {})

    def variables(self) -> list[dict[str, Any]]:
        """Describe the variables: name, type, shape or length, bytes and preview of each."""
        described: list[dict[str, Any]] = self._request("variables", {})
        return described

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        """What can be typed at the cursor, in code points: the content of Jupyter's `complete_reply`.

        This and `inspect` raise `RequestFailed` while an execution runs, and for a cursor outside the code.
        """
        found: dict[str, Any] = self._request("complete", {"code": code, "cursor": cursor})
        return found

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> dict[str, Any]:
        """What is known of the object under the cursor, with `detail_level` 1 its source too: the content of
        Jupyter's `inspect_reply`."""
        params = {"code": code, "cursor": cursor, "detail_level": detail_level}
        found: dict[str, Any] = self._request("inspect", params)
        return found

    def history(self, last: int | None = None) -> list[dict[str, Any]]:
        """Past records of the session, newest last; `None` means all."""
        records: list[dict[str, Any]] = self._request("history", {"last": last})
        return records

    def snapshots(self) -> list[dict[str, Any]]:
        """The states that are kept, oldest first: `seq`, the execution it is the state after, and `age_s`."""
        kept: list[dict[str, Any]] = self._request("snapshots", {})
        return kept

    def snapshot(self) -> dict[str, Any]:
        """Keep the live state now; returns its `seq`.

        This and the five methods below raise `RequestFailed` while an execution runs, on the local route, and
        where it can't be done: the message says why.
        """
        kept: dict[str, Any] = self._request("snapshot", {})
        return kept

    def rewind(self, seq: int) -> dict[str, Any]:
        """Make the state after execution `seq` the live one; returns `seq` and `notices`.

        Where it is not kept, `data["nearest"]` of the `RequestFailed` names the nearest state that is, or
        `None`; nothing has changed then.
        """
        done: dict[str, Any] = self._request("rewind", {"seq": seq})
        return done

    def branch(self, seq: int, *, reseed: bool = False) -> SessionBranch:
        """A new session in the same process, whose namespace begins with the state after execution `seq`.

        Both go on independently, their executions take turns; `reseed` renews the random generators.
        Close it when it isn't needed any more. Raises as `rewind`.
        """
        params = {"seq": seq, "reseed": reseed}
        return SessionBranch(self, self._request("branch", params)["session_id"])

    def speculate(
        self,
        codes: Sequence[str],
        *,
        time_limit_s: float | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> list[dict[str, Any]]:
        """Run each piece of code in a copy of the live state, all at once; returns their wire forms.

        The live state stays as it is until one is adopted.
        """
        if isinstance(codes, str) or not isinstance(codes, Sequence):
            from json_repl.errors import InvalidRequest

            raise InvalidRequest("codes", f"must be a list of texts, not a {type(codes).__name__}")
        params: dict[str, object] = {"codes": list(codes), "time_limit_s": _checked_time_limit(time_limit_s)}
        if tags:
            params["tags"] = tags
        outcomes: list[dict[str, Any]] = self._request("speculate", params)
        return outcomes

    def adopt(self, index: int) -> None:
        """Make the state of candidate `index` of the last `speculate` the live one."""
        self._request("adopt", {"index": index})

    def discard(self) -> None:
        """Let all candidates of the last `speculate` go."""
        self._request("discard", {})


class SessionBranch(RemoteSession):
    """A branch of a session, in the same process; ends with it, or when it is closed."""

    def __init__(self, origin: RemoteSession, session_id: str) -> None:
        self._origin = origin
        self._is_closed = False
        self.session_id = session_id

    def close(self) -> None:
        """End the branch; the session that it came from goes on. Idempotent."""
        from json_repl.errors import SessionClosed, SessionProcessDied

        if self._is_closed:
            return
        try:
            self._request("shutdown", {})
        except (SessionClosed, SessionProcessDied):
            pass  # the process has ended, and the branch with it
        self._is_closed = True

    def _request(
        self,
        method: str,
        params: Mapping[str, object],
        bound_s: float = FOREVER,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
    ) -> Any:
        from json_repl.errors import SessionClosed

        if self._is_closed:
            raise SessionClosed
        addressed = {"session_id": self.session_id, **params}
        return self._origin._request(method, addressed, bound_s, on_output, on_input)


def _checked_time_limit(time_limit_s: float | None) -> float | None:
    """The same; the process checks all else, but JSON makes `null` of NaN and infinity: no limit at all."""
    if isinstance(time_limit_s, float) and not math.isfinite(time_limit_s):
        from json_repl.errors import InvalidRequest

        named = "NaN" if math.isnan(time_limit_s) else "infinity; None is no limit"
        raise InvalidRequest("time_limit_s", f"must be a number of seconds above 0, not {named}")
    return time_limit_s
