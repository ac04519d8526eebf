"""One keep-alive worker for the whole process, made when first needed: behind `manager.run_in_worker`."""

from __future__ import annotations

import atexit
import os
import threading
import time

from repl_kernel.manager import WorkerExecutor
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds


class ProcessWorker:
    """Makes its worker at the first call; a forked child makes one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: WorkerExecutor | None = None
        self._seq = 0
        os.register_at_fork(after_in_child=self._forget)

    def run(self, code: str, time_limit_s: float | None) -> ExecutionOutcome:
        """Run code, one call after the other; see `manager.run_in_worker`."""
        with self._lock:
            if self._executor is None:
                self._executor = WorkerExecutor()
                atexit.register(self._executor.close)
            self._seq += 1
            request = ExecutionRequest(
                code=code,
                session_id=f"process-{os.getpid()}",
                seq=self._seq,
                task=TaskIds(
                    plan_id=os.environ.get("FLOW_PLAN_ID") or "local",
                    task_id=os.environ.get("FLOW_TASK_ID") or "unknown",
                    task_name=os.environ.get("FLOW_TASK_NAME") or "adhoc",
                ),
                timestamp=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
                time_limit_s=time_limit_s,
            )
            return self._executor.execute(request)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executor, self._seq = None, 0


# The one piece of state of this module: `run_in_worker` is to need none from its caller.
PROCESS_WORKER = ProcessWorker()
