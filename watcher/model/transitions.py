"""What may happen to a run: the table, and one function that refuses what is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from watcher.errors import WatcherError
from watcher.model.values import MAX_FAILURES, Status


class Event(StrEnum):
    """What can happen to a run document."""

    REGISTER = "register"
    CLAIM = "claim"
    RENEW = "renew"
    RELEASE = "release"
    FAIL = "fail"
    RECORD = "record"
    RETRY = "retry"
    HOLD = "hold"
    UNHOLD = "unhold"
    CANCEL = "cancel"


TRANSITIONS: Mapping[Event, Mapping[Status | None, tuple[Status, ...]]] = {
    Event.REGISTER: {None: (Status.PENDING,)},
    Event.CLAIM: {Status.PENDING: (Status.PROCESSING,), Status.PROCESSING: (Status.PROCESSING,)},
    Event.RENEW: {Status.PROCESSING: (Status.PROCESSING,)},
    Event.RELEASE: {Status.PROCESSING: (Status.PENDING,)},
    Event.FAIL: {Status.PROCESSING: (Status.PENDING, Status.FAILED)},
    Event.RECORD: {Status.PROCESSING: (Status.ENCRYPTED,)},
    Event.RETRY: {
        Status.FAILED: (Status.PENDING,),
        Status.PENDING: (Status.PENDING,),
        Status.ENCRYPTED: (Status.PENDING,),
    },
    Event.HOLD: {Status.PENDING: (Status.HELD,), Status.FAILED: (Status.HELD,)},
    Event.UNHOLD: {Status.HELD: (Status.PENDING,)},
    Event.CANCEL: {Status.PROCESSING: (Status.HELD,)},
}
"""For each event: the statuses it may meet, and those it may lead to."""


class IllegalTransition(WatcherError):
    """The event is not in the table for the status that the run document has."""


def next_status(event: Event, status: Status | None, failures: int = 0) -> Status:
    """Return the status after `event`, given the `failures` counted with it.

    Raises IllegalTransition for what `TRANSITIONS` does not have.
    """
    choices = TRANSITIONS[event].get(status)
    if choices is None:
        raise IllegalTransition(f"a run that is '{status or 'not registered'}' cannot take the event '{event}'")
    return choices[-1] if failures >= MAX_FAILURES else choices[0]
