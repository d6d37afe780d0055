"""The first line of a manifest: what the archive is, and what it was made of and with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from watcher.model import Archive

FORMAT = "dataflow_archive manifest 1"

_LISTS = ("exclusions", "left_out")


@dataclass(frozen=True)
class Heading:
    """The first line. Sizes are in bytes. `archive` is what the run document has, but for the manifest's own digest.

    `path` is the run's when it was archived, `tools` the versions of programs by name. `files` and `file_bytes` count
    regular files. `left_out` names the first of the `archive.excluded` entries that `exclusions` left out.
    """

    run: str
    path: str
    created_at: str
    tools: Mapping[str, str]
    cipher: str
    archive: Archive
    files: int
    file_bytes: int
    exclusions: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_line(self) -> bytes:
        """Return the line, with its newline."""
        value = {"format": FORMAT, **dataclasses.asdict(self), "archive": self.archive.to_document()}
        return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the heading that a line holds. Raises TypeError or KeyError for what is none of this format."""
        if value.get("format") != FORMAT:
            raise TypeError(f"its format is {value.get('format')!r}, and not {FORMAT!r}")
        known = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        lists = {name: tuple(value[name]) for name in _LISTS}
        return cls(**{**known, **lists, "archive": Archive.from_document(value["archive"])})
