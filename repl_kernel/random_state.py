"""The random generators that a program is likely to share with the copies of its process."""

from __future__ import annotations

import sys


def reseed() -> None:
    """Renew them from the system's entropy: `random`'s, and numpy's global one where it is loaded."""
    import random

    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
