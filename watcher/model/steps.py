"""What has happened to a run, as its document remembers it: a list of steps, bounded.

The newest MAX_STEPS are kept, and the number of those that were dropped. A run that waits for room may be claimed and
given back for days: two steps that repeat the two before them take their place, and count how often.
"""

from __future__ import annotations

from typing import Any

from watcher.model.values import Document, writable

MAX_STEPS = 30
"""A run that nothing goes wrong with has three. So many take about 10 KB."""

MAX_REASON = 300
"""Characters of a reason that a step keeps; `last_error` has the whole of the last one."""

Step = dict[str, Any]


def with_step(document: Document, step: Step) -> Document:
    """Return the document with one more step: `event`, `status`, `at`, `by`, and `kind` and `reason` of an error."""
    steps = [*history(document), {key: writable(value)[:MAX_REASON] for key, value in step.items() if value}]
    before, last = steps[-4:-2], steps[-2:]
    if len(before) == len(last) and all(map(_is_alike, before, last)):
        steps[-4:] = map(_again, before, last)
    dropped = max(len(steps) - MAX_STEPS, 0)
    total = document.get("history_dropped", 0) + dropped
    return {**document, "history": steps[dropped:], **({"history_dropped": total} if total else {})}


def history(document: Document) -> list[Step]:
    """Return the steps of a run, the oldest first. Those of earlier versions of this program are not known."""
    return document.get("history") or []


def _is_alike(one: Step, other: Step) -> bool:
    return all(one.get(key) == other.get(key) for key in ("event", "status", "by", "kind"))


def _again(before: Step, now: Step) -> Step:
    """Return the newer of two steps that are alike; `since` and `times` tell of the others."""
    return {**now, "since": before.get("since", before["at"]), "times": before.get("times", 1) + now.get("times", 1)}
