"""The fields of a run document that we know, and what each must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from watcher.model import MAX_INTEGER

Check = Callable[[Any], bool]


def wrong(fields: Mapping[str, Any], checks: Mapping[str, Check], within: str, may_be_null: bool = False) -> str:
    """Say which field has another type than `checks` wants; empty if none. Its name is given after `within`."""
    for field, value in fields.items():
        is_right = checks.get(field)
        if is_right and not is_right(value) and not (may_be_null and value is None):
            return f"{within}{field} is {kind(value)}"
    return ""


def kind(value: Any) -> str:
    """Return the words for what JSON value this is."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a number that is negative or too large" if not _is_number(value) else "a number"
    kinds: tuple[tuple[type, str], ...] = (
        (float, "a number"),
        (str, "a text"),
        (list, "an array"),
        (dict, "an object"),
    )
    return next((words for of_kind, words in kinds if isinstance(value, of_kind)), "null")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_steps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and not wrong(one, STEP, "") for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INTEGER


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


DOCUMENT: Mapping[str, Check] = {
    "worker_id": _is_text,
    "created_at": _is_text,
    "updated_at": _is_text,
    "not_before": _is_text,
    "unsettled_since": _is_text,
    "changed_since": _is_text,
    "last_claim": _is_text,
    "last_error": _is_object,
    "claim": _is_object,
    "archive": _is_object,
    "verified": _is_object,
    "history": _is_steps,
    "history_dropped": _is_number,
}
"""`failure_count` is not among them: a value that is no count is taken for zero."""

VERIFIED: Mapping[str, Check] = {
    "at": _is_text,
    "problem": _is_text,
    "content_at": _is_text,
    "content_problem": _is_text,
}

STEP: Mapping[str, Check] = {
    "at": _is_text,
    "event": _is_text,
    "status": _is_text,
    "by": _is_text,
    "kind": _is_text,
    "reason": _is_text,
    "since": _is_text,
    "times": _is_number,
}

CLAIM: Mapping[str, Check] = {
    "token": _is_text,
    "phase": _is_text,
    "bytes_done": _is_number,
    "bytes_total": _is_number,
    "bytes_validated": _is_number,
}

ARCHIVE: Mapping[str, Check] = {
    "file": _is_text,
    "size": _is_number,
    "sha256": _is_text,
    "tar_sha256": _is_text,
    "tar_blake3": _is_text,
    "encryption": _is_text,
    "tar_size": _is_number,
    "key_file": _is_text,
    "key_sha256": _is_text,
    "key_size": _is_number,
    "manifest_file": _is_text,
    "manifest_size": _is_number,
    "manifest_sha256": _is_text,
    "recipient": _is_text,
    "members": _is_number,
    "warnings": _is_texts,
    "token": _is_text,
    "sentinel": _is_text,
    "listing": _is_text,
    "top": _is_text,
    "excluded": _is_number,
}
