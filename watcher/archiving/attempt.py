"""What belongs together while a run is worked on: the claim, its lease, the job, and the run directory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from watcher.archiving.lease import Lease
from watcher.archiving.pace import Pace
from watcher.archiving.publication import ArchiveStore
from watcher.errors import Interrupted, NotTheRunsFault, RunNotSettled
from watcher.job import Job
from watcher.model import Claim, Encryption, ManifestMode, ValidationMode, attempt_number
from watcher.source import Policy, Rules, Stillness
from watcher.statusdb import StatusDB

LONGEST_PAUSE_SECONDS = 60.0
"""Between tries of a proven archive's last steps, while the database, the recipient's key or room on the disk lacks."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know; sizes in bytes, times in seconds."""

    worker_id: str
    receiver: str
    gnupg_home: Path | None = None
    rules: Rules = field(default_factory=Rules)
    policy: Policy = Policy.EXIT_CODE
    encryption: Encryption = Encryption.MDC
    manifest: ManifestMode = ManifestMode.ENCRYPTED
    validation: ValidationMode = ValidationMode.FOLLOW
    minimum_free_space: int = 0
    retry_delay: float = 60.0
    settle_limit: float = 86400.0
    quiet_period: float = 0.0
    bandwidth_limit: float | None = None
    prefix: tuple[str, ...] = ()


def growing_pauses() -> Iterator[float]:
    """Yield 1, 2, 4 ... seconds, up to LONGEST_PAUSE_SECONDS, without end."""
    return (min(2.0**exponent, LONGEST_PAUSE_SECONDS) for exponent in itertools.count())


@dataclass(frozen=True)
class Parts:
    """What all attempts of a worker share. `pauses` gives the seconds between tries of a last step."""

    settings: Settings
    statusdb: StatusDB
    archive_store: ArchiveStore
    pauses: Callable[[], Iterator[float]] = growing_pauses
    pace: Pace = field(default_factory=lambda: Pace(None))


@dataclass(frozen=True)
class Attempt:
    """The work on one claimed run. `still` is the held run directory; None if it is not here any more."""

    parts: Parts
    claim: Claim
    lease: Lease
    job: Job
    still: Stillness | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.claim.run.name

    @property
    def extra(self) -> dict[str, object]:
        """What each log record of this attempt carries."""
        number = attempt_number(self.claim.document)
        return {**self.claim.run.about, "phase": str(self.job.progress.phase), "attempt": number}

    def await_quiet(self, still: Stillness) -> None:
        """Wait until nothing in the run has changed for `quiet_period`. Raises the job's reason if it is cancelled."""
        seconds = still.seconds_left()
        if seconds > 0:
            logger.info("archived, and recorded if nothing changes for %.0f s more", seconds, extra=self.extra)
            with self.job.waiting():
                self.job.cancelled.wait(seconds)
            self.job.check()

    def wait_out(self, step: Callable[[], T], what: str) -> T:
        """Do a step, and return what it returns. While nobody is at fault that it fails, wait and try again.

        `what` names the step in the log. Raises what the step raises otherwise, and the job's reason if cancelled.
        """
        for pause in self.parts.pauses():
            try:
                return step()
            except (Interrupted, RunNotSettled):
                raise
            except NotTheRunsFault as error:
                self.job.check()
                logger.warning("cannot %s yet, trying again in %g s: %s", what, pause, error, extra=self.extra)
            with self.job.waiting():
                self.job.cancelled.wait(pause)
            self.job.check()
        raise AssertionError("pauses end")
