"""`python -m json_repl`: serve on standard input and output; with arguments, the command line."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Start the worker, if there will be one, as the first act: it starts up while we do."""
    if len(sys.argv) > 1:
        from json_repl.cli import main as run_command

        return run_command()
    spawned = None
    if os.environ.get("USE_SUBPROCESS_WORKER") == "1":
        from repl_kernel.errors import WorkerStartFailed
        from repl_kernel.isolation import worker_environment
        from repl_kernel.spawn import spawn_keeper

        try:
            spawned = spawn_keeper(worker_environment(os.environ, ()))
        except WorkerStartFailed:
            pass  # the session tries again, and says what is wrong
    from json_repl.stdio import serve

    return serve(spawned=spawned)


if __name__ == "__main__":
    sys.exit(main())
