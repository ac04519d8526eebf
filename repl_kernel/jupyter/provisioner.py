"""The provisioner of our kernels: a spare process where there is one, sockets that only this user reaches.

manager --pre_launch--> ipc in a private folder --> connection file
        --launch------> a spare takes it over (40 ms) | a new process (as LocalProvisioner)
        --cleanup-----> the folder is removed

Whatever isn't a kernel of ours, or is asked for in a way a spare can't follow, is left to LocalProvisioner.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pathlib
import time
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import localhost
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from repl_kernel.jupyter.kernel_command import split_command
from repl_kernel.jupyter.private_folder import make_private_folder, remove_private_folder
from repl_kernel.jupyter.spare_pool import pool_of_process

SPARE_MODULE = "json_repl.warm_kernel"

_FOLLOWED = {"env", "cwd", "extra_arguments", "kernel_id"}
"""What a launch may ask for that a spare can follow."""

_LISTENS_WITHIN_S = 0.5
_LOOK_AGAIN_S = 0.001


class WarmProvisioner(LocalProvisioner):
    """Starts kernels from a spare process; the first one of a manager's process starts cold."""

    _folder: str | None = None
    _owner_pid = 0

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose the transport, then as LocalProvisioner."""
        if self._folder is None and not kwargs.get("independent") and self._may_choose_transport():
            self._use_ipc()
        elif self._folder is not None:
            # A restart; what cleans up temporary folders may have been too thorough.
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        prepared: dict[str, Any] = await super().pre_launch(**kwargs)
        return prepared

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel, warm where that is possible."""
        command = split_command(cmd)
        if command is None or any(kwargs[name] for name in kwargs.keys() - _FOLLOWED):
            return await super().launch_kernel(cmd, **kwargs)
        interpreter, arguments = command
        environment = {**kwargs["env"], "JPY_PARENT_PID": str(os.getpid())}
        cwd = os.path.abspath(kwargs.get("cwd") or os.curdir)
        pool = pool_of_process(SPARE_MODULE)
        process = None
        if os.path.isdir(cwd) and os.access(cwd, os.X_OK):
            process = pool.take(interpreter, arguments, environment, cwd)
        if process is None:
            info = await super().launch_kernel(cmd, **kwargs)
        else:
            self.process = process
            self.pid = self.pgid = process.pid  # of a session of its own
            self.cwd = kwargs.get("cwd", pathlib.Path.cwd())
            info = self.connection_info
            await self._wait_for_sockets()
        pool.refill_later(interpreter, environment)
        return info

    async def cleanup(self, restart: bool = False) -> None:
        """As LocalProvisioner; the private folder goes with the kernel, and stays for a restart."""
        await super().cleanup(restart=restart)
        if self._folder is not None and not restart:
            atexit.unregister(self._remove_folder)
            self._remove_folder()

    async def _wait_for_sockets(self) -> None:
        """Return once the kernel listens, which is soon: a client that comes earlier waits another 100 ms."""
        manager = self.parent
        if manager is None or manager.transport != "ipc":
            return
        last = f"{manager.ip}-{manager.hb_port}"
        deadline = time.monotonic() + _LISTENS_WITHIN_S
        while not os.path.exists(last) and time.monotonic() < deadline and await self.poll() is None:
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _may_choose_transport(self) -> bool:
        """Whether the manager leaves it to us: one that was told transport, address or ports has its way."""
        manager = self.parent
        if manager is None or split_command(self.kernel_spec.argv) is None or any(manager.ports):
            return False
        configured: set[str] = set()
        for kind in type(manager).__mro__:
            configured.update(manager.config.get(kind.__name__, {}))
        return (
            manager.transport == "tcp" and manager.ip == localhost() and not configured & {"transport", "ip"}
        )

    def _use_ipc(self) -> None:
        manager: Any = self.parent
        folder = make_private_folder()
        if folder is None:
            return  # tcp works everywhere
        self._folder, self._owner_pid = folder, os.getpid()
        atexit.register(self._remove_folder)
        manager.transport, manager.ip, manager.cache_ports = "ipc", os.path.join(folder, "k"), False
        if not manager.connection_file:
            manager.connection_file = os.path.join(folder, "kernel.json")

    def _remove_folder(self) -> None:
        if self._folder is None or self._owner_pid != os.getpid():
            return
        remove_private_folder(self._folder)
        manager = self.parent
        if manager is not None and os.path.dirname(manager.ip) == self._folder:
            # Should it start again, that is a first start.
            manager.transport, manager.ip = "tcp", localhost()
            for name in ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port"):
                setattr(manager, name, 0)
            if os.path.dirname(manager.connection_file) == self._folder:
                manager.connection_file = ""
        self._folder = None
