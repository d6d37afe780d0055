"""What a watcher that starts now does with each run directory that is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from watcher.model import Document, Run
from watcher.overview.explanation import Cause, Explanation, explain
from watcher.overview.facts import Facts
from watcher.source import Observation, Walk, unusable_name

BATCH = 1000
"""Runs whose documents are asked for at once."""

DONE_WITH: Mapping[Cause, str] = {
    Cause.UNREGISTERED: "archives it",
    Cause.QUEUED: "archives it",
    Cause.PAUSED: "archives it later",
    Cause.NO_ROOM: "archives it when there is room",
    Cause.WORKING: "leaves it to its worker",
    Cause.STALE: "takes it over",
    Cause.UNSETTLED: "looks again",
}
"""What it does about a run that stands so. Any other needs a person, or a sentinel."""


@dataclass(frozen=True)
class Planned:
    """A run directory, what would be done with it, and why it stands as it does."""

    run: Run
    does: str
    explanation: Explanation


def plan(
    walk: Walk, documents_of: Callable[[Sequence[Run]], Mapping[str, Document]], lease_seconds: float
) -> Iterator[Planned]:
    """Yield what would be done with each run directory that is not archived. Raises what `documents_of` raises."""
    observations = walk.observations()
    while batch := list(islice(observations, BATCH)):
        known = documents_of([each.run for each in batch if not unusable_name(each.run.name)])
        for observation in batch:
            explanation = _explained(observation, known.get(observation.run.name), lease_seconds)
            if explanation.cause is not Cause.ENCRYPTED:
                yield Planned(observation.run, DONE_WITH.get(explanation.cause, "nothing"), explanation)


def _explained(observation: Observation, document: Document | None, lease_seconds: float) -> Explanation:
    facts = Facts(
        observation.run.name,
        datetime.now(UTC),
        document,
        observations=(observation,),
        is_here=True,
        has_watcher=True,
        lease_seconds=lease_seconds,
    )
    return explain(facts)[-1]
