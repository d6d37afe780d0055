"""Run documents and claims, written once, over a small document store.

`StatusDB` is the state machine; `couchdb` and `sqlite` are the stores beneath it. Each document comes in through
`door`: one that is unreadable is set aside, and all others go on as if it were not there. Seconds of trouble
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
from watcher.statusdb.door import Door
from watcher.statusdb.store import Changes, Conflict, DocumentStore, Found, Undecodable, Unreadable

PAUSES_SECONDS = (0.1, 0.5, 2.0)
"""Between tries of one request: long enough for a server's restart behind a proxy, short for a lease."""

BATCH = 1000
"""Runs asked for in one request."""

logger = logging.getLogger(__name__)
T = TypeVar("T")
Change = Callable[[Document], Document]


@dataclass(frozen=True)
class Registration:
    """What `register` found: runs that are new, and those whose name another path has already.

    A document that is no run's, or that the database will not take, collides like another run's. A run whose
    document is unreadable is in none of these.
    """

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
        self._door = Door()

    def register(self, runs: Iterable[Run]) -> Registration:
        """Make a pending document for each run that has none, a thousand in one request.

        Two of `runs` with one name count as a collision like one with a registered run, and so does one whose
        path is no UTF-8: CouchDB would refuse all thousand for it.
        """
        wanted: dict[str, Run] = {}
        seen: dict[Path, Run] = {}
        for run in runs:
            seen[run.path] = run
            if _is_text(str(run.path)):
                wanted.setdefault(run.name, run)
        found, new = self._known_or_new(list(wanted.values()))
        documents = {name: one for name, one in found.items() if not isinstance(one, Unreadable)}
        return Registration(
            new=tuple(wanted[name] for name in new),
            known=tuple(document for document in documents.values() if model.status_of(document)),
            collisions=tuple(
                (run, documents.get(run.name, {}))
                for run in seen.values()
                if not isinstance(found.get(run.name), Unreadable) and not _is_of(documents.get(run.name, {}), run)
            ),
        )

    def _known_or_new(self, runs: Sequence[Run]) -> tuple[dict[str, Found], list[str]]:
        found: dict[str, Found] = {}
        new: list[str] = []
        for start in range(0, len(runs), BATCH):
            batch = runs[start : start + BATCH]
            found |= self._read([run.name for run in batch])
            unknown = [model.registered(run, self._now()) for run in batch if run.name not in found]
            if unknown:
                inserted = self._patiently(partial(self._store.insert_many, unknown))
                found |= {document["_id"]: document for document in unknown if document["_id"] in inserted}
                new += [document["_id"] for document in unknown if document["_id"] in inserted]
                # Inserted by another worker between our question and our answer, or by our own lost try.
                found |= self._read([document["_id"] for document in unknown if document["_id"] not in inserted])
        return found, new

    def _read(self, names: Sequence[str]) -> dict[str, Found]:
        if not names:
            return {}
        found = map(self._door.admit, self._patiently(lambda: self._store.get_many(names)))
        return {one.run_id if isinstance(one, Unreadable) else one["_id"]: one for one in found}

    def claimable(self, run: Run, stale_rev: str | None = None) -> Document | None:
        """Return the run's document if it may be claimed now, else None.

        It may when it is pending and due, or in `processing` with a revision that still is `stale_rev`.
        """
        document = self.get(run.name)
        return document if document is not None and self._may_claim(document, run, stale_rev) else None

    def claim(self, run: Run, worker_id: str, document: Document) -> Claim | None:
        """Claim the run over the revision of `document`; None when somebody was quicker, or has recorded it.

        A write that too few nodes of a cluster confirm (202) is no claim either: another worker may
        have the confirmed one. Its document then says `processing` until the lease ends.
        """
        token = secrets.token_hex(16)
        taken = self._patiently(partial(self._take, model.claimed(document, worker_id, token, self._now())))
        settled = self._settled(taken) if taken else None
        if settled is None or isinstance(settled, Unreadable):
            return None
        return Claim(run, token, settled, document) if model.is_held(settled, token) else None

    def _may_claim(self, document: Document, run: Run, stale_rev: str | None) -> bool:
        if not _is_of(document, run):
            return False
        if model.status_of(document) is Status.PROCESSING:
            return stale_rev is not None and bool(document["_rev"] == stale_rev)
        due = model.seconds_until_due(document, self._now()) == 0
        return model.status_of(document) is Status.PENDING and due

    def _take(self, wanted: Document) -> Document | None:
        try:
            written = self._store.put(wanted)
        except Conflict:
            return self._confirmed(wanted)
        if not written.confirmed:
            logger.warning("the claim was confirmed by too few nodes: left alone", extra={"run": wanted["_id"]})
            return None
        return {**wanted, "_rev": written.rev}

    def _confirmed(self, wanted: Document) -> Document | None:
        """Return the document if it was our own write, its answer lost, that stood in the way of this one.

        How many nodes confirmed that one is lost as well: it is a claim if they confirm another on top of
        it, and show no other worker's beside it.
        """
        found = self._own(wanted)
        try:
            if found is None or not self._store.put(found).confirmed:
                return None
        except Conflict as error:
            raise StatusDBUnavailable(f"the document of run '{wanted['_id']}' is being changed") from error
        found = self._own(wanted)
        return None if found is None or "_conflicts" in found else found

    def _own(self, wanted: Document) -> Document | None:
        found = self._readable(wanted["_id"])
        return found if found is not None and model.is_held(found, wanted["claim"]["token"]) else None

    def _settled(self, document: Document) -> Found:
        """Return the document without its conflicting revisions; if that cannot be had, as it is: it is ours."""
        try:
            return self._door.admit(self._patiently(partial(self._store.settle, document)))
        except (Conflict, StatusDBUnavailable) as error:
            logger.warning("conflicting revisions may stay: %s", error, extra={"run": document["_id"]})
            return document

    def save(self, document: Document, token: str, change: Change) -> Document:
        """Write `change(document)` for the holder of `token`; return the document as it then stands.

        Raises ClaimLost when the run is another's by now, StatusDBUnavailable when the database stayed
        away for longer than the pauses. Fields that others have changed meanwhile are kept.
        """
        return self._patiently(_Saving(self._store, self._look, document, token, change))

    def note(self, document: Document, error: WatcherError) -> None:
        """Show on a pending run why it is not begun; nothing is written if the reason is there already."""
        known = (document.get("last_error") or {}).get("kind") == error.kind
        if model.status_of(document) is Status.PENDING and not known:
            try:
                self._store.put(model.noted(document, error, self._now()))
            except Conflict:
                return  # somebody has taken it: no reason to wait any more

    def mark_changed(self, document: Document) -> None:
        """Write down that the source of an encrypted run is not what was archived any more; once."""
        if not document.get("changed_since"):
            try:
                self._patiently(lambda: self._store.put(model.changed_since(document, self._now())))
            except Conflict:
                return  # somebody else has written it, or works on the run: the next look tells

    def renew(self, document: Document, token: str, progress: Progress) -> Document:
        """Show that the holder of `token` lives, and how far it is."""
        return self.save(document, token, lambda current: model.renewed(current, progress, self._now()))

    def announce(self, document: Document, token: str, archive: Archive | None) -> Document:
        """Write down which archive is about to be published (None: none after all).

        Raises ClaimLost also when nodes that were cut off have recorded the run for another worker meanwhile.
        """
        written = self.save(document, token, lambda current: model.announced(current, archive, self._now()))
        settled = self._settled(written)
        if isinstance(settled, Unreadable):
            raise ClaimLost(f"{settled}: the claim is lost")
        if not model.is_held(settled, token):
            raise ClaimLost(_whose(settled["_id"], settled))
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
        settled = self._settled(written)
        return written if isinstance(settled, Unreadable) else settled

    def retry(self, run_id: str) -> Document:
        """Set a failed (or waiting) run to `pending` with no failures counted.

        Raises UnknownRun when there is no such run, its document is unreadable, or its status does not allow it.
        """
        return self._patiently(lambda: self._retry(run_id))

    def _retry(self, run_id: str) -> Document:
        document = self._demanded(run_id)
        try:
            changed = model.retried(document, self._now())
            return {**changed, "_rev": self._store.put(changed).rev}
        except model.IllegalTransition as error:
            raise UnknownRun(
                f"run '{run_id}' is '{document.get('status')}': only a failed run, or an encrypted one "
                "that has changed since, can be retried"
            ) from error
        except Conflict as error:
            raise UnknownRun(f"run '{run_id}' has just changed; look at its status and try again") from error

    def get(self, run_id: str) -> Document | None:
        """Return the run's document; None if there is none that can be read."""
        return self._patiently(lambda: self._readable(run_id))

    def demand(self, run_id: str) -> Document:
        """Return the run's document. Raises UnknownRun when there is none, or it is unreadable."""
        return self._patiently(lambda: self._demanded(run_id))

    def _demanded(self, run_id: str) -> Document:
        found = self._look(run_id)
        if found is None:
            raise UnknownRun(
                f"run '{run_id}' is not in the status database; `dataflow_archive status --all` lists the runs"
            )
        if isinstance(found, Unreadable):
            raise UnknownRun(str(found))
        return found

    def _readable(self, run_id: str) -> Document | None:
        found = self._look(run_id)
        return None if isinstance(found, Unreadable) else found

    def _look(self, run_id: str) -> Found | None:
        """Ask for one document. A name that is no text has none: no store could be asked for it."""
        found = self._store.get(run_id) if _is_text(run_id) else None
        if found is None:
            self._door.forget(run_id)
            return None
        return self._door.admit(found)

    def unreadable(self) -> tuple[Unreadable, ...]:
        """Return the documents that were found unreadable, as far as this process has asked for them."""
        return self._door.set_aside()

    @property
    def is_unreadable_known(self) -> bool:
        """Whether `unreadable` names all that were found: beyond some thousands, they are not remembered."""
        return not self._door.is_full

    def known(self, runs: Sequence[Run]) -> dict[str, Document]:
        """Return the documents that have the names of these runs."""
        found: dict[str, Found] = {}
        for start in range(0, len(runs), BATCH):
            found |= self._read([run.name for run in runs[start : start + BATCH]])
        return {name: one for name, one in found.items() if not isinstance(one, Unreadable) and model.status_of(one)}

    def pending(self) -> list[Document]:
        """Return the documents of the runs that wait, due or not."""
        return self.with_status(Status.PENDING)

    def processing(self) -> list[Document]:
        """Return the documents of the runs that somebody holds, or held when he died."""
        return self.with_status(Status.PROCESSING)

    def with_status(self, status: Status) -> list[Document]:
        """Return all documents of this status."""
        found = self._door.readable(self._patiently(lambda: self._store.with_status(status)))
        return [document for document in found if model.status_of(document) is status]

    def count_by_status(self) -> dict[str, int]:
        """Return how many runs have each status."""
        return self._patiently(self._store.count_by_status)

    def seconds_until_due(self, document: Document) -> float:
        """Return how long the run still has to wait for its `not_before`."""
        return model.seconds_until_due(document, self._now())

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since` (None: from now on), waiting up to `wait_seconds`."""
        changes = self._store.changes(since, wait_seconds)
        return Changes(tuple(self._door.readable((*changes.documents, *changes.unreadable))), changes.since)

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
            except (StatusDBRefused, Undecodable):
                raise
            except StatusDBUnavailable:
                if self._wait(pause):
                    raise
        return ask()


class _Saving:
    """A holder's change on its way to the store. Called again, it goes on where the last call was cut off."""

    def __init__(
        self,
        store: DocumentStore,
        look: Callable[[str], Found | None],
        document: Document,
        token: str,
        change: Change,
    ) -> None:
        self._store = store
        self._look = look
        self._document = document
        self._token = token
        self._change = change

    def __call__(self) -> Document:
        """Return the document as written. Raises ClaimLost; StatusDBUnavailable if another call may help."""
        for _ in range(2):
            try:
                return self._put()
            except Conflict:
                if self._is_over():
                    return self._document
        raise StatusDBUnavailable(f"the document of run '{self._document['_id']}' is being changed")

    def _put(self) -> Document:
        # An end that too few nodes confirmed is confirmed by writing it again, not by ending it twice.
        has_ended = model.has_ended(self._document, self._token)
        changed = self._document if has_ended else self._change(self._document)
        written = self._store.put(changed)
        self._document = {**changed, "_rev": written.rev}
        if not written.confirmed:
            raise StatusDBUnavailable(f"too few nodes confirmed the write of run '{changed['_id']}'")
        return self._document

    def _is_over(self) -> bool:
        """Read what stands in our way; say whether another has claimed the run since we ended our claim.

        If not, the next try is made over it, though it may be our own write: its answer was lost, or too few
        nodes confirmed it. Raises ClaimLost if it is not ours to change any more.
        """
        run_id = self._document["_id"]
        found = self._look(run_id)
        if isinstance(found, Unreadable):
            raise ClaimLost(f"{found}: the claim is lost") from None
        has_ended = found is not None and model.has_ended(found, self._token)
        if found is None or not (has_ended or model.is_held(found, self._token)):
            raise ClaimLost(_whose(run_id, found)) from None
        self._document = found
        return has_ended and model.status_of(found) is Status.PROCESSING


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_of(document: Document, run: Run) -> bool:
    return model.status_of(document) is not None and document.get("path") == str(run.path)


def _whose(run_id: str, found: Document | None) -> str:
    if found is None:
        return f"the document of run '{run_id}' was deleted: the claim is lost"
    return f"run '{run_id}' is '{found.get('status')}' with worker '{found.get('worker_id')}' now: the claim is lost"
