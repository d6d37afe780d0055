"""Run documents and claims, written once, over a small document store.

`StatusDB` is the state machine; `couchdb` and `sqlite` are the stores beneath it. Each document comes in through
`door`: one that is unreadable is set aside, and all others go on as if it were not there. Seconds of trouble
are retried here; what lasts longer is raised as StatusDBUnavailable and waited for by the caller.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial

from watcher import model
from watcher.errors import ClaimLost, WatcherError
from watcher.model import Archive, Claim, Document, Event, Progress, Run, Status
from watcher.statusdb import claiming
from watcher.statusdb.access import Access
from watcher.statusdb.operating import demanded, operate
from watcher.statusdb.registering import BATCH, Registration, register
from watcher.statusdb.saving import Change, Saving, whose
from watcher.statusdb.store import Changes, Conflict, DocumentStore, Found, Unreadable

PAUSES_SECONDS = (0.1, 0.5, 2.0)
"""Between tries of one request: long enough for a server's restart behind a proxy, short for a lease."""

logger = logging.getLogger(__name__)


class StatusDB:
    """The runs' records, over `store`.

    `wait` is a stop event's `wait`: it pauses for so many seconds and says whether to give up.
    `now` is the wall clock, for people's timestamps and `not_before` only.

    It is longer than other classes because it is the one face of the database: a line or two for each question and
    each change. What is difficult about them stands in `registering`, `claiming`, `saving`, `access` and `door`.
    """

    def __init__(
        self,
        store: DocumentStore,
        wait: Callable[[float], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
    ) -> None:
        self._store = store
        self._now = now
        self._access = Access(store, wait, pauses_seconds)

    def register(self, runs: Iterable[Run]) -> Registration:
        """Make a pending document for each run that has none, a thousand in one request.

        Two of `runs` with the same name collide. A run whose path is not UTF-8 collides as well: CouchDB would refuse
        the whole request.
        """
        return register(self._access, runs, self._now())

    def claimable(self, run: Run, stale_rev: str | None = None) -> Document | None:
        """Return the run's document if it may be claimed now, else None.

        It may when it is pending and due, or in `processing` with a revision that still is `stale_rev`.
        """
        document = self.get(run.name)
        return document if document is not None and claiming.may_claim(document, run, stale_rev, self._now()) else None

    def claim(self, run: Run, worker_id: str, document: Document) -> Claim | None:
        """Claim the run over the revision of `document`. Return None if another worker was quicker, or has recorded it.

        A write that too few nodes of a cluster confirm (202) is no claim either: another worker may
        have the confirmed one. Its document then says `processing` until the lease ends.
        """
        return claiming.claim(self._access, run, worker_id, document, self._now())

    def save(self, document: Document, token: str, change: Change) -> Document:
        """Write `change(document)` for the holder of `token`; return the document as it then stands.

        Raises ClaimLost when the run is another's by now, StatusDBUnavailable when the database stayed
        away for longer than the pauses. Fields that others have changed meanwhile are kept.
        """
        return self._access.patiently(Saving(self._store, self._access.look, document, token, change))

    def note(self, document: Document, error: WatcherError) -> None:
        """Show on a pending run why it is not begun; nothing is written if the reason is there already."""
        known = (document.get("last_error") or {}).get("kind") == error.kind
        if model.status_of(document) is Status.PENDING and not known:
            try:
                self._store.put(model.noted(document, error, self._now()))
            except Conflict:
                return  # another worker has claimed it: it does not wait any more

    def mark_changed(self, document: Document) -> None:
        """Note once, in the document, that the source of an encrypted run has changed since it was archived."""
        if not document.get("changed_since"):
            try:
                self._access.patiently(lambda: self._store.put(model.changed_since(document, self._now())))
            except Conflict:
                return  # another worker has written it, or works on the run; the next rescan compares again

    def mark_verified(self, document: Document, with_content: bool, problem: str) -> None:
        """Note, in the document, that the archive it records was compared with what is stored, and what was wrong."""
        archive = document["archive"]
        while document.get("archive") == archive and model.status_of(document) is Status.ENCRYPTED:
            written = model.verified(document, with_content, problem, self._now())
            try:
                self._access.patiently(partial(self._store.put, written))
            except Conflict:
                document = self.demand(document["_id"])
            else:
                return

    def renew(self, document: Document, token: str, progress: Progress) -> Document:
        """Renew the claim `token`: its holder lives, and has come this far."""
        return self.save(document, token, lambda current: model.renewed(current, progress, self._now()))

    def announce(self, document: Document, token: str, archive: Archive | None) -> Document:
        """Write down which archive is about to be published (None: none after all).

        Raises ClaimLost also when nodes that were cut off have recorded the run for another worker meanwhile.
        """
        written = self.save(document, token, lambda current: model.announced(current, archive, self._now()))
        settled = self._access.settled(written)
        if isinstance(settled, Unreadable):
            raise ClaimLost(f"{settled}: the claim is lost")
        if not model.is_held(settled, token):
            raise ClaimLost(whose(settled["_id"], settled))
        return settled

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
        written = self.save(document, token, lambda now: model.recorded(now, archive, self._now()))
        settled = self._access.settled(written)
        return written if isinstance(settled, Unreadable) else settled

    def retry(self, run_id: str, by: str = "") -> Document:
        """Set a failed (or waiting) run to `pending` with no failures counted, for the operator `by`.

        Raises UnknownRun when there is no such run, its document is unreadable, or its status does not allow it. So do
        the next three.
        """
        return operate(self._access, run_id, Event.RETRY, lambda now: model.retried(now, by, self._now()))

    def hold(self, run_id: str, by: str = "") -> Document:
        """Let nobody take a run that waits or has failed."""
        return operate(self._access, run_id, Event.HOLD, lambda now: model.held(now, by, self._now()))

    def hold_unregistered(self, run: Run, by: str = "") -> bool:
        """Let nobody take a run that has no document yet; say whether that is so."""
        now = self._now()
        document = model.held(model.registered(run, now), by, now)
        return bool(self._access.patiently(lambda: self._store.insert_many([document])))

    def unhold(self, run_id: str, by: str = "") -> Document:
        """Set a held run to `pending`."""
        return operate(self._access, run_id, Event.UNHOLD, lambda now: model.unheld(now, by, self._now()))

    def cancel(self, run_id: str, by: str = "") -> Document:
        """Take a run from its worker, which then stops, and hold it. No attempt counts."""
        token = secrets.token_hex(16)
        return operate(self._access, run_id, Event.CANCEL, lambda now: model.cancelled(now, token, by, self._now()))

    def get(self, run_id: str) -> Document | None:
        """Return the run's document; None if there is none that can be read."""
        return self._access.patiently(lambda: self._access.readable(run_id))

    def look(self, run_id: str) -> Found | None:
        """Return what the database has under this name: a document, or why that is unreadable, or None."""
        return self._access.patiently(lambda: self._access.look(run_id))

    def demand(self, run_id: str) -> Document:
        """Return the run's document. Raises UnknownRun when there is none, or it is unreadable."""
        return self._access.patiently(lambda: demanded(self._access, run_id))

    def unreadable(self) -> tuple[Unreadable, ...]:
        """Return the documents that were found unreadable, as far as this process has asked for them."""
        return self._access.door.set_aside()

    @property
    def is_unreadable_known(self) -> bool:
        """Whether `unreadable` names all that were found: beyond some thousands, they are not remembered."""
        return not self._access.door.is_full

    def known(self, runs: Sequence[Run]) -> dict[str, Document]:
        """Return the documents that have the names of these runs."""
        found: dict[str, Found] = {}
        for start in range(0, len(runs), BATCH):
            found |= self._access.read([run.name for run in runs[start : start + BATCH]])
        return {name: one for name, one in found.items() if not isinstance(one, Unreadable) and model.status_of(one)}

    def pending(self) -> list[Document]:
        """Return the documents of the runs that wait, due or not."""
        return self.with_status(Status.PENDING)

    def processing(self) -> list[Document]:
        """Return the documents of the runs that a worker holds, or held when it died."""
        return self.with_status(Status.PROCESSING)

    def with_status(self, status: Status) -> list[Document]:
        """Return all documents of this status."""
        found = self._access.door.readable(self._access.patiently(lambda: self._store.with_status(status)))
        return [document for document in found if model.status_of(document) is status]

    def count_by_status(self) -> dict[str, int]:
        """Return how many runs have each status."""
        return self._access.patiently(self._store.count_by_status)

    def seconds_until_due(self, document: Document) -> float:
        """Return how long the run still has to wait for its `not_before`."""
        return model.seconds_until_due(document, self._now())

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since` (None: from now on), waiting up to `wait_seconds`."""
        changes = self._store.changes(since, wait_seconds)
        return Changes(tuple(self._access.door.readable((*changes.documents, *changes.unreadable))), changes.since)

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
