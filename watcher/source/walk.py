"""What lies in the sequencing path: its sequencers, their runs, and the state of each run's sentinel."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from watcher.model import Run
from watcher.source.sentinel import NOT_THERE, Observation, Policy, State, inspect, inspect_directory

logger = logging.getLogger(__name__)


class Walk:
    """Looks at `root/<sequencer>/<run>`. Names in `ignore` are left out on both levels.

    Paths are plain text, since there are many. A directory that cannot be listed is logged, once for each reason.
    """

    def __init__(
        self,
        root: Path,
        ignore: Collection[str] = (),
        policy: Policy = Policy.EXIT_CODE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root = str(root)
        self._ignore = frozenset(ignore)
        self._policy = policy
        self._now = now
        self._logged: dict[str, str] = {}  # why directories cannot be listed, as the log has it already
        self._seen: set[int] = set()  # hashes of sentinels that were read and found ready

    def observations(self) -> Iterator[Observation]:
        """Yield each run's state."""
        for sequencer in self.sequencers():
            if is_directory(sequencer):
                yield from self.runs(sequencer, self.look)

    def sequencers(self) -> Iterator[str]:
        """Yield the paths of what may be a sequencer: directories, and links that may lead to one."""
        return (entry.path for entry in self._list(self.root))

    def runs(self, sequencer: str, look: Callable[[str, bool], Observation]) -> Iterator[Observation]:
        """Yield what `look`, given the path and whether it is a link, returns for each run of a sequencer."""
        for entry in self._list(sequencer):
            is_link = entry.is_symlink()
            observation = look(entry.path, is_link)
            if observation.state is not State.ABSENT or not is_link:
                yield observation

    def look(self, path: str, may_be_link: bool) -> Observation:
        """Return the state of the run at this path."""
        run = Run(Path(path))
        if may_be_link:
            return inspect(run.path, self._policy, self._now)
        return inspect_directory(run, self._policy, self._now, self._seen)

    def named(self, name: str) -> Iterator[tuple[str, bool]]:
        """Yield the path of each run directory of this name, and whether `ignore` leaves it out."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            return
        try:
            with os.scandir(self.root) as entries:
                sequencers = sorted((entry.path, entry.name) for entry in entries)
        except OSError as error:
            self._log_once(self.root, error)
            return
        for sequencer, sequencer_name in sequencers:
            path = f"{sequencer}/{name}"
            if is_directory(path) or (is_directory(sequencer) and is_link(path)):
                yield path, self.is_ignored(sequencer_name) or self.is_ignored(name)

    def is_ignored(self, name: str) -> bool:
        """Say whether a sequencer or run of this name is left out."""
        return name in self._ignore

    def _list(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                found = [
                    entry
                    for entry in entries
                    if entry.name not in self._ignore and (entry.is_dir(follow_symlinks=False) or entry.is_symlink())
                ]
        except OSError as error:
            self._log_once(path, error)
            return []
        self._logged.pop(path, None)
        return found

    def _log_once(self, path: str, error: OSError) -> None:
        has_gone = error.errno in NOT_THERE and path != self.root
        reason = error.strerror or str(error)
        if not has_gone and self._logged.get(path) != reason:
            self._logged[path] = reason
            logger.warning("no run in '%s' is seen: %s; mount it, let this user read it, or ignore it", path, reason)


def is_directory(path: str) -> bool:
    """Say whether the path leads to a directory. `Path.is_dir` would raise for some paths."""
    return os.path.isdir(path)  # noqa: PTH112


def is_link(path: str) -> bool:
    """Say whether the path is a symbolic link. `Path.is_symlink` would raise for some paths."""
    return os.path.islink(path)  # noqa: PTH114
