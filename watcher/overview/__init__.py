"""How the site stands, for whoever asks: each run with the reason why it does not move, and what to do about it.

`look_for` collects what can be known of one run, and `explain` turns that into words. Both read only. Commands use this
folder; each cause and each advice is written here, once.
"""

from __future__ import annotations

from watcher.overview.advice import ADVICE, advice_for
from watcher.overview.explanation import Cause, Explanation, current, explain, percent
from watcher.overview.facts import Facts, Place, is_there, look_for

__all__ = [
    "ADVICE",
    "Cause",
    "Explanation",
    "Facts",
    "Place",
    "advice_for",
    "current",
    "explain",
    "is_there",
    "look_for",
    "percent",
]
