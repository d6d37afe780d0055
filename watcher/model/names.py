"""The names of a run's published files: which suffix, and how long a name may be."""

from __future__ import annotations

import hashlib
import os
from urllib.parse import quote

ARCHIVE_SUFFIX = ".tar.gpg"
KEY_SUFFIX = ".key.gpg"
CLEAR_MANIFEST_SUFFIX = ".manifest.jsonl.gz"
MANIFEST_SUFFIX = f"{CLEAR_MANIFEST_SUFFIX}.gpg"

NAME_MAX = 255
"""Bytes in a file name, as all of Linux's local file systems have it."""

MAX_RUN_NAME_BYTES = NAME_MAX - max(len(ARCHIVE_SUFFIX), len(KEY_SUFFIX))


def shortened(run_name: str, max_bytes: int) -> str:
    """Return a run's name, or its beginning with a part of its SHA-256, in so many bytes at most."""
    if len(os.fsencode(run_name)) <= max_bytes:
        return run_name
    digest = hashlib.sha256(os.fsencode(run_name)).hexdigest()[:16]
    while len(os.fsencode(run_name)) > max_bytes - len(digest) - 1:
        run_name = run_name[:-1]
    return f"{run_name}~{digest}"


def lock_name(worker_id: str) -> str:
    """Return the name of the file, in `destination_path`, that a worker's process locks."""
    return f".dataflow_archive.{quote(worker_id, safe='')}.lock"


def manifest_names(run_name: str) -> tuple[str, ...]:
    """Return the names that a run's manifest may have."""
    return tuple(manifest_name(run_name, suffix) for suffix in (MANIFEST_SUFFIX, CLEAR_MANIFEST_SUFFIX))


def manifest_name(run_name: str, suffix: str) -> str:
    """Return the name of a run's manifest. Its suffix is so long that the longest names of runs are shortened."""
    return shortened(run_name, NAME_MAX - len(suffix)) + suffix
