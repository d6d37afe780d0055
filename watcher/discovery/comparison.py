"""Whether an archived run is still what was archived."""

from __future__ import annotations

from watcher import model
from watcher.model import Document, Status
from watcher.source import Observation, Rules, has_same_top


def change_since_archived(observation: Observation, document: Document, rules: Rules) -> str:
    """Return in words what has changed in an archived run; empty if nothing has, or the run is not archived.

    Compares the sentinel and the top directory with what the document recorded. Documents of earlier versions
    recorded neither, so nothing is said of their runs.
    """
    version, archive = observation.version, document.get("archive") or {}
    if version is None or model.status_of(document) is not Status.ENCRYPTED:
        return ""
    if archive.get("sentinel") not in (None, "", version.sentinel):
        return "its sentinel was written again"
    try:
        is_same = has_same_top(observation.run.path, version.top_ns, archive.get("top") or "", rules)
    except OSError:
        return ""  # the run is gone, or cannot be read; the next rescan logs that
    return "" if is_same else "its top directory holds something else"
