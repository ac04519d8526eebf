"""The worker: the child's side of the worker route, which holds the namespace.

    data socket --> {"id", "op": "execute", "code", "seq", …} --> CodeRunner --> reply --> data socket
                                                                or ShellRunner --> displays, reply
                    {"id", "op": "variables"}                 --> descriptions
                    {"op": "move", "cwd", "environment"}      --> it changes to these, before any code runs
                    {"id", "op": "complete", "code", …}       --> copy of this process --> matches
                    {"op": "close"}                           --> ends as Python does: atexit, flush
    print, C code, child programs --> descriptors 1 and 2 --> pipes that the session drains

It has no thread of its own: a fork must find it in one piece.
"""

from __future__ import annotations

import _socket
import _thread
import faulthandler
import inspect
import os
import resource
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from repl_kernel.background import Background
from repl_kernel.code_result import CodeResult
from repl_kernel.copies import Copier
from repl_kernel.errors import ProtocolViolation
from repl_kernel.framing import RECEIVE_BYTES, FrameReader, pack
from repl_kernel.keeper import Keeper
from repl_kernel.linux import (
    forbid_new_privileges,
    set_parent_death_signal,
    set_process_name,
    volunteer_for_oom_killer,
)
from repl_kernel.orphaned_programs import WORKER_NAME
from repl_kernel.probe import Attempt, probe_process, probe_sandbox
from repl_kernel.process_tree import last_pid
from repl_kernel.refusal import end_idle_threads
from repl_kernel.reply import display_frames, send_reply
from repl_kernel.run_code import CodeRunner, InterruptGate
from repl_kernel.streams import FLUSH_SIGNAL, InputStream, OutputStream, replace_input
from task_logger.record import Isolation

if TYPE_CHECKING:
    from repl_kernel.executor import ShellName

_IDLE_S = 0.010
"""A worker that has idled this long makes a copy of itself, or twice as long as a copy takes: as the quicker
of the last two has shown."""

_OVERDUE_S = 1.0
_OVERDUE_COSTS = 20.0
"""Where it never idles: once it has run for so long, and so many times as long as a copy takes, it makes one
before the next request."""

_ASIDE_CHECK_MS = 20
"""How often a thread that waits for input looks whether its execution has ended."""


class Worker:
    """Serves one session on one socket until it is told to close, or the session is gone."""

    def __init__(
        self, data_fd: int, channel_fd: int, isolation: Isolation, shell: ShellName = "plain"
    ) -> None:
        self._isolation = isolation
        self._connect(_low(data_fd))
        self._copier = Copier(_low(channel_fd), keeper_pid=os.getppid())
        self._cost_before_s = _OVERDUE_S
        """How long the copy before the last took."""
        self._snapshots_auto = False
        self._seq = 0
        self._is_due = False
        self._uncovered_ns = 0
        """How long code has run since the last copy."""
        self._overdue_ns = _OVERDUE_S * 1e9
        self._send_lock = _thread.allocate_lock()
        self._main_thread = _thread.get_ident()
        self._asks_aside = False
        """Whether another thread than the main one has asked for input, and may be reading the answer."""
        self._reading_aside = _thread.allocate_lock()
        self._is_new = True
        self._is_fork = False
        self._can_ask = False
        self._module = ModuleType("__main__")
        sys.modules["__main__"] = self._module
        self._runner = CodeRunner(self._module, InterruptGate())
        self._lacks_shell = shell == "ipython"
        """Whether IPython's shell is still to be loaded: that takes a while, and nobody waits for it yet."""
        self._streams = (OutputStream(1, "stdout"), OutputStream(2, "stderr"))
        self._stdin = InputStream()
        self._background = Background(self._streams, lambda message: self._send(pack(message)))
        self._message_id = 0
        self._shown = 0
        """How many messages about displays the session was to answer."""

    def run(self) -> int:
        """Serve until the end; returns the exit code."""
        self._prepare_process()
        while (message := self._receive()) is not None:
            operation = message.get("op")
            if self._lacks_shell and operation not in ("move", "probe", "limit"):
                self._start_shell()
            if operation == "execute":
                if self._uncovered_ns > self._overdue_ns and message["auto"] and not self._snapshot():
                    continue  # a worker that comes of the copy: the original answers the request
                self._execute(message)
            elif operation == "snapshot":
                if self._snapshot():
                    self._send(pack({"id": message["id"], "done": True}))
            elif operation == "move":
                self._move(message)
            elif operation == "probe":
                self._send(pack({"id": message["id"], "attempts": self._probe(message)}))
            elif operation == "limit":
                self._send(pack({"id": message["id"], "refused": self._limit(message["limits"])}))
            elif operation == "variables":
                self._send(pack({"id": message["id"], "variables": self._runner.variables()}))
            elif operation in ("complete", "inspect"):
                self._send(pack({"id": message["id"], **self._ask_copy(message)}))
            elif operation == "close":
                break
        self._runner.close()
        return 0

    def _begin(self, message: dict[str, Any]) -> str:
        """Get ready for an execution; returns its code."""
        if self._is_new:  # not sooner: a random.py in the folder is the user's, and none of our own imports
            self._is_new = False
            sys.path.insert(0, "")
        if "env" in message:
            for name, value in message["env"].items():
                os.environ[name] = os.fsdecode(value.encode("latin-1"))
        self._seq = message["seq"]
        self._is_due = False
        self._message_id = message["id"]
        self._stdin.ask = self._ask if message["input"] else None
        self._background.begin(self._seq)
        return _code_of(message)

    def _execute(self, message: dict[str, Any], *, warms_up: bool = False) -> None:
        """Run a request and reply to it; one that `warms_up` goes the same way, beside the namespace."""
        code = self._begin(message)
        background, runner = self._background, self._runner
        result = runner.warm_up() if warms_up else runner.run(code, self._seq)
        for stream in self._streams:
            if stream.has_written:
                stream.end_execution()
        self._stdin.ask = None  # first: a thread that begins to ask from here on sees it
        if self._asks_aside:
            self._asks_aside = False
            with self._reading_aside:
                pass  # what comes from here on is the main thread's to read
        if self._is_fork:  # of the user's, and it ran off the end of the code: only the worker may reply
            _end_as_python_does(result)
        if (background.watches or runner.has_background()) and not warms_up:
            end_idle_threads()
            late: Sequence[Any] = background.end(runner.has_background())
        else:
            late = ()
        mark = self._children_mark()
        self._is_due = message["auto"]
        self._uncovered_ns += result.elapsed_ns
        send_reply(self._message_id, result, late, mark, self._send_nothing if warms_up else self._send)

    def _start_shell(self) -> None:
        from repl_kernel.jupyter.shell_runner import ShellRunner

        self._lacks_shell = False
        self._runner = ShellRunner(self._module, self._runner.gate, self._show, self._stdin)

    def _show(self, message: dict[str, Any]) -> None:
        """Pass on what is displayed, and wait until it was: what is written next must come behind it.

        An interrupt that comes while it is sent is raised afterwards: no frame is cut in two.
        """
        if self._is_fork:
            return  # of the user's: the connection is the worker's
        gate = self._runner.gate
        for stream in self._streams:
            stream.flush()  # what was written before comes before
        if not gate.is_open or _thread.get_ident() != self._main_thread:
            self._send(b"".join(display_frames(message)))  # with none of another thread's in between
            return
        self._shown += 1
        frames = b"".join(display_frames(message, self._shown))
        gate.has_missed = gate.is_open = False
        self._send(frames)
        gate.is_open = True
        if gate.has_missed:
            raise KeyboardInterrupt
        self._await("shown", self._shown)

    def _ask_copy(self, message: dict[str, Any]) -> dict[str, Any]:
        """Have a copy of this process complete or inspect; see `side_question`."""
        from repl_kernel.side_question import ask_copy

        runner = self._runner
        if not self._can_ask:  # loaded here, so that no copy has to, and not taken for imports of the user's
            __import__("repl_kernel.completion")
            __import__("repl_kernel.inspection")
            self._can_ask = True
            runner.forget_imports()
        code, cursor = _code_of(message), message["cursor"]

        def question() -> Mapping[str, object]:
            self._stdin.ask = None
            if message["op"] == "complete":
                return runner.complete(code, cursor)
            return runner.inspect(code, cursor, message["detail_level"])

        try:
            return {"answer": ask_copy(self._copier.fork_answering, question)}
        except OSError as exc:
            return {"refused": exc.strerror}
        except Exception as exc:  # noqa: BLE001 - executed code can have replaced what it takes
            return {"refused": f"{type(exc).__name__}: {exc}"}

    def _move(self, message: dict[str, Any]) -> None:
        """Change to another folder and environment; before any code has run.

        Each text stands for bytes. Where the folder is gone this worker ends, and the session starts another.
        """
        os.chdir(message["cwd"].encode("latin-1"))
        os.environb.clear()
        for name, value in message["environment"].items():
            os.environb[name.encode("latin-1")] = value.encode("latin-1")
        self._runner.has_moved()

    def _probe(self, message: dict[str, Any]) -> list[Attempt]:
        """Try what this worker must not be able to do; before any code has run."""
        own_fds = {self._socket.fileno(), self._copier.channel_fd}
        attempts = probe_process(own_fds, message["pass_env"])
        if message["outside"] is not None:
            self._copier.is_forking = True  # a fork of ours: the hooks for the user's leave it alone
            try:
                attempts += probe_sandbox(message["outside"])
            finally:
                self._copier.is_forking = False
        return attempts

    def _limit(self, limits: dict[str, int]) -> str | None:
        """Hold these limits from now on; returns why it can't be, `None` where it can."""
        from repl_kernel.worker_limits import WorkerLimits

        held = WorkerLimits()
        try:
            held.hold(limits)
        except (OSError, ValueError) as exc:
            return str(exc)
        self._runner.limits = self._copier.limits = held
        self._runner.forget_imports()
        return None

    def _connect(self, data_fd: int) -> None:
        """Speak to the session on this socket."""
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, data_fd)
        self._reader = FrameReader()
        self._idle_ms = _IDLE_S * 1e3
        poll = select.poll()
        poll.register(data_fd, select.POLLIN)
        self._wait = poll.poll
        """Waits for a message, in milliseconds.

        (A socket's own time limit is up to two ticks of 4 ms late: a copy would be in the way of the call
        that comes after 20 ms.)"""

    def _set_pace(self) -> None:
        """Make copies so seldom that they don't get in the way."""
        last_s = self._copier.last_cost_s
        cost_s = min(last_s, self._cost_before_s)  # one that met with a busy machine says nothing of the next
        self._cost_before_s = last_s
        self._overdue_ns = max(_OVERDUE_S, _OVERDUE_COSTS * cost_s) * 1e9
        self._idle_ms = max(_IDLE_S, 2 * cost_s) * 1e3

    def _snapshot(self) -> bool:
        """Make a copy of this process; returns true in the worker, and false in each worker made of it."""
        self._is_due = False
        self._uncovered_ns = 0
        for stream in self._streams:
            stream.flush()
        awakened = self._copier.make(self._seq, {self._socket.fileno()} | self._runner.own_fds())
        if awakened is None:
            self._set_pace()
            self._warm_up()
            return True
        self._socket.close()
        self._connect(awakened.data_fd)
        self._seq = awakened.seq
        self._is_due = awakened.is_due
        self._runner.go_live()
        self._copier.announce_live(awakened)
        return False

    def _warm_up(self) -> None:
        """Go the way of a request once, from its frame to that of its reply; see `CodeRunner.warm_up`."""
        request = {"id": self._message_id, "op": "execute", "code": "x = 1", "seq": self._seq, "input": False}
        reader = FrameReader()
        reader.take()
        message = reader.feed(pack({**request, "auto": False}))
        if message is not None:
            self._execute(message, warms_up=True)
        try:
            self._socket.recv(RECEIVE_BYTES, _socket.MSG_DONTWAIT | _socket.MSG_PEEK)
        except OSError:
            pass  # nothing has come yet

    def _children_mark(self) -> int | None:
        """The newest process there is, where this worker has living children; see `interruption`."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        try:
            return last_pid()
        except OSError:  # the code has as many files open as it may
            self._copier.spare_files(True)
            try:
                return last_pid()
            finally:
                self._copier.spare_files(False)

    def _receive(self) -> dict[str, Any] | None:
        """The next message; `None` once the session has closed its end."""
        try:
            message = self._reader.take()
            while message is None:
                if (self._is_due or self._lacks_shell) and not self._wait(self._idle_ms):
                    if self._lacks_shell:
                        self._start_shell()
                    else:
                        self._snapshot()
                    continue
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    return None
                message = self._reader.feed(data)
        except (ProtocolViolation, ConnectionError) as exc:
            sys.__stderr__.write(f"the session sent what a worker can't read: {exc}\n")  # type: ignore[union-attr]
            return None
        return message

    def _send(self, frame: bytes) -> None:
        with self._send_lock:
            try:
                self._socket.sendall(frame)
            except OSError:
                os._exit(70)  # executed code closed the socket, or the session is gone: nobody can be told

    def _send_nothing(self, frame: bytes) -> None:
        self._send(frame[:0])

    def _ask(self, prompt: str, is_password: bool) -> str:
        """Ask the caller for a line."""
        number, safe = self._message_id, prompt.encode("utf-8", "backslashreplace").decode()
        question = pack({"id": number, "input": {"prompt": safe, "password": is_password}})
        if _thread.get_ident() == self._main_thread:
            self._send(question)
            message = self._await("input_reply", number)
        else:
            message = self._ask_aside(question, number)
        if "text_hex" in message:
            return bytes.fromhex(message["text_hex"]).decode("utf-8", "surrogatepass")
        if "text" not in message:
            raise EOFError("EOF when reading a line")
        return str(message["text"])

    def _await(self, operation: str, number: int) -> dict[str, Any]:
        """Wait for the session's answer; an interrupt may come while waiting, and after reading."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        gate = self._runner.gate
        while True:
            if self._reader.is_empty:  # else there is an answer that nobody waits for any more, at least
                poll.poll()
            gate.has_missed = gate.is_open = False
            message = self._receive()
            gate.is_open = True
            if gate.has_missed:
                raise KeyboardInterrupt
            if message is None:
                os._exit(70)
            if message.get("op") == operation and message.get("id") == number:
                return message

    def _ask_aside(self, question: bytes, number: int) -> dict[str, Any]:
        """Ask in another thread than the main one: only until the execution has ended, since the main thread
        reads then; raises EOFError."""
        self._asks_aside = True
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        while True:
            with self._reading_aside:
                if self._stdin.ask is None or self._message_id != number:
                    raise EOFError("nobody answers input() any more: the execution that asked has ended")
                if question:
                    self._send(question)
                    question = b""
                if not self._reader.is_empty or poll.poll(0):
                    message = self._receive()
                    if message is None:
                        os._exit(70)
                    if message.get("op") == "input_reply" and message.get("id") == number:
                        return message
            poll.poll(_ASIDE_CHECK_MS)

    def _prepare_process(self) -> None:
        keeper_pid = os.getppid()
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != keeper_pid:
            os._exit(70)
        os.setsid()
        set_process_name(WORKER_NAME)
        volunteer_for_oom_killer()
        if self._isolation != "none":
            forbid_new_privileges()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(FLUSH_SIGNAL, self._on_flush)
        # In the parent nothing of ours runs: an interrupt of then would be raised in it, and lost.
        os.register_at_fork(after_in_child=self._on_forked)
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[assignment,misc]
        sys.stdout = sys.__stdout__ = self._streams[0]  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._streams[1]  # type: ignore[misc]
        faulthandler.enable(file=2, all_threads=False)
        sys.argv = [""]
        replace_input(self._stdin)
        self._teach_inspect()

    def _teach_inspect(self) -> None:
        """Make `inspect.getsource` find the classes of the namespace: they have no file to be found in."""
        plain_getfile = inspect.getfile

        def getfile(object: Any) -> str:
            if isinstance(object, type) and object.__module__ == "__main__":
                filename = self._runner.sources.file_of_class(object.__qualname__)
                if filename is not None:
                    return filename
            return plain_getfile(object)

        getfile.__doc__ = plain_getfile.__doc__
        inspect.getfile = getfile

    def _on_interrupt(self, _signal_number: int, _frame: FrameType | None) -> None:
        gate = self._runner.gate
        if gate.is_open:
            raise KeyboardInterrupt
        gate.has_missed = True

    def _on_flush(self, _signal_number: int, _frame: FrameType | None) -> None:
        for stream in self._streams:
            try:
                stream.flush_on_time()
            except RuntimeError:
                pass  # it is being flushed right now

    def _on_forked(self) -> None:
        if not self._copier.is_forking:
            self._is_fork = True
            self._stdin.ask = None  # the answer would come to the worker
            set_process_name("python")  # it is a program of the user's
            self._socket.close()
            self._copier.close()


def _low(fd: int) -> int:
    """Move a descriptor to the lowest number that is free.

    It came under the number that it has in a host, which may have opened many files; a limit of open files
    bounds numbers.
    """
    low = os.dup(fd)
    os.close(max(low, fd))
    return min(low, fd)


def _code_of(message: dict[str, Any]) -> str:
    if "code" in message:
        return str(message["code"])
    return bytes.fromhex(message["code_hex"]).decode("utf-8", "surrogatepass")


def _end_as_python_does(result: CodeResult) -> NoReturn:
    """End a fork of the worker with what its code raised: on stderr, and as exit code."""
    error, code = result.error, 0
    if error is not None:
        code = 1
        if error.type == "SystemExit" and error.message.isdigit():
            code = int(error.message) & 0xFF
        else:
            os.write(2, error.traceback.encode("utf-8", "backslashreplace"))
    os._exit(code)


def main(arguments: list[str]) -> int:
    """Run a keeper and the workers it forks.

    `arguments`: control socket, data socket, channel, pidfd of the session, tier of isolation, shell.
    """
    *numbers, isolation, shell = arguments if len(arguments) > 1 else ["", ""]
    if (
        len(numbers) != 4
        or not all(number.isdigit() for number in numbers)
        or isolation not in ("none", "process", "sandbox")
        or shell not in ("plain", "ipython")
    ):
        print(
            "repl_kernel.worker is started by a session, with its sockets; run json-repl instead",
            file=sys.stderr,
        )
        return 2
    control_fd, data_fd, channel_fd, session_fd = map(int, numbers)
    tier = cast(Isolation, isolation)
    name = cast("ShellName", shell)
    keeper = Keeper(
        control_fd, session_fd, tier, lambda data, channel: Worker(data, channel, tier, name).run()
    )
    return keeper.run(data_fd, channel_fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
