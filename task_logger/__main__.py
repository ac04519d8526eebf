"""`python -m task_logger` is the command `task-log`."""

from task_logger.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
