"""The lives of a namespace: the worker that holds it now, and the states it can go back to.

the keeper forks     --> a worker with an empty namespace
a sleeping copy forks --> a worker with the state after some execution
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Literal

from repl_kernel.confinement import Confinement
from repl_kernel.errors import CannotFork, SnapshotLost, WorkerStartFailed
from repl_kernel.keeper_link import ForkedWorker, KeeperLink
from repl_kernel.orphaned_programs import orphaned_programs
from repl_kernel.process_tree import kill_descendants
from repl_kernel.snapshots import Snapshot, SnapshotRing
from repl_kernel.spawn import SpawnedKeeper, make_ends, no_descriptors
from repl_kernel.worker_link import WorkerLink, death_of

if TYPE_CHECKING:
    from repl_kernel.enclosure import Enclosure
    from repl_kernel.probe import Attempt

SnapshotPolicy = Literal["auto", "manual", "off"]

_DEATH_WAIT_S = 0.2
"""How long a worker that hung up may take to end by itself."""


class Lives:
    """One namespace: its keeper, its live worker, its snapshots; not thread-safe."""

    def __init__(
        self,
        policy: SnapshotPolicy,
        confinement: Confinement,
        spawned: SpawnedKeeper | None,
        enclosure: Enclosure | None = None,
    ) -> None:
        """Start the keeper and a worker with an empty namespace; raises `WorkerStartFailed`.

        `spawned` is a keeper that was started so already, `enclosure` holds the workers' limits, if any.
        """
        self.enclosure = enclosure
        self.policy: SnapshotPolicy = policy
        self.ring = _ring(enclosure)
        self.state_seq = 0
        """The execution whose state is live; 0 is the empty namespace, or that of `origin`."""
        self.origin: str | None = None
        """The state of another session that this one began with, `None` where it began empty."""
        self.confinement = confinement
        self.isolation_probe: tuple[Attempt, ...] = ()
        """What the last worker that the keeper forked tried in vain, to show that its isolation holds."""
        self._ran: list[range] = []
        """The executions that led to the live state, from the empty namespace on."""
        self._buried: tuple[WorkerLink, int | None] | None = None
        try:
            self._keeper = KeeperLink(spawned) if spawned is not None else self._start_keeper()
            try:
                # One that was in reserve for long may have died meanwhile: then there will be another.
                self.link = self._forked() if self._keeper.move is None else self._fork()
            except WorkerStartFailed:
                self._keeper.end()
                raise
        except WorkerStartFailed:
            if enclosure is not None:
                enclosure.close()
            raise

    def ran(self, seq: int) -> None:
        """An execution has ended, and its state is live."""
        self.state_seq = seq
        if self._ran and self._ran[-1].stop == seq:
            self._ran[-1] = range(self._ran[-1].start, seq + 1)
        else:
            self._ran.append(range(seq, seq + 1))

    def take_announcements(self, *, ends_thinned: bool = True) -> None:
        """Take in what the worker has announced about its copies; for `ends_thinned` see `SnapshotRing`."""
        self.ring.take_announcements(self.link.channel, self._ran, ends_thinned=ends_thinned)
        if self.enclosure is not None:
            self.enclosure.make_room(len(self.ring))

    def bound_memory(self) -> None:
        """Let old snapshots go where they hold too much, by what the live worker has written until now."""
        self.take_announcements()
        if len(self.ring):
            minor_faults = self.link.minor_faults()
            if minor_faults is not None:
                self.ring.bound_memory(minor_faults)

    def exit_status(self, pid: int) -> int | None:
        """How a worker of this namespace's keeper has ended, `None` where it can't tell."""
        return self._keeper.exit_status(pid)

    def bury(self) -> tuple[str | None, int | None, str]:
        """Make sure that the live worker is dead, and return how it died; `succeed` must follow."""
        link = self.link
        if not link.wait_for_death(_DEATH_WAIT_S):
            link.signal(signal.SIGKILL)
        self.take_announcements()
        if self._buried is None or self._buried[0] is not link:
            self._buried = link, self._keeper.exit_status(link.inner_pid)
        return death_of(self._buried[1])

    def succeed(self) -> str:
        """Replace the dead worker by one in the newest state kept; returns what is live and what is lost.

        Raises `WorkerStartFailed` where no process can be had: then it can be tried again.
        """
        ran, reason = self._ran, self.ring.refused
        while (snapshot := self.ring.newest()) is not None:
            lost = _beyond(snapshot.seq, ran)
            try:
                words = self.go_to(snapshot)
            except SnapshotLost:
                self.ring.drop(snapshot.seq)
                continue
            return "; ".join(
                [f"the state after execution {snapshot.seq} is live", *_lost(lost, reason), *words]
            )
        old, link = self.link, self.fork()
        self.link = link
        link.take_pipes(old)
        old.close()
        why = f" ({reason})" if reason is not None else ""
        return f"its variables are lost, the namespace is empty now{why}"

    def go_to(self, snapshot: Snapshot) -> list[str]:
        """Make a snapshot's state the live one; returns in words what of the user's did not come along.

        The worker before it is killed. Raises `SnapshotLost` or `CannotFork`, and it goes on.
        """
        old = self.link
        link, words = self._wake(snapshot, old)
        programs = orphaned_programs(old.pid, link.pid)
        old.signal(signal.SIGKILL)
        old.close()
        self._take_over(link, snapshot.seq, snapshot)
        return [*words, *_left_behind(programs)]

    def go_to_empty(self) -> list[str]:
        """Make the empty namespace the live one; as `go_to`. Raises `WorkerStartFailed`."""
        old, link = self.link, self._fork()
        programs = orphaned_programs(old.pid, link.pid)
        old.signal(signal.SIGKILL)
        link.take_pipes(old)
        old.close()
        self._take_over(link, 0, None)
        return _left_behind(programs)

    def _take_over(self, link: WorkerLink, seq: int, snapshot: Snapshot | None) -> None:
        self.link = link
        self.state_seq = seq
        self._ran = [] if snapshot is None else list(snapshot.line)
        self.ring.begin_life(None if snapshot is None else snapshot.seq)

    def _wake(self, snapshot: Snapshot, old: WorkerLink) -> tuple[WorkerLink, list[str]]:
        """Have a copy make a live worker, which writes to the pipes that the copy was made with."""
        forked, words = _wake(snapshot, beside=False, seq=snapshot.seq)
        link = WorkerLink(forked)
        link.close_pipes()
        link.take_pipes(old)
        return link, words

    def adopt(self, link: WorkerLink, seq: int, base: Snapshot) -> None:
        """Make a worker that was woken beside the live one live; it ran `seq`, from the state of `base`.

        The one before is killed; the programs it started go on, and its copies stay.
        """
        self.take_announcements()
        old = self.link
        old.signal(signal.SIGKILL)
        link.take_pipes(old)
        old.close()
        self._take_over(link, seq, base)
        self._ran.append(range(seq, seq + 1))

    def branch(self, snapshot: Snapshot, name: str, *, reseed: bool) -> tuple[Lives, list[str]]:
        """Another namespace, whose execution 0 is a snapshot's state; and notices. Raises as `go_to`.

        `name` is what the log calls that state.
        """
        link, notices = wake_beside(snapshot, seq=0, reseed=reseed, due=self.policy == "auto")
        enclosure: Enclosure | None = None
        try:
            if self.enclosure is not None:
                enclosure = self.enclosure.again()
                enclosure.enter(link)
        except WorkerStartFailed:
            if enclosure is not None:
                enclosure.close()
            link.signal(signal.SIGKILL)
            link.close()
            raise
        other = object.__new__(Lives)
        other.policy = self.policy
        other.enclosure = enclosure
        other.ring = _ring(enclosure)
        other.state_seq = 0
        other.origin = name
        other.link = link
        other.confinement = self.confinement
        other.isolation_probe = self.isolation_probe
        other._ran = []
        other._buried = None
        other._keeper = self._keeper.shared()
        return other, notices

    def fork(self) -> WorkerLink:
        """A worker with an empty namespace, for the live one; raises `WorkerStartFailed`."""
        link = self._fork()
        self.state_seq = 0
        self.origin = None
        self._ran = []
        self.ring.begin_life(None)
        return link

    def _fork(self) -> WorkerLink:
        try:
            return self._forked()
        except CannotFork:
            raise
        except WorkerStartFailed:
            self._replace_keeper()
            return self._forked()

    def _forked(self) -> WorkerLink:
        """A worker that the keeper forks, its isolation proven."""
        try:
            link = WorkerLink(self._keeper.fork_worker())
        except CannotFork:
            raise
        except WorkerStartFailed as exc:
            raise self.confinement.explained(exc) from exc
        try:
            if self._keeper.move is not None:
                self.confinement.move(link, self._keeper.move)
            if self.enclosure is not None:
                self.enclosure.enter(link)
                self.confinement.limit(link, self.enclosure.worker_settings)
            self.isolation_probe = self.confinement.prove(link)
        except BaseException:
            link.signal(signal.SIGKILL)
            link.close()
            raise
        return link

    def restart(self) -> None:
        """Kill the worker, its copies and every program it started, and begin with an empty namespace."""
        self.ring.close()
        self._stop_forks()
        try:
            if self._keeper.is_shared:  # by branches, which must not be swept along
                kill_descendants(self.link.pid)
                self.link.signal(signal.SIGKILL)
            else:
                self._keeper.sweep()
        except WorkerStartFailed:
            self._replace_keeper()
        self.link.close()
        self.link = self.fork()

    def end(self, *, abandon: bool = False) -> None:
        """End all processes of this namespace; `abandon` only lets go of them: in a fork of the host."""
        self.ring.close()
        if abandon:
            self.link.close()
            self._keeper.abandon()
            return
        self._stop_forks()
        # (A host that ends has no `open` any more, and its keeper ends everything in a moment.)
        if self._keeper.is_shared and not sys.is_finalizing():
            kill_descendants(self.link.pid)
            self.link.signal(signal.SIGKILL)
        self.link.close()
        self._keeper.end()
        if self.enclosure is not None:
            self.enclosure.close()

    def _stop_forks(self) -> None:
        """Before everything is killed: programs that fork all the time would outrun it."""
        if self.enclosure is not None:
            self.enclosure.let_none_start()

    def _replace_keeper(self) -> None:
        self.ring.close()  # the copies end with their keeper
        self._keeper.end()
        self._keeper = self._start_keeper()

    def _start_keeper(self) -> KeeperLink:
        return KeeperLink(self.confinement.spawn())


def _ring(enclosure: Enclosure | None) -> SnapshotRing:
    ring = SnapshotRing()
    if enclosure is not None and enclosure.limits.memory_bytes is not None:
        ring.share_limit(enclosure.limits.memory_bytes)
    return ring


def wake_beside(
    snapshot: Snapshot, *, seq: int, reseed: bool = False, due: bool = False
) -> tuple[WorkerLink, list[str]]:
    """Have a copy make a worker beside the live one; returns its link, and in words what it lacks or shares.

    Its state counts as that after execution `seq`; for `due` see `Snapshot.wake`. Raises `SnapshotLost` or
    `CannotFork`.
    """
    forked, words = _wake(snapshot, beside=True, seq=seq, reseed=reseed, due=due)
    files = [line for line in snapshot.descriptors if " at byte " in line]
    if files:
        words.append(f"open files are shared with other copies, offsets too: {', '.join(files)}")
    return WorkerLink(forked), words


def _wake(
    snapshot: Snapshot, *, beside: bool, seq: int, reseed: bool = False, due: bool = False
) -> tuple[ForkedWorker, list[str]]:
    try:
        ends, theirs = make_ends()
    except OSError as exc:
        raise no_descriptors(exc) from exc
    try:
        try:
            snapshot.wake(theirs, beside=beside, seq=seq, reseed=reseed, due=due)
        finally:
            theirs.close()  # before waiting: the worker's end is known by ours seeing the end
        pid, pidfd, words = snapshot.wait_until_live(ends.channel)
    except BaseException:
        ends.close()
        raise
    return ForkedWorker(pid, pidfd, ends), words


def _beyond(seq: int, ran: list[range]) -> list[range]:
    return [range(max(part.start, seq + 1), part.stop) for part in ran if part.stop > seq + 1]


def _lost(ran: list[range], reason: str | None) -> list[str]:
    """In words which executions are lost, and why their states were not kept."""
    if not ran:
        return []
    names = [str(part.start) if len(part) == 1 else f"{part.start}–{part[-1]}" for part in ran]
    why = f" (no snapshot was possible: {reason})" if reason is not None else ""
    return [f"lost with it: {', '.join(names)}{why}"]


def _left_behind(programs: list[str]) -> list[str]:
    if not programs:
        return []
    return [f"programs started before go on, but are not its children: {', '.join(programs)}"]
