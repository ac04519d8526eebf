"""Why an execution gives something else each time, as far as it can be seen: pure.

two replays of it, its code, the code before it -> a sentence, or None
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from json_repl.replay.normalizers import BUILT_IN, normalize

_SEEN = {
    "addresses": "an address in a repr",
    "set-order": "the order of a set, which follows the hash seed of the process",
    "temp-names": "the name of a temporary file",
    "times": "the time of day",
    "durations": "how long something took",
}
"""Normalizers that make two replays alike, and what that tells."""

_USES = {
    "random": r"\brandom\b|\bshuffle\b|\brandint\b|\bdefault_rng\b",
    "uuid": r"\buuid\d?\b",
    "secrets or urandom": r"\bsecrets\b|\burandom\b",
    "the process id": r"\bgetpid\b|\bgetppid\b",
    "id()": r"\bid\s*\(",
    "hash() (of texts, which follows the hash seed of the process)": r"\bhash\s*\(",
    "the clock": r"\btime\b|\bdatetime\b|\bperf_counter\b|\bmonotonic\b|\btimeit\b",
    "temporary files": r"\btempfile\b|\bmkdtemp\b",
    "threads": r"\bthreading\b|\bThreadPoolExecutor\b|\bmultiprocessing\b",
    "the order of a set": r"\bset\s*\(|\bfrozenset\s*\(|\{[^{}:]*,[^{}:]*\}",
    "memory that is in use": r"\bgc\b|\btracemalloc\b|\bgetrefcount\b|\bgetsizeof\b",
}
"""What code uses, by what shows it."""


def cause_of(first: str, second: str, code: str, code_before: Iterable[tuple[int, str]]) -> str | None:
    """Say why two replays of this code give these texts; `None` where nothing tells.

    `code_before` is what ran before it, newest first, each with the number of its line.
    """
    for name, words in _SEEN.items():
        normalizer = [BUILT_IN[name]]
        if normalize(first, normalizer).text == normalize(second, normalizer).text:
            return f"{words} (--normalize {name})"
    for words, pattern in _USES.items():
        if re.search(pattern, code):
            return f"its code uses {words}"
    for number, text in code_before:
        for words, pattern in _USES.items():
            if re.search(pattern, text):
                return f"the code of line {number} before it uses {words}"
    return None
