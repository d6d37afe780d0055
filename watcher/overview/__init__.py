"""How the site stands, for whoever asks: each run with the reason why it does not move, and what to do about it.

`look_for` collects what can be known of one run, and `explain` turns that into words. `look_at_site` does it for all
runs, and adds what needs a person. All of it reads only. Commands use this folder; each cause, each advice and each
alert is written here, once.
"""

from __future__ import annotations

from watcher.overview.advice import ADVICE, advice_for
from watcher.overview.alerts import ORDER, PERSONS, Alert, alerts
from watcher.overview.disks import Disks, Skipped
from watcher.overview.explanation import Cause, Explanation, explain
from watcher.overview.facts import Facts, Place, look_for
from watcher.overview.patience import gathered, within
from watcher.overview.planning import Planned, plan
from watcher.overview.site import Overview, RunView, look_at_site

__all__ = [
    "ADVICE",
    "ORDER",
    "PERSONS",
    "Alert",
    "Cause",
    "Disks",
    "Explanation",
    "Facts",
    "Overview",
    "Place",
    "Planned",
    "RunView",
    "Skipped",
    "advice_for",
    "alerts",
    "explain",
    "gathered",
    "look_at_site",
    "look_for",
    "plan",
    "within",
]
