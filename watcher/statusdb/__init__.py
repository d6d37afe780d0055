"""Run documents and claims, written once, over a small document store.

`StatusDB` is the state machine; `couchdb` and `sqlite` are the stores beneath it. Seconds of trouble
are retried here; what lasts longer is raised as StatusDBUnavailable and waited for by the caller.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from watcher import model
from watcher.errors import ClaimLost, StatusDBRefused, StatusDBUnavailable, UnknownRun, WatcherError
from watcher.model import Archive, Claim, Document, Progress, Run, Status
from watcher.statusdb.store import Changes, Conflict, DocumentStore, FeedLost

__all__ = ["Changes", "FeedLost", "Registration", "StatusDB"]

PAUSES_SECONDS = (0.1, 0.5, 2.0)
"""Between tries of one request: long enough for a server's restart behind a proxy, short for a lease."""

BATCH = 1000
"""Runs asked for in one request."""

logger = logging.getLogger(__name__)
T = TypeVar("T")
Change = Callable[[Document], Document]


@dataclass(frozen=True)
class Registration:
    """What `register` found: runs that are new, and those whose name another path has already."""

    new: tuple[Run, ...]
    known: tuple[Document, ...]
    collisions: tuple[tuple[Run, Document], ...]


class StatusDB:
    """The runs' records, over `store`.

    `wait` is a stop event's `wait`: it pauses for so many seconds and says whether to give up.
    `now` is the wall clock, for people's timestamps and `not_before` only.
    """

    def __init__(
        self,
        store: DocumentStore,
        wait: Callable[[float], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
    ) -> None:
        self._store = store
        self._wait = wait
        self._now = now
        self._pauses = tuple(pauses_seconds)

    def register(self, runs: Iterable[Run]) -> Registration:
        """Make a pending document for each run that has none, a thousand in one request.

        Two of `runs` with one name count as a collision like one with a registered run.
        """
        wanted: dict[str, Run] = {}
        twins: list[Run] = []
        for run in runs:
            if wanted.setdefault(run.name, run) != run:
                twins.append(run)
        found, new = self._known_or_new(list(wanted.values()))
        clashes = [(run, found[run.name]) for run in twins if run.name in found]
        clashes += [(run, found[run.name]) for run in wanted.values() if found[run.name]["path"] != str(run.path)]
        return Registration(
            new=tuple(wanted[name] for name in new), known=tuple(found.values()), collisions=tuple(clashes)
        )

    def _known_or_new(self, runs: Sequence[Run]) -> tuple[dict[str, Document], set[str]]:
        found: dict[str, Document] = {}
        new: set[str] = set()
        for start in range(0, len(runs), BATCH):
            batch = runs[start : start + BATCH]
            found |= self._read([run.name for run in batch])
            unknown = [model.registered(run, self._now()) for run in batch if run.name not in found]
            if unknown:
                inserted = self._patiently(partial(self._store.insert_many, unknown))
                new |= inserted
                found |= {document["_id"]: document for document in unknown if document["_id"] in inserted}
                # Inserted by another worker between our question and our answer, or by our own lost try.
                found |= self._read([document["_id"] for document in unknown if document["_id"] not in inserted])
        return found, new

    def _read(self, names: Sequence[str]) -> dict[str, Document]:
        if not names:
            return {}
        documents = self._patiently(lambda: self._store.get_many(names))
        return {document["_id"]: document for document in documents if model.status_of(document)}

    def claimable(self, run: Run, stale_rev: str | None = None) -> Document | None:
        """Return the run's document if it may be claimed now: it is pending and due, or in `processing` with a
        revision that still is `stale_rev`. None otherwise."""
        document = self.get(run.name)
        return document if document is not None and self._may_claim(document, run, stale_rev) else None

    def claim(self, run: Run, worker_id: str, document: Document) -> Claim | None:
        """Claim the run over the revision of `document`; None when somebody was quicker.

        A write that too few nodes of a cluster confirm (202) is no claim either: another worker may
        have the confirmed one. Its document then says `processing` until the lease ends.
        """
        token = secrets.token_hex(16)
        written = self._take(model.claimed(document, worker_id, token, self._now()))
        return Claim(run, token, written, document) if written else None

    def _may_claim(self, document: Document, run: Run, stale_rev: str | None) -> bool:
        if document.get("path") != str(run.path):
            return False
        if model.status_of(document) is Status.PROCESSING:
            return stale_rev is not None and bool(document["_rev"] == stale_rev)
        due = model.seconds_until_due(document, self._now()) == 0
        return model.status_of(document) is Status.PENDING and due

    def _take(self, wanted: Document) -> Document | None:
        try:
            written = self._store.put(wanted)
            if not written.confirmed:
                logger.warning("claim of run '%s' was confirmed by too few nodes: left alone", wanted["_id"])
                return None
            taken: Document | None = {**wanted, "_rev": written.rev}
        except Conflict:
            return None
        except StatusDBRefused:
            raise
        except StatusDBUnavailable:
            taken = self._read_back(wanted)
        if taken is None:
            return None
        return self._patiently(partial(self._store.settle, taken))

    def _read_back(self, wanted: Document) -> Document | None:
        # The answer was lost, so the write may have happened. The token tells whose claim stands there.
        token = wanted["claim"]["token"]
        found = self._patiently(lambda: self._store.get(wanted["_id"]))
        return found if found is not None and model.is_held(found, token) else None

    def save(self, document: Document, token: str, change: Change) -> Document:
        """Write `change(document)` for the holder of `token`; return the document as it then stands.

        Raises ClaimLost when the run is another's by now, StatusDBUnavailable when the database stayed
        away for longer than the pauses. Fields that others have changed meanwhile are kept.
        """
        for pause in (*self._pauses, None):
            try:
                changed = change(document)
                written = self._store.put(changed)
                document = {**changed, "_rev": written.rev}
                if written.confirmed:
                    return document
                trouble = StatusDBUnavailable(f"too few nodes confirmed the write of run '{changed['_id']}'")
                if model.has_ended(document, token):
                    change = _same
            except Conflict:
                found = self._patiently(lambda: self._store.get(changed["_id"]))
                if found is not None and model.has_ended(found, token):
                    return found
                if found is None or not model.is_held(found, token):
                    raise ClaimLost(_whose(changed["_id"], found)) from None
                document, trouble = found, StatusDBUnavailable("the document changed")
                continue
            except StatusDBRefused:
                raise
            except StatusDBUnavailable as error:
                trouble = error
            if pause is None or self._wait(pause):
                break
        raise trouble

    def note(self, document: Document, error: WatcherError) -> None:
        """Show on a pending run why it is not begun; nothing is written if the reason is there already."""
        known = (document.get("last_error") or {}).get("kind") == error.kind
        if model.status_of(document) is Status.PENDING and not known:
            try:
                self._store.put(model.noted(document, error, self._now()))
            except Conflict:
                return  # somebody has taken it: no reason to wait any more

    def renew(self, document: Document, token: str, progress: Progress) -> Document:
        """Show that the holder of `token` lives, and how far it is."""
        return self.save(document, token, lambda current: model.renewed(current, progress, self._now()))

    def announce(self, document: Document, token: str, archive: Archive | None) -> Document:
        """Write down which archive is about to be published (None: none after all)."""
        return self.save(document, token, lambda current: model.announced(current, archive, self._now()))

    def release(self, document: Document, token: str, error: WatcherError | None, wait_seconds: float) -> Document:
        """Give the run back without counting an attempt; nobody claims it for `wait_seconds`."""
        return self.save(document, token, lambda now: model.released(now, error, wait_seconds, self._now()))

    def unsettled(self, document: Document, token: str, error: WatcherError, wait_seconds: float) -> Document:
        """Give back a run that changed while it was read, and remember since when it does."""
        return self.save(
            document,
            token,
            lambda now: model.released(model.unsettled(now, self._now()), error, wait_seconds, self._now()),
        )

    def unsettled_seconds(self, document: Document) -> float:
        """Return for how long a run has been found changing."""
        return model.unsettled_seconds(document, self._now())

    def fail(self, document: Document, token: str, error: Exception, first_delay_seconds: float) -> Document:
        """Count a failed attempt: `pending` after a pause, or `failed` at the third."""
        return self.save(document, token, lambda now: model.failed(now, error, first_delay_seconds, self._now()))

    def record(self, document: Document, token: str, archive: Archive) -> Document:
        """Set the run `encrypted`."""
        return self.save(document, token, lambda now: model.recorded(now, archive, self._now()))

    def retry(self, run_id: str) -> Document:
        """Set a failed (or waiting) run to `pending` with no failures counted.

        Raises UnknownRun when there is no such run, or its status does not allow it.
        """
        document = self._patiently(lambda: self._store.get(run_id))
        if document is None:
            raise UnknownRun(f"run '{run_id}' is not in the status database; `dataflow_archive status` lists the runs")
        try:
            changed = model.retried(document, self._now())
            return {**changed, "_rev": self._store.put(changed).rev}
        except model.IllegalTransition as error:
            raise UnknownRun(f"run '{run_id}' is '{document['status']}': only a failed run can be retried") from error
        except Conflict as error:
            raise UnknownRun(f"run '{run_id}' has just changed; look at its status and try again") from error

    def get(self, run_id: str) -> Document | None:
        """Return the run's document, or None."""
        return self._patiently(lambda: self._store.get(run_id))

    def known(self, runs: Sequence[Run]) -> dict[str, Document]:
        """Return the documents that have the names of these runs."""
        found: dict[str, Document] = {}
        for start in range(0, len(runs), BATCH):
            found |= self._read([run.name for run in runs[start : start + BATCH]])
        return found

    def pending(self) -> list[Document]:
        """Return the documents of the runs that wait, due or not."""
        return self._patiently(lambda: self._store.with_status(Status.PENDING))

    def processing(self) -> list[Document]:
        """Return the documents of the runs that somebody holds, or held when he died."""
        return self._patiently(lambda: self._store.with_status(Status.PROCESSING))

    def with_status(self, status: Status) -> list[Document]:
        """Return all documents of this status."""
        return self._patiently(lambda: self._store.with_status(status))

    def count_by_status(self) -> dict[str, int]:
        """Return how many runs have each status."""
        return self._patiently(self._store.count_by_status)

    def seconds_until_due(self, document: Document) -> float:
        """Return how long the run still has to wait for its `not_before`."""
        return model.seconds_until_due(document, self._now())

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since` (None: from now on), waiting up to `wait_seconds`."""
        return self._store.changes(since, wait_seconds)

    def prepare(self) -> None:
        """Create database and views where they are missing. Raises ConfigError or StatusDBRefused."""
        self._store.prepare()

    def verify(self) -> None:
        """Raise ConfigError if database or views are missing; create nothing."""
        self._store.verify()

    def describe(self) -> str:
        """Return one line for people about the store."""
        return self._store.describe()

    def close(self) -> None:
        """Give back connections."""
        self._store.close()

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask, and again after each pause while the store is unavailable. Refused credentials are not retried."""
        for pause in self._pauses:
            try:
                return ask()
            except StatusDBRefused:
                raise
            except StatusDBUnavailable:
                if self._wait(pause):
                    raise
        return ask()


def path_of(document: Document) -> Path:
    """Return the run directory that a document names."""
    return Path(document.get("path", ""))


def _same(document: Document) -> Document:
    return document


def _whose(run_id: str, found: Document | None) -> str:
    if found is None:
        return f"the document of run '{run_id}' was deleted: the claim is lost"
    return f"run '{run_id}' is '{found.get('status')}' with worker '{found.get('worker_id')}' now: the claim is lost"
