"""What is checked of each line besides its place in the chain: its encryption, its seal, its artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import SEEK_END
from typing import TYPE_CHECKING

import orjson

from task_logger import artifacts
from task_logger.codec import stored_key_id
from task_logger.errors import ArtifactError, BadLine, EncryptedLine, KeyRefused, MissingArtifact, WrongKey
from task_logger.findings import Finding, FindingKind, Findings, Level
from task_logger.key_places import header_path, is_event_log
from task_logger.reader import LogLine
from task_logger.sealing import SEAL_KEY_SETTING, Sealer, seal_of

if TYPE_CHECKING:
    from task_logger.encryption import Cipher


class LineChecks:
    """The checks of one log's lines; those without what they need only count what they can't say."""

    def __init__(
        self,
        path: str,
        *,
        sealer: Sealer | None = None,
        cipher: Cipher | None = None,
        has_key: bool = False,
        artifacts: ArtifactCheck | None = None,
    ) -> None:
        """`sealer` has the key of seals, `cipher` that of an encrypted log; `artifacts` are the plan's.

        With `has_key` it is no answer that encrypted lines can't be opened: their header is gone.
        """
        self._path = path
        self._seals = SealTally(path, sealer)
        self._cipher, self._has_key = cipher, has_key
        self._artifacts = artifacts
        self._decrypted = self._closed = 0

    @property
    def keyed(self) -> tuple[str, ...]:
        """How the lines were checked with a key."""
        ways = (("seal", self._seals.are_checked), ("A256GCM", self._decrypted > 0))
        return tuple(name for name, was_used in ways if was_used)

    @property
    def is_quick(self) -> bool:
        """Whether lines without any of `looked_for` need no check."""
        return self._cipher is None and not self._seals.is_needed

    @property
    def looked_for(self) -> Sequence[bytes]:
        """What a line contains that must be looked at."""
        words = (b',"recovered":[', b',"seal":"', b'{"schema":1,"enc"')
        return words if self._artifacts is None else (*words, b'"artifacts":[{')

    def take(self, line: LogLine, number: int, findings: Findings) -> None:
        """Check the next line, which is `number` among the file's lines."""
        self._seals.take(line, number, findings)
        plain: bytes | None = line.data
        if self._cipher is not None or line.data.startswith(b'{"schema":1,"enc"'):
            plain = self._opened(line, number, findings)
        if plain is not None and self._artifacts is not None and b'"artifacts":[{' in plain:
            self._artifacts.take(line, plain, number, findings)

    def finish(self, findings: Findings) -> None:
        """Say what can only be said of the whole log."""
        self._seals.finish(findings)
        if self._closed:
            level: Level = "unproven"
            reason = (
                f"{self._closed} encrypted {_lines(self._closed)}: their chain is checked, but not who wrote "
                "them, nor the artifacts that they name; set TASK_LOG_KEY to check that"
            )
            if self._has_key and self._cipher is None:
                level = "problem"
                reason = (
                    f"{self._closed} encrypted {_lines(self._closed)} can't be opened, nor who wrote them be "
                    f"told: the header {header_path(self._path)!r} with the wrapped data key is gone; bring "
                    "it back from where the log came"
                )
            findings.add(
                Finding(kind="not_decrypted", level=level, path=self._path, line=0, at=0, reason=reason)
            )

    def _opened(self, line: LogLine, number: int, findings: Findings) -> bytes | None:
        """The plain line, `None` where it can't be had."""
        if self._cipher is None or stored_key_id(line.data) == "":
            self._closed += 1
            return None
        try:
            plain = self._cipher.open_line(line.data, line.link.n)
        except BadLine as exc:
            findings.add(_finding("forged", "problem", line, number, exc.reason))
            return None
        except (WrongKey, EncryptedLine) as exc:
            findings.add(_finding("forged", "problem", line, number, str(exc)))
            return None
        self._decrypted += 1
        return plain


class ArtifactCheck:
    """Looks at the artifacts that the lines of a plan name, at each once."""

    def __init__(self, plan_folder: str) -> None:
        self._plan_folder = plan_folder
        self._found: dict[str, int | Exception] = {}  # its length, or what is wrong with it

    def take(self, line: LogLine, plain: bytes, number: int, findings: Findings) -> None:
        """Check what a line names; `number` is its own among the file's lines."""
        for field, sha256, size_bytes in _named_artifacts(plain):
            if sha256 not in self._found:
                self._found[sha256] = self._look(sha256)
            found = self._found[sha256]
            kind: FindingKind = "artifact_damaged"
            level: Level = "problem"
            if isinstance(found, int):
                if found == size_bytes:
                    continue
                reason = f"artifact {sha256} of {field} has {found} bytes, not {size_bytes}"
            else:
                reason = f"{field}: {found}"
                if isinstance(found, MissingArtifact):
                    kind = "artifact_missing"
                elif isinstance(found, KeyRefused):
                    kind, level = "artifact_unchecked", "unproven"
            findings.add(_finding(kind, level, line, number, reason))

    def _look(self, sha256: str) -> int | Exception:
        try:
            with artifacts.get(self._plan_folder, sha256) as file:
                return file.seek(0, SEEK_END)
        except (ArtifactError, KeyRefused, OSError) as exc:
            return exc


def _named_artifacts(data: bytes) -> Iterator[tuple[str, str, object]]:
    try:
        named = orjson.loads(data).get("artifacts", ())
    except (ValueError, AttributeError):
        return
    for item in named if isinstance(named, list) else ():
        if isinstance(item, dict):
            yield str(item.get("field")), str(item.get("sha256")), item.get("bytes")


class SealTally:
    """Follows the seals of a log: which lines have one, and with a key whether they are right."""

    def __init__(self, path: str, sealer: Sealer | None) -> None:
        self._path = path
        self._sealer = sealer
        self._key_id = sealer.key_id.encode() if sealer else b""
        self._sealed = self._lines = 0
        self._other_keys = self._bare = 0
        self._first_other: LogLine | None = None
        self._first_bare: tuple[LogLine, int] | None = None
        self._other_number = 0
        self._other_id = b""

    @property
    def are_checked(self) -> bool:
        """Whether a key was there to check seals with, and there were seals."""
        return self._sealer is not None and self._sealed > 0

    @property
    def is_needed(self) -> bool:
        """Whether a line without a seal is to be taken, too."""
        return self._sealer is not None or self._sealed > 0

    def take(self, line: LogLine, number: int, findings: Findings) -> None:
        """Look at a line's seal."""
        self._lines += 1
        seal = seal_of(line.data)
        if seal is None:
            if self._sealed:
                self._bare += 1
                self._first_bare = self._first_bare or (line, number)
            return
        self._sealed += 1
        if self._sealer is None:
            return
        if seal.key_id != self._key_id:
            self._other_keys += 1
            if self._first_other is None:
                self._first_other, self._other_number, self._other_id = line, number, seal.key_id
        elif not self._sealer.is_right(seal):
            reason = "its seal is not that of this line: it was written without the key, or altered"
            findings.add(_finding("forged", "problem", line, number, reason))

    def finish(self, findings: Findings) -> None:
        """Say what can only be said of the whole log."""
        # Executed code writes events of its own, and has no key.
        is_expected = self._sealer is not None and not is_event_log(self._path)
        level: Level = "problem" if is_expected else "unproven"
        if self._first_bare is not None:
            line, number = self._first_bare
            reason = (
                f"{self._bare} {_lines(self._bare)} from here on without a seal, behind lines that have one: "
                "written by a program without the key, or forged"
            )
            findings.add(_finding("not_sealed", level, line, number, reason))
        if self._first_other is not None:
            reason = (
                f"{self._other_keys} {_lines(self._other_keys)} from here on with the seal of another key "
                f"({self._other_id.decode('ascii', 'replace')}); the key given is {self._key_id.decode()}"
            )
            findings.add(_finding("other_seal_key", "problem", self._first_other, self._other_number, reason))
        if self._lines and self._sealer is not None and not self._sealed:
            self._about_all(findings, "not_sealed", level, "a key is given, but no line has a seal")
        if self._sealed and self._sealer is None:
            reason = f"{self._sealed} {_lines(self._sealed)} with a seal: set {SEAL_KEY_SETTING} to check it"
            self._about_all(findings, "seal_unchecked", "unproven", reason)

    def _about_all(self, findings: Findings, kind: FindingKind, level: Level, reason: str) -> None:
        findings.add(Finding(kind=kind, level=level, path=self._path, line=0, at=0, reason=reason))


def _lines(count: int) -> str:
    return "line" if count == 1 else "lines"


def _finding(kind: FindingKind, level: Level, line: LogLine, number: int, reason: str) -> Finding:
    return Finding(
        kind=kind,
        level=level,
        path=line.path,
        line=number,
        at=line.at,
        bytes=len(line.data),
        n=line.link.n,
        reason=reason,
    )
