"""The errors: a class says what happens next, its text what happened and what to do about it.

An adapter turns each foreign exception into one of these. `watcher.archiving.endings` has the table of what each class
leads to. Anything that is not a `WatcherError` is a bug.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

_REMEDIES = {
    errno.EMFILE: "raise the limit of open files: ulimit -n, or LimitNOFILE= in the unit",
    errno.ENFILE: "this machine has too many files open: raise fs.file-max with sysctl",
    errno.EFBIG: "raise the limit of file size: ulimit -f unlimited, or LimitFSIZE=infinity in the unit",
    errno.ENOSPC: "free space on that file system",
    errno.EDQUOT: "free space, or raise this user's quota",
    errno.EROFS: "the file system is read-only: look at dmesg, then mount it for writing",
    errno.EACCES: "give this user the right: owner and mode of the file, and of the directories above it",
    errno.EPERM: "give this user the right: owner, mode and attributes of the file",
    errno.ENOMEM: "this machine has no memory left, or a limit is too low: ulimit -v, or MemoryMax= in the unit",
    errno.EAGAIN: "too many processes run: raise ulimit -u, or LimitNPROC= and TasksMax= in the unit",
    errno.EIO: "the disk fails: look at dmesg",
}


def remedy(error: OSError, usual: str) -> str:
    """Return what an operator does about `error`; `usual` where its number says nothing better."""
    return _REMEDIES.get(error.errno or 0, usual)


class WatcherError(Exception):
    """The base of all our errors: the text says what went wrong and what to do."""

    @property
    def kind(self) -> str:
        """The name of the class in this file, as a run document's `last_error` has it."""
        return next(each.__name__ for each in type(self).__mro__ if each.__module__ == __name__)


class ConfigError(WatcherError):
    """What only an administrator can mend: refuse to start. Carries every problem found, not the first."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownRun(WatcherError):
    """A command named a run that the status database does not have, or not in the state it needs."""


class NotAsRecorded(WatcherError):
    """A stored file of an archived run is missing, or is not the one that the run's document names."""


class StoreAway(WatcherError):
    """The directory of the archives or of the keys is missing or empty, so nothing can be said of an archive."""


class RestoreFailed(WatcherError):
    """An archive could not be restored; nothing that stood at the destination was touched."""


class NotTheRunsFault(WatcherError):
    """The run may be fine: release its claim, count no attempt, try again later."""


class StatusDBUnavailable(NotTheRunsFault):
    """The status database does not answer, or answers that it cannot do it now."""


class StatusDBRefused(StatusDBUnavailable):
    """The status database refuses our credentials. Asking again would lock the account out."""


class NoSpace(NotTheRunsFault):
    """The disk of the archives or keys does not do its part: full, read-only, failing, hanging, or not mounted."""


class RunNotSettled(NotTheRunsFault):
    """The run changed while it was read: its transfer goes on."""


class RecipientUnusable(NotTheRunsFault):
    """The key of `gpg_receiver` is missing, ambiguous or cannot encrypt now; no run can help that."""


class WrapFailed(NotTheRunsFault):
    """gpg did not encrypt the file key to the recipient: 64 characters, the same for every run."""


class CannotRun(NotTheRunsFault):
    """tar or gpg could not be started: not installed, or no memory or process to be had."""


class Interrupted(NotTheRunsFault):
    """The watcher is being stopped."""


class RunFailed(WatcherError):
    """The run's own failure: counts an attempt."""


class TarFailed(RunFailed):
    """tar could not read the whole run."""


class Incomplete(RunFailed):
    """The archive would not hold what the run holds, or could not be restored by tar."""


class EncryptFailed(RunFailed):
    """gpg did not encrypt what tar gave it."""


class ValidateFailed(RunFailed):
    """The stored archive does not decrypt to what tar gave."""


class PublishFailed(RunFailed):
    """A file that is not ours stands under one of the archive's final names."""


class Stalled(RunFailed):
    """tar or gpg moved no byte for `stall_limit`."""


class ClaimLost(WatcherError):
    """The run is no longer ours: stop, and touch nothing that is published."""
