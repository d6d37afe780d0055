"""What this process knows of the runs that are here, so that a rescan need not ask the database for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from watcher.model import Document, Run, path_of
from watcher.source import Observation


class KnownRuns:
    """The runs that are here and in the database, as far as this process knows. All methods may be called at once.

    A rescan asks for each run that has no version here: its document may have been deleted since we heard of it.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}  # by name
        self._versions: dict[str, int] = {}  # hashes of what the runs were like when they were last looked up
        self._being_registered: set[str] = set()
        self._deletions = 0
        self._lock = threading.Lock()

    def has(self, observation: Observation) -> bool:
        """Say whether a run is known as it was observed: a rescan need not ask the database for it."""
        name, path = observation.run.name, str(observation.run.path)
        return self._paths.get(name) == path and self._versions.get(name) == hash(observation.version)

    def has_heard_of(self, run: Run) -> bool:
        """Say whether a run is known, or is being registered just now."""
        with self._lock:
            return self._paths.get(run.name) == str(run.path) or run.name in self._being_registered

    def add_unasked(self, run: Run) -> None:
        """Add a run that is here, and that the database has told us of. The next rescan asks for it."""
        with self._lock:
            self._paths[run.name] = str(run.path)
            self._versions.pop(run.name, None)

    def begin(self, runs: Iterable[Run]) -> int:
        """Note that runs are being registered: that the database tells of them is no news.

        Return a number for `add_version`.
        """
        with self._lock:
            self._being_registered |= {run.name for run in runs}
            return self._deletions

    def end(self, runs: Iterable[Run]) -> None:
        """Note that the registering of these runs is over, whether it succeeded or not."""
        with self._lock:
            self._being_registered -= {run.name for run in runs}

    def add(self, runs: Iterable[Run], documents: Iterable[Document]) -> None:
        """Add those of the runs that the database has documents of."""
        paths = {str(run.path) for run in runs}
        found = {document["_id"]: str(path_of(document)) for document in documents}
        with self._lock:
            self._paths |= {name: path for name, path in found.items() if path in paths}

    def add_version(self, observation: Observation, begun: int) -> None:
        """Note what a run was like when it was compared with its document.

        `begun` is what `begin` returned. If a deletion was heard since, the next rescan asks for the run again.
        """
        with self._lock:
            if self._deletions == begun:
                self._versions[observation.run.name] = hash(observation.version)
            else:
                self._versions.pop(observation.run.name, None)

    def forget(self, name: str) -> None:
        """Forget a run whose document was deleted: the next rescan registers it again."""
        with self._lock:
            self._deletions += 1
            self._paths.pop(name, None)
            self._versions.pop(name, None)

    def forget_all(self) -> None:
        """Forget all runs: documents may have been deleted while nobody heard of it."""
        with self._lock:
            self._deletions += 1
            self._paths.clear()
            self._versions.clear()
