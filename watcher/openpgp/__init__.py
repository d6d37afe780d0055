"""gpg, through python-gnupg: streams under a file key, and file keys under the recipient's key.

A `FileKey` is in memory only. Nothing here writes it, logs it, or puts it on a command line. Archiving encrypts and
validates, restoring decrypts; both get gpg's failures as errors of ours, with gpg's words.
"""

from __future__ import annotations

from watcher.openpgp.filekey import FileKey
from watcher.openpgp.gpg import gpg_version, known_version, require
from watcher.openpgp.keyring import find_recipient, key_ids, unwrap, wrap
from watcher.openpgp.recipient import Recipient, openers
from watcher.openpgp.streams import Source, decrypt, encrypt, encrypt_to, validate

__all__ = [
    "FileKey",
    "Recipient",
    "Source",
    "decrypt",
    "encrypt",
    "encrypt_to",
    "find_recipient",
    "gpg_version",
    "key_ids",
    "known_version",
    "openers",
    "require",
    "unwrap",
    "validate",
    "wrap",
]
