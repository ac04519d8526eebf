"""A kernel of a session's own: found by name as Jupyter finds it, started under a guard, ended with it.

name --> kernelspec --> connection file in a private folder --> guard --> kernel
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from string import Template
from typing import TYPE_CHECKING, Any

from repl_kernel.errors import KernelUnreachable
from repl_kernel.isolation import worker_environment
from repl_kernel.jupyter.connection import Connection, read_connection_file
from repl_kernel.jupyter.guard import END_SIGNAL, FORGET_SIGNAL, INTERRUPT_SIGNAL, TAIL_BYTES
from repl_kernel.jupyter.kernel_command import split_command
from repl_kernel.outcome import Death

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

    from task_logger.record import TaskIds

_BOOT = (
    "import sys;sys.path.append(sys.argv.pop(1));"
    "from repl_kernel.jupyter.guard import main;main(sys.argv[1:])"
)
_END_LIMIT_S = 5.0
_LOCAL_PROVISIONERS = ("local-provisioner", "json-repl-warm")
"""What a kernelspec may name and still be started by its command alone."""


class KernelProcess:
    """One running kernel that is ours; `connection` says where it listens, once it does."""

    def __init__(self, name: str, task: TaskIds | None) -> None:
        """Start it; its code sees the ids of `task` as FLOW_*, with `None` those in the environment here.

        Raises `KernelUnreachable`, and nothing is left then.
        """
        if sys.platform != "linux":
            raise KernelUnreachable(
                f"a kernel is started on Linux, this is {sys.platform}; start it yourself, and give its "
                "connection file"
            )
        from jupyter_client.connect import write_connection_file

        folder = tempfile.mkdtemp(prefix="json-repl-kernel-")
        try:
            path = os.path.join(folder, "connection.json")
            manager = _manager(name, path)
            # Not by the manager: it removes what it has written once it is collected itself.
            write_connection_file(path, key=os.urandom(32).hex().encode(), kernel_name=name)
            self.connection: Connection = read_connection_file(path)
            spec: Any = manager.kernel_spec
            _refuse_plain_lines(name, spec.argv)
            self.interrupts_by_message: bool = spec.interrupt_mode == "message"
            self._process = _spawn(folder, manager.format_kernel_cmd(), _environment(spec.env, task))
        except BaseException:
            _remove(folder)
            raise
        self._folder = folder
        self.exit_fd = os.pidfd_open(self._process.pid)
        """Readable once the kernel has ended."""

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return bool(select.select([self.exit_fd], [], [], 0)[0])

    def interrupt(self) -> None:
        """Send it SIGINT, and the programs of its process group too."""
        self._process.send_signal(INTERRUPT_SIGNAL)

    def forget_words(self) -> None:
        """What it wrote so far says nothing of how it will end."""
        self._process.send_signal(FORGET_SIGNAL)

    def end(self) -> tuple[Death, str]:
        """End it, if it hasn't, and all that it started; returns how it ended, and the last it wrote."""
        if not self.has_ended:
            self._process.send_signal(END_SIGNAL)
        if not select.select([self.exit_fd], [], [], _END_LIMIT_S)[0]:
            self._process.kill()
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        status = self._process.wait()
        tail = self._process.stdout.read(TAIL_BYTES) or b""
        self._process.stdout.close()
        os.close(self.exit_fd)
        _remove(self._folder)
        return _death(status), tail.decode("utf-8", "replace").strip()

    def abandon(self) -> None:
        """Close our descriptors only: in a forked child, whose parent the session is."""
        os.close(self.exit_fd)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.returncode = 0  # else its end would be waited for here


def _manager(name: str, connection_file: str) -> KernelManager:
    """Jupyter's knowledge of a kernel, which starts nothing."""
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import KernelManager
    from traitlets import TraitError

    manager = KernelManager(kernel_name=name, connection_file=connection_file)
    try:
        spec: Any = manager.kernel_spec
        about = spec.metadata.get("kernel_provisioner", {})
        provisioner = about.get("provisioner_name", _LOCAL_PROVISIONERS[0])
    except NoSuchKernel as exc:
        known = manager.kernel_spec_manager.find_kernel_specs()
        if name.lower() in known:
            raise KernelUnreachable(
                f"kernel {name!r} is in {known[name.lower()]}, but its provisioner is not installed here; "
                "start it with Jupyter, and give its connection file"
            ) from exc
        names = ", ".join(sorted(known)) or "none"
        raise KernelUnreachable(f"there is no kernel {name!r}; there are: {names}") from exc
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, TraitError) as exc:
        raise _no_specification(name) from exc
    if not (spec.argv and _are_texts(spec.argv) and _are_texts(spec.env) and _are_texts(spec.env.values())):
        raise _no_specification(name)
    if provisioner not in _LOCAL_PROVISIONERS:
        raise KernelUnreachable(
            f"kernel {name!r} is started by the provisioner {provisioner!r}, not by a command; start it with "
            "Jupyter, and give its connection file"
        )
    return manager


def _no_specification(name: str) -> KernelUnreachable:
    return KernelUnreachable(
        f"the kernel.json of kernel {name!r} is no kernel specification; `json-repl kernel list` shows its "
        "folder"
    )


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _refuse_plain_lines(name: str, command: list[str]) -> None:
    """Raise where a kernel that records by itself would do so in clear, beside a log that is encrypted."""
    if os.environ.get("TASK_LOG_KEY") and split_command(command) is not None:
        raise KernelUnreachable(
            f"the kernel {name!r} records its cells itself, and would do so in clear: no kernel is passed "
            "TASK_LOG_KEY; choose one that doesn't record, such as 'python3'"
        )


def _environment(of_spec: dict[str, str], task: TaskIds | None) -> dict[str, str]:
    environment = worker_environment(os.environ, (), "none")
    if task is not None:
        environment["FLOW_PLAN_ID"] = _passable(task.plan_id)
        environment["FLOW_TASK_ID"] = _passable(task.task_id)
        environment["FLOW_TASK_NAME"] = _passable(task.task_name)
    own = {key: Template(value).safe_substitute(environment) for key, value in of_spec.items()}
    return {**environment, **own}


def _passable(text: str) -> str:
    """A text as an environment can hold it: what it can't is escaped."""
    safe = text.replace("\0", "\\x00")
    try:
        os.fsencode(safe)
    except UnicodeEncodeError:
        return safe.encode("utf-8", "backslashreplace").decode()
    return safe


def _spawn(folder: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    session_fd = os.pidfd_open(os.getpid())
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, package_root, str(session_fd), folder, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[session_fd],
            start_new_session=True,
        )
    except OSError as exc:
        raise KernelUnreachable(f"cannot start {sys.executable} for a kernel: {exc.strerror}") from exc
    except ValueError as exc:  # a NUL, say
        raise KernelUnreachable(f"the kernel's command or environment can't be passed on: {exc}") from exc
    finally:
        os.close(session_fd)


def _death(status: int) -> Death:
    if status < 0:
        name = signal.Signals(-status).name
        return Death(name, None, f"was killed by {name}", 0)
    return Death(None, status, f"ended with exit code {status}", 0)


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
