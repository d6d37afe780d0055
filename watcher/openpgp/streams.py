"""Streams under a file key: encrypted, and decrypted again.

Facts about gpg 2.2.40 to 2.4.9: A passphrase ends at the first newline or NUL, so a file key is one line of hex. When
the process that feeds gpg dies, gpg still ends with a valid message around the bytes that it got, so the caller must
know from tar that the stream was whole.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, cast

from blake3 import blake3

from watcher.errors import EncryptFailed, ValidateFailed, WrapFailed
from watcher.job import Job, enough_threads
from watcher.model import Content, Digest, Encryption
from watcher.openpgp.filekey import FileKey
from watcher.openpgp.gpg import FORMATS, GPG, WITHOUT_KEYS, gpg_version, gpg_words, not_encrypted_to, succeeded
from watcher.openpgp.recipient import Recipient

PACKETS_BYTES = 64 << 10
"""At a message's beginning, so much has the packets that say who can open it."""

FEED_SECONDS = 5.0
"""After gpg's end so long for the thread that fed it to come back from its last read."""

# python-gnupg logs whole command lines and each status line; our errors say what matters of them.
logging.getLogger("gnupg").setLevel(logging.CRITICAL + 1)


class Source(Protocol):
    """A stream to be encrypted."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, and no bytes at the end."""


def encrypt(
    source: Source,
    key: FileKey,
    write: Callable[[bytes], object],
    job: Job,
    home: Path | None = None,
    encryption: Encryption = Encryption.MDC,
) -> None:
    """Encrypt `source` to its end with `key`. `write` is called with each piece of gpg's output.

    Raises what `source.read` or `write` raised, the job's reason if it was cancelled, else EncryptFailed. A stream that
    ended early is encrypted without an error: the caller must ask the source whether it was whole.
    """

    def run(gpg: GPG, feed: _Feed) -> Any:
        options = [*FORMATS[encryption], *WITHOUT_KEYS]
        return gpg.encrypt_file(
            feed, None, symmetric="AES256", passphrase=key.reveal(), armor=False, extra_args=options
        )  # fmt: skip

    result = _stream(run, source, write, job, home, EncryptFailed("gpg ended before it had read the whole run"))
    if not succeeded(result):
        raise EncryptFailed(f"gpg could not encrypt: {gpg_words(result)}")


def encrypt_to(
    source: Source,
    recipient: Recipient,
    key: FileKey,
    write: Callable[[bytes], object],
    job: Job,
    home: Path | None = None,
) -> None:
    """Encrypt `source` to its end to the recipient, so that `key` opens it too: what was written can be validated.

    `write` is called with each piece of gpg's output. Raises RecipientUnusable when the recipient's key cannot encrypt,
    or gpg encrypts to others, what `source.read` or `write` raised, the job's reason if it was cancelled, else
    WrapFailed.
    """
    begin = bytearray()

    def checked(data: bytes) -> None:
        if len(begin) < PACKETS_BYTES:
            begin.extend(data[:PACKETS_BYTES])
        write(data)

    def run(gpg: GPG, feed: _Feed) -> Any:
        options = [
            "--encrypt",
            "--recipient",
            recipient.for_gpg,
            "--s2k-cipher-algo",
            "AES256",
            *FORMATS[Encryption.MDC],
        ]
        return gpg.encrypt_file(
            feed, None, symmetric="AES256", passphrase=key.reveal(), armor=False, always_trust=True, extra_args=options
        )  # fmt: skip

    result = _stream(run, source, checked, job, home, WrapFailed("gpg ended before it had read the whole manifest"))
    if not succeeded(result):
        raise not_encrypted_to(recipient.fingerprint, result, "encrypt the manifest")
    recipient.require(bytes(begin), has_passphrase=True)


def validate(
    read: Callable[[int], bytes],
    key: FileKey,
    job: Job,
    home: Path | None = None,
    saw: Callable[[bytes], object] | None = None,
) -> tuple[Digest, Content]:
    """Decrypt the stored file that `read` gives; return the digest of the file and of what was in it.

    `saw` is called with each piece of what was in it. Raises ValidateFailed when it does not decrypt, what `read` or
    `saw` raised, the job's reason if it was cancelled.
    """
    content, size = blake3(), 0

    def write(data: bytes) -> None:
        nonlocal size
        content.update(data)
        size += len(data)
        if saw is not None:
            saw(data)

    file = decrypt(read, key, write, job, home)
    return file, Content(size, content.hexdigest())


def decrypt(
    read: Callable[[int], bytes],
    key: FileKey,
    write: Callable[[bytes], object],
    job: Job,
    home: Path | None = None,
) -> Digest:
    """Decrypt the stored archive that `read` gives into `write`; return the digest of the file as it was read.

    Raises ValidateFailed when it does not decrypt, the job's reason if it was cancelled, and what
    `read` or `write` raised.
    """
    reader = DigestReader(read, job)

    def run(gpg: GPG, feed: _Feed) -> Any:
        return gpg.decrypt_file(feed, passphrase=key.reveal(), extra_args=[*WITHOUT_KEYS])

    result = _stream(run, reader, write, job, home, ValidateFailed("gpg ended before it had read the whole archive"))
    if not succeeded(result):
        raise ValidateFailed(f"the stored archive does not decrypt: {gpg_words(result)}")
    return reader.digest


def _stream(
    run: Callable[[GPG, _Feed], Any],
    source: Source,
    write: Callable[[bytes], object],
    job: Job,
    home: Path | None,
    ended_early: Exception,
) -> Any:
    """Let `run` stream `source` through one gpg into `write`; return python-gnupg's result.

    Raises what `source` or `write` raised, the job's reason, or `ended_early`, whichever came first; CannotRun if gpg
    does not work any more.
    """
    with closing(GPG(home, job)) as gpg, closing(_Feed(source)) as feed:
        sink = _Sink(write, gpg)
        gpg.on_data = sink
        gpg.limit = None
        try:
            with enough_threads():
                result = run(gpg, feed)
        except (BrokenPipeError, ValueError) as error:
            # gpg closed its end of the pipe, or python-gnupg our end, while the thread was feeding it.
            job.check()
            sink.check()
            feed.check()
            gpg_version(home)  # it may not work any more: then that is the error, and not the run's
            raise ended_early from error
    job.check()
    sink.check()
    if not succeeded(result):
        gpg_version(home)  # as above
    return result


class _Feed:
    """What python-gnupg's feeding thread reads from.

    That thread may outlive its gpg. A read of a descriptor that is closed meanwhile, and given to
    another run's tar or file, would steal that run's bytes: after `close` nothing is read any more.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reading = threading.Lock()
        self._closed = False
        self._error: Exception | None = None

    def read(self, size: int, /) -> bytes:
        with self._reading:
            try:
                return b"" if self._closed else self._source.read(size)
            except Exception as error:
                self._error = error
                raise

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._closed = True
        # A read that hangs for longer is inside the kernel already, on the file that it was meant for.
        if self._reading.acquire(timeout=FEED_SECONDS):
            self._reading.release()


class DigestReader:
    """A file that hashes what is read from it and tells the job of it."""

    def __init__(self, read: Callable[[int], bytes], job: Job) -> None:
        self._read = read
        self._job = job
        self._sha256 = hashlib.sha256()
        self._size = 0

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes. Raises the job's reason once it is cancelled."""
        data = self._read(size)
        self._sha256.update(data)
        self._size += len(data)
        self._job.moved(len(data))
        return data

    @property
    def digest(self) -> Digest:
        """What has been read so far."""
        return Digest(self._size, self._sha256.hexdigest())


class _Sink:
    """python-gnupg's `on_data`: hands chunks on, keeps none, and ends gpg when they cannot be taken."""

    def __init__(self, write: Callable[[bytes], object], gpg: GPG) -> None:
        self._write = write
        self._gpg = gpg
        self._error: Exception | None = None

    def __call__(self, chunk: bytes) -> bool:
        if chunk and self._error is None:
            try:
                self._write(chunk)
            except Exception as error:  # noqa: BLE001  # raised by `check`
                # python-gnupg would go on to read from gpg to the end of the run.
                self._error = error
                cast("subprocess.Popen[bytes]", self._gpg.process).kill()
        return False

    def check(self) -> None:
        if self._error is not None:
            raise self._error
