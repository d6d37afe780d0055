"""The one door through which documents come in: each is checked here, or set aside.

Anybody who may write to the database can write anything. In a document that has passed, each field that we know has
the type and the form in which we write it. It may be absent, or null where that is harmless: an earlier version or
another program wrote the document. Fields that we do not know are kept, and never read.

A document whose `status` is none of our five words belongs to no run. It passes unchecked, and only its `_id` is used.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from watcher import model
from watcher.model import Document
from watcher.statusdb.fields import ARCHIVE, CLAIM, DOCUMENT, VERIFIED, kind, wrong
from watcher.statusdb.store import Found, Unreadable

MAX_DEPTH = 100
"""Objects and arrays within each other. Python's JSON modules fail at some hundreds, sooner when called deep down."""

MAX_REMEMBERED = 10_000
"""Unreadable documents. Those beyond it are set aside as well, but neither named nor shown."""

logger = logging.getLogger(__name__)
# `status` shows unreadable documents in its table. Without a handler, Python would print them once more.
logger.addHandler(logging.NullHandler())

_TOKEN = re.compile(r"[0-9a-f]{32}")
_written = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode


def checked(found: Found) -> Found:
    """Return the document if it is a run's in our form, or no run's; else why it is unreadable."""
    if isinstance(found, Unreadable):
        return found
    name = found.get("_id")
    if not isinstance(name, str):
        return Unreadable("", "it has no _id that is a text")
    if found.get("_deleted") is True:
        return {key: value for key, value in found.items() if key in ("_id", "_rev", "_deleted")}
    if model.status_of(found) is None:
        return found
    reason = _unwritable(found) or _misnamed(name) or _misplaced(found.get("path"), name) or _malformed(found, name)
    return Unreadable(_text(name), reason) if reason else found


def _unwritable(document: Document) -> str:
    """Say why the document could not be written back as it is."""
    try:
        written = _written(document)
        written.encode()
    except RecursionError:
        return "it is nested too deeply"
    except UnicodeEncodeError:
        return "a text in it is not valid Unicode"
    except ValueError:
        return "a number in it is not finite"
    # Brackets inside strings count, too. So this is only a hint, and a closer look follows.
    is_flat = written.count("[") + written.count("{") <= MAX_DEPTH
    return "" if is_flat or _depth(document) <= MAX_DEPTH else "it is nested too deeply"


def _depth(document: Document) -> int:
    depth = 0
    level: list[Any] = [document]
    while level:
        depth += 1
        level = [inner for outer in level for inner in _inner(outer) if isinstance(inner, dict | list)]
    return depth


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def is_run_name(name: str) -> bool:
    """Say whether a run, and so its document, may have this name."""
    is_usable = name not in ("", ".", "..") and not name.startswith("_") and "/" not in name and "\0" not in name
    return is_usable and is_utf8(name) and len(name.encode()) <= model.MAX_RUN_NAME_BYTES


def is_utf8(name: str) -> bool:
    """Say whether a name can be written in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _misnamed(name: str) -> str:
    return "" if is_run_name(name) else "_id is not the name of a run"


def _misplaced(path: Any, name: str) -> str:
    if path is None:
        return "path is missing"
    if not isinstance(path, str):
        return f"path is {kind(path)}"
    # A Path for each document would take as long as all other checks.
    if not path.startswith("/") or any(part in path for part in ("\0", "//", "/./")):
        return "path is not an absolute path as we write it"
    above, _, last = path.rpartition("/")
    return "" if last == name and not above.endswith("/..") else "path does not end in _id"


def _malformed(document: Document, name: str) -> str:
    if not isinstance(document.get("_rev"), str):
        return "it has no _rev that is a text"
    reason = wrong(document, DOCUMENT, "", may_be_null=True)
    claim, archive, verified = document.get("claim"), document.get("archive"), document.get("verified")
    if not reason and claim is not None:
        reason = wrong(claim, CLAIM, "claim.")
    if not reason and verified is not None:
        reason = wrong(verified, VERIFIED, "verified.")
    if not reason and archive is not None:
        reason = wrong(archive, ARCHIVE, "archive.") or _foreign(archive, name)
    return reason


def _foreign(archive: Mapping[str, Any], name: str) -> str:
    """Say which field of an archive has not our form; empty if none. These fields become parts of paths."""
    for field, suffix in (("file", model.ARCHIVE_SUFFIX), ("key_file", model.KEY_SUFFIX)):
        if archive.get(field, name + suffix) != name + suffix:
            return f"archive.{field} is not <_id>{suffix}"
    if (file := archive.get("manifest_file")) and file not in model.manifest_names(name):
        return f"archive.manifest_file is not <_id>{model.MANIFEST_SUFFIX}"
    if "token" in archive and not _TOKEN.fullmatch(archive["token"]):
        return "archive.token is not 32 hexadecimal digits"
    return ""


def _text(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


class Door:
    """Checks what a store gives, and remembers what it has set aside. Safe to use from several threads."""

    def __init__(self) -> None:
        self._set_aside: dict[str, Unreadable] = {}
        self._lock = threading.Lock()
        self._is_full = False

    def admit(self, found: Found) -> Found:
        """Return the document, or why it is unreadable; that is logged when it is news."""
        one = checked(found)
        if isinstance(one, Unreadable):
            self._remember(one)
        else:
            self.forget(one["_id"])
        return one

    def readable(self, found: Iterable[Found]) -> list[Document]:
        """Return those of the documents that are readable."""
        return [one for one in map(self.admit, found) if not isinstance(one, Unreadable)]

    def forget(self, run_id: str) -> None:
        """Note that a document is readable, or gone."""
        if run_id in self._set_aside:  # looked at without the lock: nearly always there is nothing to forget
            with self._lock:
                self._set_aside.pop(run_id, None)

    def set_aside(self) -> tuple[Unreadable, ...]:
        """Return what is unreadable, as far as it is known."""
        with self._lock:
            return tuple(self._set_aside.values())

    @property
    def is_full(self) -> bool:
        """Whether more documents are unreadable, or were, than are remembered."""
        return self._is_full

    def _remember(self, one: Unreadable) -> None:
        with self._lock:
            if self._set_aside.get(one.run_id) == one:
                return
            if len(self._set_aside) >= MAX_REMEMBERED and one.run_id not in self._set_aside:
                was_full, self._is_full = self._is_full, True
                if not was_full:
                    logger.warning("more than %d documents are unreadable: the others are not named", MAX_REMEMBERED)
                return
            self._set_aside[one.run_id] = one
        logger.warning("%s", one, extra={"run": one.run_id})
