"""The worker: the child's side of the worker route, which holds the namespace.

    data socket --> {"id", "op": "execute", "code", "seq", …} --> CodeRunner --> reply --> data socket
                    {"id", "op": "variables"}                 --> descriptions
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
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import Any, NoReturn

from repl_kernel.background import Background
from repl_kernel.code_result import CodeResult
from repl_kernel.errors import ProtocolViolation
from repl_kernel.framing import RECEIVE_BYTES, FrameReader, pack
from repl_kernel.keeper import Keeper
from repl_kernel.linux import forbid_new_privileges, set_parent_death_signal
from repl_kernel.process_tree import last_pid
from repl_kernel.reply import send_reply
from repl_kernel.run_code import CodeRunner, InterruptGate
from repl_kernel.streams import FLUSH_SIGNAL, InputStream, OutputStream, refuse_input, replace_input


class Worker:
    """Serves one session on one socket until it is told to close, or the session is gone."""

    def __init__(self, data_fd: int) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, data_fd)
        self._send_lock = _thread.allocate_lock()
        self._reader = FrameReader()
        self._is_fork = False
        self._has_forked = False
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        self._runner = CodeRunner(module, InterruptGate())
        self._streams = (OutputStream(1, "stdout"), OutputStream(2, "stderr"))
        self._stdin = InputStream()
        self._background = Background(self._streams, lambda message: self._send(pack(message)))
        self._message_id = 0

    def run(self) -> int:
        """Serve until the end; returns the exit code."""
        self._prepare_process()
        while (message := self._receive()) is not None:
            operation = message.get("op")
            if operation == "execute":
                self._execute(message)
            elif operation == "variables":
                self._send(pack({"id": message["id"], "variables": self._runner.variables()}))
            elif operation == "close":
                break
        self._runner.close()
        return 0

    def _execute(self, message: dict[str, Any]) -> None:
        if "env" in message:
            os.environ.update(message["env"])
        seq: int = message["seq"]
        self._message_id = message["id"]
        self._stdin.ask = self._ask if message["input"] else None
        background, runner = self._background, self._runner
        background.begin(seq)
        result = runner.run(_code_of(message), seq)
        for stream in self._streams:
            if stream.has_written:
                stream.end_execution()
        if self._is_fork:  # of the user's, and it ran off the end of the code: only the worker may reply
            _end_as_python_does(result)
        if background.watches or runner.has_background():
            late: Sequence[Any] = background.end(runner.has_background())
        else:
            late = ()
        mark = self._children_mark() if self._has_forked or "_posixsubprocess" in sys.modules else None
        send_reply(self._message_id, result, late, mark, self._send)

    def _children_mark(self) -> int | None:
        """The newest process there is, where this worker has living children; see `interruption`."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        return last_pid()

    def _receive(self) -> dict[str, Any] | None:
        """The next message; `None` once the session has closed its end."""
        try:
            message = self._reader.take()
            while message is None:
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

    def _ask(self, prompt: str, is_password: bool) -> str:
        """Ask the caller for a line; an interrupt may come while waiting, never while reading."""
        self._send(pack({"id": self._message_id, "input": {"prompt": prompt, "password": is_password}}))
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        gate = self._runner.gate
        while True:
            poll.poll()
            gate.is_open = False
            message = self._receive()
            gate.is_open = True
            if message is None:
                os._exit(70)
            if message.get("op") == "input_reply" and message.get("id") == self._message_id:
                if "text" in message:
                    return str(message["text"])
                refuse_input()

    def _prepare_process(self) -> None:
        keeper_pid = os.getppid()
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != keeper_pid:
            os._exit(70)
        os.setsid()
        forbid_new_privileges()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(FLUSH_SIGNAL, self._on_flush)
        os.register_at_fork(after_in_child=self._on_forked, after_in_parent=self._on_fork)
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[assignment,misc]
        sys.stdout = sys.__stdout__ = self._streams[0]  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._streams[1]  # type: ignore[misc]
        faulthandler.enable(file=2, all_threads=False)
        sys.argv = [""]
        sys.path.insert(0, "")
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
        if self._runner.gate.is_open:
            raise KeyboardInterrupt

    def _on_flush(self, _signal_number: int, _frame: FrameType | None) -> None:
        for stream in self._streams:
            try:
                stream.flush_on_time()
            except RuntimeError:
                pass  # it is being flushed right now

    def _on_fork(self) -> None:
        self._has_forked = True

    def _on_forked(self) -> None:
        self._is_fork = True
        self._socket.close()


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
    """Run a keeper and the workers it forks; `arguments`: control socket, data socket, pid of the session."""
    if len(arguments) != 3 or not all(argument.isdigit() for argument in arguments):
        print(
            "repl_kernel.worker is started by a session, with its sockets; run json-repl instead",
            file=sys.stderr,
        )
        return 2
    control_fd, data_fd, session_pid = map(int, arguments)
    return Keeper(control_fd, session_pid, lambda fd: Worker(fd).run()).run(data_fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
