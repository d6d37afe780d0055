"""Why run directories are not archived: the log says it once for each reason."""

from __future__ import annotations

import logging
from pathlib import Path

from watcher.model import Run
from watcher.source import Observation, State, unusable_name

logger = logging.getLogger(__name__)


class Refusals:
    """The reasons that the log has already, by path."""

    def __init__(self) -> None:
        self._logged: dict[Path, str] = {}

    def allow(self, observation: Observation) -> bool:
        """Say whether an observed run may be registered; log why not, unless its sentinel is just not there yet."""
        reason = observation.reason
        if observation.state is State.READY:
            reason = unusable_name(observation.run.name) or ""
        if reason:
            level = logging.WARNING if observation.state is State.HELD else logging.ERROR
            self.log(level, observation.run, reason)
        return observation.state is State.READY and not reason

    def log(self, level: int, run: Run, reason: str) -> None:
        """Log why a run is not archived, if that is news."""
        if self._logged.get(run.path) != reason:
            self._logged[run.path] = reason
            logger.log(level, "'%s' is not archived: %s", run.path, reason, extra=run.about)

    def forget(self, run: Run) -> None:
        """Note that nothing keeps a run from being archived any more."""
        self._logged.pop(run.path, None)
