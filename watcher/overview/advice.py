"""What an operator does about each kind of error that a run's document may have."""

from __future__ import annotations

from collections.abc import Mapping

ADVICE: Mapping[str, str] = {
    "StatusDBUnavailable": "see that the status database answers; `dataflow_archive check` asks it",
    "StatusDBRefused": "correct statusdb.username and the password, then restart the watcher",
    "NoSpace": "free space on the destination, or mount it; the run is tried again by itself",
    "RunNotSettled": "wait until the transfer has ended; the run is tried again by itself",
    "RecipientUnusable": "import a usable public key for gpg_receiver; `dataflow_archive check` looks at it",
    "WrapFailed": "gpg's words say why; `dataflow_archive check` wraps a key for gpg_receiver",
    "CannotRun": "install tar and gpg, or free memory and processes; `dataflow_archive check` starts both",
    "Interrupted": "nothing: the watcher was stopped, and takes the run again when it runs",
    "RunFailed": "see that the transfer ends, then `dataflow_archive retry`",
    "TarFailed": "let the archiver's user read the file that tar names, then `dataflow_archive retry`",
    "Incomplete": "look at the path that the message names, then `dataflow_archive retry`",
    "EncryptFailed": "gpg's words say why; then `dataflow_archive retry`",
    "ValidateFailed": "look for a failing disk or bad memory (dmesg), then `dataflow_archive retry`",
    "PublishFailed": "move the file that stands in the way, then `dataflow_archive retry`",
    "Stalled": "look for a disk that does not answer (dmesg), then `dataflow_archive retry`",
}
"""By the name of the class, as `last_error.kind` has it."""

OF_A_BUG = "this is a bug: the log has the traceback, please report it; then `dataflow_archive retry`"


def advice_for(kind: str) -> str:
    """Return what to do about an error of this kind. One that is none of ours is a bug."""
    return ADVICE.get(kind, OF_A_BUG)
