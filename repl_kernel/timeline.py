"""The worker route with its timeline: rewind, branch, speculate.

rewind(seq)       the state after an earlier execution becomes the live one
branch(seq)       another executor, whose namespace begins with that state
speculate(…)      several pieces of code at once, each in a copy of the live state; adopt one, or discard all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repl_kernel.errors import InterruptedByCaller, RequestRefused
from repl_kernel.manager import WorkerExecutor
from repl_kernel.speculation import Candidate, run_all
from task_logger.record import ExecutionOutcome, ExecutionRequest


class TimelineExecutor(WorkerExecutor):
    """Runs executions in a worker whose earlier states are kept."""

    _candidates: Sequence[Candidate] = ()

    def snapshots(self) -> list[dict[str, object]]:
        """The states that are kept, oldest first: `seq`, `age_s`."""
        with self._turn:
            self._attend(self._first_notices)
            return self._lives.ring.describe()

    def rewind(self, seq: int) -> tuple[str, ...]:
        """Make the state after execution `seq` the live one; returns notices.

        Raises `SnapshotGone` where that state is not kept, `SnapshotLost` where its copy has died; nothing
        has changed then.
        """
        with self._turn:
            self._attend(self._first_notices)
            lives = self._lives
            moved: Sequence[str] = ()  # where it is live
            if seq != lives.state_seq:
                to_empty = seq == 0 and lives.origin is None
                moved = lives.go_to_empty() if to_empty else lives.go_to(lives.ring.get(seq))
            return (*self._take_notices(), *moved)

    def branch(self, seq: int, session_id: str, *, reseed: bool = False) -> TimelineExecutor:
        """Another executor, whose namespace begins with the state after execution `seq` of this one.

        `session_id` is this executor's; `reseed` renews the random generators. Raises as `rewind`.
        """
        with self._turn:
            self._attend(self._first_notices)
            if seq == self._lives.state_seq:
                self.ensure_snapshot()
            snapshot = self._lives.ring.get(seq)
            lives, notices = self._lives.branch(snapshot, self._name(session_id, seq), reseed=reseed)
            other = TimelineExecutor(open_spool=self._open_spool, lives=lives)
            other._first_notices = notices
            return other

    def speculate(self, requests: Sequence[ExecutionRequest]) -> list[ExecutionOutcome]:
        """Run each request in a copy of the live state, all at once; the live state stays as it is.

        Raises `SnapshotRefused` where the state can't be copied, `SnapshotLost` and `CannotFork`; nothing has
        run then. A KeyboardInterrupt of the caller interrupts all; `InterruptedByCaller` has the outcomes.
        """
        with self._turn:
            self.discard()
            self._attend(self._first_notices)
            self._last_seq = max((request.seq for request in requests), default=self._last_seq)
            self.ensure_snapshot()
            lives = self._lives
            snapshot = lives.ring.get(lives.state_seq)
            candidates: list[Candidate] = []
            try:
                if lives.enclosure is not None:
                    lives.enclosure.make_room(len(lives.ring), 1 + len(requests))
                for request in requests:
                    name = self._name(request.session_id, snapshot.seq)
                    candidates.append(
                        Candidate(
                            snapshot, request, self._open_spool, self.isolation, lives.enclosure, parent=name
                        )
                    )
                messages = [self._message(each.request, each.link, may_ask=False) for each in candidates]
            except BaseException:
                for candidate in candidates:
                    candidate.end()
                raise
            interrupt: KeyboardInterrupt | None = None
            try:
                self._candidates = candidates
                run_all(candidates, messages, lives.exit_status)
            except KeyboardInterrupt as exc:
                interrupt = exc
            outcomes = [candidate.outcome for candidate in candidates if candidate.outcome is not None]
            if outcomes and self._first_notices:
                first = outcomes[0]
                outcomes[0] = replace(first, notices=(*self._take_notices(), *first.notices))
        if interrupt is not None:
            raise InterruptedByCaller(*outcomes) from interrupt
        return outcomes

    def adopt(self, index: int) -> None:
        """Make the state of candidate `index` of the last `speculate` the live one, and end the others.

        Raises `RequestRefused` where there is no such candidate, or its worker has died.
        """
        with self._turn:
            self._require_open()
            if not 0 <= index < len(self._candidates):
                raise RequestRefused(
                    f"there is no candidate {index}: {len(self._candidates)} wait for adoption"
                )
            chosen = self._candidates[index]
            if chosen.link.wait_for_death(0):
                raise RequestRefused(f"candidate {index} can't be adopted: its worker has died")
            self._candidates = [each for each in self._candidates if each is not chosen]
            self._lives.adopt(chosen.link, chosen.request.seq, chosen.base)
            self.discard()

    def discard(self) -> None:
        """End all candidates; the live state is the one before `speculate`."""
        with self._turn:
            candidates, self._candidates = self._candidates, ()
            for candidate in candidates:
                candidate.end()

    def restart(self) -> None:
        """Empty the namespace; candidates end too."""
        with self._turn:
            self.discard()
            super().restart()

    def interrupt(self) -> bool:
        """Interrupt what runs: an execution, or all candidates."""
        interrupted = [candidate.interrupt() for candidate in self._candidates]
        return super().interrupt() or any(interrupted)

    def close(self) -> None:
        """End everything; idempotent."""
        self.interrupt()
        with self._turn:
            if not self._is_closed:
                self.discard()
            super().close()
