"""Runs, claims, archives: frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from watcher.model.names import CLEAR_MANIFEST_SUFFIX, MANIFEST_SUFFIX

Document = dict[str, Any]

MAX_FAILURES = 3
"""A run that failed this often is `failed` until an operator says `retry`."""

MAX_INTEGER = 2**63 - 1
"""No size and no count of ours is larger, and none is negative."""


class Status(StrEnum):
    """What may happen to a run next."""

    PENDING = "pending"
    PROCESSING = "processing"
    ENCRYPTED = "encrypted"
    FAILED = "failed"
    HELD = "held"


class Phase(StrEnum):
    """How far the holder of a claim has come. Informs only."""

    CLAIMED = "claimed"
    ARCHIVING = "archiving"
    VALIDATING = "validating"
    WRAPPING = "wrapping"
    PUBLISHING = "publishing"


@dataclass(frozen=True)
class Run:
    """One run directory. `path` is `sequencing_path/<sequencer>/<run>`."""

    path: Path

    @property
    def name(self) -> str:
        """The directory's name: the run document's `_id` and the archive's first part."""
        return self.path.name

    @property
    def about(self) -> dict[str, str]:
        """What each log record about the run carries."""
        return {"run": self.name, "sequencer": self.path.parent.name}


@dataclass(frozen=True)
class Claim:
    """The right to work on a run, as acquired: `document` is what the claim wrote, `previous` what it met.

    `earlier_tokens` are those of all files that were staged for the run before it was claimed.
    """

    run: Run
    token: str
    document: Document
    previous: Document
    earlier_tokens: tuple[str, ...] = ()

    @property
    def announced(self) -> Archive | None:
        """The archive that an interrupted attempt had announced, if it came that far."""
        try:
            return Archive.from_document(self.previous["archive"])
        except (KeyError, TypeError, AttributeError):
            return None  # none, or not in our words


@dataclass(frozen=True)
class Digest:
    """What a stored file is: its length in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """What tar's stream was: its length in bytes and its BLAKE3 in hexadecimal, for a third of SHA-256's time."""

    size: int
    blake3: str


@dataclass(frozen=True)
class TarReport:
    """What tar gave: its stream's digest, its harmless warnings, and its own version."""

    stream: Content
    warnings: tuple[str, ...]
    version: str = ""


class Encryption(StrEnum):
    """How the archive's content is kept from being changed: MDC (RFC 4880), or OCB, which GnuPG 2.4 and newer write."""

    MDC = "mdc"
    OCB = "ocb"


class ManifestMode(StrEnum):
    """How the list of a run's members is stored: encrypted to the recipient, for all to read, or not at all."""

    ENCRYPTED = "encrypted"
    CLEAR = "clear"
    NONE = "none"

    @property
    def suffix(self) -> str:
        """What the name of the file ends in; empty for NONE."""
        return {ManifestMode.ENCRYPTED: MANIFEST_SUFFIX, ManifestMode.CLEAR: CLEAR_MANIFEST_SUFFIX}.get(self, "")


class ValidationMode(StrEnum):
    """When an archive is decrypted again: while it is written, or after. REREAD: the first, then it is read again."""

    FOLLOW = "follow"
    AFTER = "after"
    REREAD = "reread"


@dataclass(frozen=True)
class EncryptedArchive:
    """A staged archive that has been proven to decrypt to what tar gave. Whoever writes to it changes its `version`."""

    staged: Path
    file: Digest
    tar: TarReport
    version: str


@dataclass(frozen=True)
class Archive:
    """A finished archive as the run document's `archive` field has it.

    `tar_blake3` is of what is in it; archives of earlier versions have `tar_sha256` instead, which is empty otherwise.
    `token` is that of the claim that staged it, `sentinel` the version of the one that had made the run ready,
    `listing` the digest of what the run held, `top` the version of its top directory, and `excluded` how many entries
    tar_exclusions left out, those below a directory that was left out not counted. `manifest_file` is empty where there
    is no manifest.
    """

    file: str
    size: int
    sha256: str
    tar_sha256: str
    tar_size: int
    key_file: str
    key_sha256: str
    recipient: str
    members: int
    warnings: tuple[str, ...] = ()
    token: str = ""
    sentinel: str = ""
    listing: str = ""
    top: str = ""
    excluded: int = 0
    tar_blake3: str = ""
    encryption: str = str(Encryption.MDC)
    key_size: int = 0
    manifest_file: str = ""
    manifest_size: int = 0
    manifest_sha256: str = ""

    @property
    def manifest_mode(self) -> ManifestMode:
        """How the manifest is stored."""
        if not self.manifest_file:
            return ManifestMode.NONE
        return ManifestMode.ENCRYPTED if self.manifest_file.endswith(MANIFEST_SUFFIX) else ManifestMode.CLEAR

    def to_document(self) -> Document:
        """Return the JSON object for the run document."""
        return {**dataclasses.asdict(self), "warnings": [writable(warning) for warning in self.warnings]}

    @classmethod
    def from_document(cls, value: Mapping[str, Any]) -> Self:
        """Return the Archive that a document's `archive` field holds; raises TypeError if it is not one."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value[key] for key in value if key in names}
        return cls(**{**known, "warnings": tuple(value.get("warnings", ()))})


@dataclass(frozen=True)
class Progress:
    """How far a claim's work has come, in bytes: of the phase, and of the stored file that was validated already."""

    phase: Phase
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_validated: int = 0


def timestamp(moment: datetime) -> str:
    """Return ISO 8601 in UTC with its offset, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


class Kind(StrEnum):
    """What a member is, or an entry of a directory."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMBOLIC_LINK = "symbolic link"
    HARD_LINK = "hard link"
    FIFO = "fifo"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    SOCKET = "socket"


def writable(words: str) -> str:
    """Return a text that each status database takes."""
    # Names of files may be no UTF-8; CouchDB refuses a document with such a word in it.
    return words.encode("utf-8", "backslashreplace").decode()
