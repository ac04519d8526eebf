"""`run_in_worker`: the one worker of a process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os
import sys
from repl_kernel.manager import run_in_worker

print(run_in_worker("import os; x = 41; os.getpid()").result["text/plain"] != str(os.getpid()))
print(run_in_worker("x + 1").result["text/plain"])
print(run_in_worker("while True: pass", time_limit_s=0.3).status, run_in_worker("x").result["text/plain"])
sys.stdout.flush()  # else the child has it to write, too
child = os.fork()
if child == 0:
    print("child:", run_in_worker("x").error.type, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(run_in_worker("x").result["text/plain"], flush=True)
"""


def test_a_process_keeps_one_worker_and_a_forked_child_has_its_own() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stderr == ""
    assert sorted(ended.stdout.splitlines()) == ["41", "42", "True", "child: NameError", "timeout 41"]
    assert ended.returncode == 0
