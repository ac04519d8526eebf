"""Collects what one execution displays, in bounded memory.

messages --> DisplayCollector --+-- execute_result: the result
                                +-- up to 8 MiB: MIME bundles, in order --> displays of the line
                                +-- more: a spool file --> artifact, one JSON text a line
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import IO, Any, cast

import orjson

from repl_kernel.capture import OpenSpool
from task_logger.record import Artifact

DISPLAY_KINDS = ("display_data", "update_display_data", "execute_result", "clear_output")
"""What a message about a display can be, by Jupyter's names."""

_KEPT_BYTES = 8 << 20
"""Half of what a line can hold: past that, bundles go to the artifact."""


class DisplayCollector:
    """The displays of one execution."""

    def __init__(self, open_spool: OpenSpool) -> None:
        self._open_spool = open_spool
        self._bundles: list[Mapping[str, Any]] = []
        self._size_bytes = 0
        self._spool: IO[bytes] | None = None
        self._spooled = 0
        self._pieces: list[bytes] = []
        self.result: Mapping[str, Any] | None = None
        """The bundle of the last expression's value, `None` where it had none."""

    def take(self, display: str | Mapping[str, Any], *, more: bool = False) -> Mapping[str, Any] | None:
        """Take in one message (see `OnDisplay`) and return it.

        Where it is long it comes as pieces of its JSON text, in base64, `more` with all but the last;
        `None` is returned until then. Raises KeyError, TypeError or ValueError for what is no such message.
        """
        if isinstance(display, str):
            self._pieces.append(base64.b64decode(display))
            if more:
                return None
            text, self._pieces = b"".join(self._pieces), []
            display = cast("Mapping[str, Any]", orjson.loads(text))
        self._take(display)
        return display

    def _take(self, message: Mapping[str, Any]) -> None:
        kind = message["kind"]
        if kind not in DISPLAY_KINDS:
            raise ValueError(f"there is no display message {kind!r}")
        if kind == "clear_output":
            return  # what was shown was shown
        data = message["data"]
        if not isinstance(data, Mapping):
            raise TypeError(f"a display's data is a mapping, not a {type(data).__name__}")
        if kind == "execute_result":
            if self.result is not None:  # IPython can be told to show the value of every expression
                self._keep(self.result)
            self.result = data
        elif data:
            self._keep(data)

    def _keep(self, bundle: Mapping[str, Any]) -> None:
        self._size_bytes += sum(len(part) if isinstance(part, str) else 1024 for part in bundle.values())
        if self._size_bytes <= _KEPT_BYTES:
            self._bundles.append(bundle)
            return
        if self._spool is None:
            self._spool = self._open_spool()
        self._spooled += 1
        self._spool.write(_json_of(bundle) + b"\n")

    def finish(self, artifacts: list[Artifact], notices: list[str]) -> tuple[Mapping[str, Any], ...]:
        """The bundles for the line; adds the artifact of those that are too many, and the notice of it."""
        spool, self._spool = self._spool, None
        if spool is not None:
            import hashlib

            spool.flush()
            spool.seek(0)
            digest = hashlib.file_digest(spool, "sha256").hexdigest()  # type: ignore[arg-type]  # any binary file
            artifacts.append(
                Artifact(
                    field="displays",
                    sha256=digest,
                    bytes=spool.tell(),
                    mime="application/x-ndjson",
                    content=spool,
                )
            )
            notices.append(
                f"displays: {self._spooled} are too much for the log line; they are artifact {digest}"
            )
        return tuple(self._bundles)


def _json_of(bundle: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(bundle)
    except TypeError:  # a text with lone surrogates
        import json

        return json.dumps(bundle, default=repr).encode()
