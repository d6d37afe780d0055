"""One worker in this process, with the real gpg, tar and status database, and a way to interfere at any step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sites import Site

from watcher.archiving import ArchiveStore, LeaseKeeper, Outcome, Settings, Worker
from watcher.archiving.members import Members
from watcher.model import Document, Run, TarReport
from watcher.source import Stillness
from watcher.statusdb import DocumentStore, StatusDB
from watcher.tar import TarStream

KILLED = 137
"""What a child process exits with that died in the middle of its work."""

Action = Callable[[], object]


def read_through(tar: TarStream, still: Stillness) -> tuple[bytes, TarReport, int]:
    """Read tar's stream to its end; return it, tar's report, and how many members it has. Raises as both do."""
    data, members = b"".join(iter(lambda: tar.read(1 << 16), b"")), Members(still, None)
    report = tar.report()
    members.feed(data, lambda _: None)
    members.finish()
    return data, report, members.count


class Intercepted:
    """`real`, but `action` is done right before (or after) the call number `nth` of its method `method`."""

    def __init__(self, real: object, method: str, action: Action, *, after: bool = False, nth: int = 1) -> None:
        self._real = real
        self._method = method
        self._action = action
        self._after = after
        self._left = nth

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return self._call if name == self._method else found

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            self._action()
        result = getattr(self._real, self._method)(*args, **kwargs)
        if self._left == 0 and self._after:
            self._action()
        return result


def always(error: Exception) -> Action:
    """Return an action that raises `error`."""

    def fail() -> None:
        raise error

    return fail


def die() -> None:
    """End this process as a power cut would: no `finally`, no flush."""
    os._exit(KILLED)


class WallClock:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 4, 28, 10, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.moment += timedelta(seconds=seconds)


def no_pauses() -> Iterator[float]:
    """Yield pauses that take no time."""
    while True:
        yield 0.0


@dataclass(frozen=True)
class Bench:
    """What a worker on a site is made of. A changed copy is another worker on the same disk and database."""

    site: Site
    make_store: Callable[[], Any]
    archive_store: Any
    settings: Settings
    now: WallClock
    pauses: Callable[[], Iterator[float]] = no_pauses

    @classmethod
    def of(cls, site: Site, make_store: Callable[[], DocumentStore] | None = None) -> Bench:
        """Return the bench of a site's worker 1, its database (without a maker the site's own) prepared."""
        site.keys.mkdir(exist_ok=True)
        maker = make_store or site.store
        maker().prepare()
        settings = Settings(worker_id="worker_1", receiver=site.recipient, gnupg_home=site.gnupg)
        return cls(site, maker, ArchiveStore(site.archives, site.keys), settings, WallClock())

    def other(self, **settings: Any) -> Bench:
        """Return the same with other settings."""
        return replace(self, settings=replace(self.settings, **settings))

    def with_archive_store(self, method: str, action: Action, **when: Any) -> Bench:
        """Return the same with one call of the archive_store intercepted."""
        return replace(self, archive_store=Intercepted(self.archive_store, method, action, **when))

    def with_store(self, method: str, action: Action, **when: Any) -> Bench:
        """Return the same with one call of the document store intercepted, anew for each `work`."""
        make_store = self.make_store
        return replace(self, make_store=lambda: Intercepted(make_store(), method, action, **when))

    def statusdb(self) -> StatusDB:
        """Return the status database, which does not wait between its tries."""
        return StatusDB(self.make_store(), lambda _seconds: False, now=self.now, pauses_seconds=(0.0,))

    def worker(self) -> Worker:
        """Return the worker."""
        statusdb = self.statusdb()
        return Worker(self.settings, statusdb, self.archive_store, LeaseKeeper(statusdb, 300.0), self.pauses)

    def ready_run(self, name: str = "run_001", size: int = 100_000) -> Run:
        """Make a run with its sentinel, and register it."""
        run = Run(self.site.complete(self.site.make_run(name, size=size)))
        self.statusdb().register([run])
        return run

    def work(self, run: Run, stale_rev: str | None = None) -> Outcome:
        """Let the worker work on the run once."""
        return self.worker().work(run, stale_rev)

    def take_over(self, run: Run) -> Outcome:
        """Let another worker find the run's claim stale, and work on it."""
        return self.other(worker_id="worker_2").work(run, self.document(run)["_rev"])

    def dies(self, run: Run, stale: bool = False) -> None:
        """Work in a child process that is to die in the middle; fail if it lives to the end."""
        rev = self.document(run)["_rev"] if stale else None
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                self.work(run, rev)
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == KILLED, f"the worker was to die and ended with {status}"

    def document(self, run: Run) -> Document:
        """Return the run's document."""
        found = self.statusdb().get(run.name)
        assert found is not None
        return found

    def finals(self) -> dict[str, tuple[int, bytes]]:
        """Return inode and content of each file under a final name."""
        files = [path for place in (self.site.archives, self.site.keys) for path in place.glob("[!.]*.gpg")]
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in files}
