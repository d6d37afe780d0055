"""The keyring: which key `gpg_receiver` names, and file keys wrapped to it and unwrapped."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

from watcher.errors import RecipientUnusable, WrapFailed
from watcher.job import Job, enough_threads
from watcher.model import Encryption
from watcher.openpgp.filekey import FileKey
from watcher.openpgp.gpg import FORMATS, GPG, KEYRING_SECONDS, gpg_words, not_encrypted_to, succeeded
from watcher.openpgp.recipient import Recipient, choose, ids, search_words

_KEY = re.compile(rb"[0-9a-f]{64}")


def wrap(
    key: FileKey,
    recipient: Recipient,
    home: Path | None = None,
    job: Job | None = None,
    limit_seconds: float = KEYRING_SECONDS,
) -> bytes:
    """Return `key`, encrypted to the recipient by a gpg that may take `limit_seconds`.

    What gpg wrote is proven to name the recipient's key and no other. No private key is needed for that. Raises
    RecipientUnusable when it names another, or when the recipient's key cannot encrypt (any more), the job's
    reason if it was cancelled, WrapFailed otherwise.
    """
    with closing(GPG(home, job, limit_seconds)) as gpg, enough_threads():
        result = gpg.encrypt(
            key.reveal().encode() + b"\n", recipient.for_gpg, armor=False, always_trust=True,
            extra_args=["--cipher-algo", "AES256", *FORMATS[Encryption.MDC]],
        )  # fmt: skip
    if job is not None:
        job.check()
    if succeeded(result) and result.data:
        wrapped = bytes(result.data)
        recipient.require(wrapped)
        return wrapped
    raise not_encrypted_to(recipient.fingerprint, result, "wrap the file key")


def unwrap(wrapped: bytes, home: Path | None = None) -> FileKey:
    """Return the file key that was wrapped. Asks for the private key's passphrase through gpg's own agent.

    Raises WrapFailed when no private key here opens it, or what was wrapped is no file key.
    """
    with closing(GPG(home)) as gpg:
        gpg.limit = None  # a person may need time to find the passphrase
        result = gpg.decrypt(wrapped)
    if not succeeded(result):
        raise WrapFailed(f"the file key cannot be unwrapped: {gpg_words(result)}; is the private key in this keyring?")
    line = bytes(result.data).split(b"\n", 1)[0]
    if not _KEY.fullmatch(line):
        raise WrapFailed("what was unwrapped is no file key, a line of 64 hex digits: is it another file's?")
    return FileKey(line.decode("ascii"))


def find_recipient(
    receiver: str, home: Path | None = None, job: Job | None = None, limit_seconds: float = KEYRING_SECONDS
) -> Recipient:
    """Return the one public key that `receiver` names and that can encrypt now, by a gpg that may take so long.

    `receiver` is what gpg takes: a fingerprint, a key id, an e-mail address, part of a name. With `!` after a
    fingerprint or key id it names one subkey exactly. Raises RecipientUnusable when no key, or more than one,
    is meant, naming each with its fault, and the job's reason if it was cancelled.
    """
    return choose(receiver, _list_keys(search_words(receiver), home, job, limit_seconds))


def key_ids(fingerprint: str, home: Path | None = None) -> frozenset[str]:
    """Return the ids of the keys that a recorded recipient may open a message with; empty if the keyring has none.

    Raises RecipientUnusable when the keyring cannot be read.
    """
    return ids(fingerprint, _list_keys(fingerprint, home, None, KEYRING_SECONDS))


def _list_keys(receiver: str, home: Path | None, job: Job | None, limit_seconds: float) -> list[dict[str, Any]]:
    with closing(GPG(home, job, limit_seconds)) as gpg, enough_threads():
        # `--`: a receiver that starts with a hyphen is no option.
        found = gpg.list_keys(keys=["--", receiver])
    if job is not None:
        job.check()
    if not found and found.returncode != 0 and "No public key" not in found.stderr:
        raise RecipientUnusable(
            f"gpg_receiver: the keyring cannot be read: {gpg_words(found)}; mend it, see gpg --list-keys"
        )
    return [{**key, "uids": [_as_utf8(user) for user in key["uids"]]} for key in found]


def _as_utf8(text: str) -> str:
    # python-gnupg reads gpg's output as latin-1, in which nothing fails.
    return text.encode("latin-1").decode("utf-8", "replace")
