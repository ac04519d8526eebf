"""What a worker is kept from, by tier.

none      nothing; but the log's keys never reach a worker, and all it started ends with the session
process   secrets in the environment, new privileges, core files, the session's descriptors
sandbox   all that, and the machine: see `sandbox`
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not imported before the worker is started
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from task_logger.record import Isolation

_ALWAYS_WITHHELD = frozenset({"TASK_LOG_KEY", "TASK_LOG_NEW_KEY", "TASK_LOG_SEAL_KEY"})

_SECRET_PARTS = ("SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "APIKEY", "PRIVATE_KEY")
_SECRET_ENDS = ("_KEY", "_PWD", "_PASS", "_AUTH")


def looks_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret."""
    upper = name.upper()
    return upper.endswith(_SECRET_ENDS) or any(part in upper for part in _SECRET_PARTS)


def worker_environment(
    environment: Mapping[str, str], pass_env: Collection[str], isolation: Isolation = "process"
) -> dict[str, str]:
    """The environment a worker gets: all but secret-looking names; `pass_env` names exceptions from that.

    Without isolation secret-looking names pass too. The log's own keys are withheld always.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in _ALWAYS_WITHHELD
        and (isolation == "none" or name in pass_env or not looks_secret(name))
    }
