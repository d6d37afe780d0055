"""Archives, wrapped keys, and the recipient."""

from __future__ import annotations

from watcher import openpgp
from watcher.archiving import ArchiveStore
from watcher.config import Config
from watcher.openpgp import Recipient


def archive_store(config: Config) -> ArchiveStore:
    """Return the directories for archives and wrapped keys."""
    return ArchiveStore(config.destination_path, config.run_keys_path)


def find_recipient(config: Config) -> Recipient:
    """Return the recipient that the configuration names. Raises RecipientUnusable, CannotRun or WrapFailed.

    A key that nobody uses is wrapped for it: a gpg that encrypts to another key is found before hours of work.
    """
    recipient = openpgp.find_recipient(config.gpg_receiver, config.gnupg_home)
    openpgp.wrap(openpgp.FileKey.generate(), recipient, config.gnupg_home)
    return recipient
