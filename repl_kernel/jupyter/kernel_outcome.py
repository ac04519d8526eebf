"""What a kernel doesn't say of an execution itself: that it died, was stopped, or ran out of time."""

from __future__ import annotations

from dataclasses import replace

from repl_kernel.outcome import Death, past_time_limit
from task_logger.record import ExecutionError, ExecutionOutcome, Status


def died(message: str, death: Death, tail: str) -> ExecutionError:
    """The kernel ended while code ran; `tail` is the last that it wrote itself."""
    text = f"KernelDied: {message}\n"
    return ExecutionError(
        type="KernelDied",
        message=message,
        traceback=f"{tail}\n{text}" if tail else text,
        signal=death.signal,
        exit_code=death.exit_code,
    )


def failed(kind: str, message: str) -> ExecutionError:
    """An error without a place in the code."""
    return ExecutionError(type=kind, message=message, traceback=f"{kind}: {message}\n")


def completed(
    outcome: ExecutionOutcome, error: ExecutionError | None, status: Status | None, time_limit_s: float | None
) -> ExecutionOutcome:
    """With an error that the kernel didn't tell of, and what a time limit did."""
    if error is not None:
        outcome = replace(
            outcome,
            status=outcome.status if status is not None else "error",
            error=error,
            stderr=outcome.stderr + error.traceback,
        )
    elif status == "interrupted" and outcome.error is None:
        error = failed("KeyboardInterrupt", "the execution was interrupted")
        outcome = replace(outcome, error=error, stderr=outcome.stderr + error.traceback)
    if status == "timeout" and time_limit_s is not None:
        return past_time_limit(outcome, time_limit_s)
    return outcome
