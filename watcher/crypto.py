"""File keys: made, used, proven and wrapped. The one room that knows gpg, through python-gnupg.

Facts that shaped it (gpg 2.2.40 to 2.4.9): a passphrase ends at the first newline or NUL, so a file
key is one line of hex. gpg closes a perfectly valid message around whatever it got when its feeder
dies, so the caller must know from tar that the stream was whole. Compression costs a factor of eight
on sequencing data. OCB would be quicker, but it is GnuPG's own packet; AES-256 with MDC is read by
any OpenPGP program, in twenty years too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import gnupg

from watcher.errors import CannotRun, EncryptFailed, RecipientUnusable, ValidateFailed, WrapFailed
from watcher.job import Job, enough_threads, kill, start_child
from watcher.model import Digest
from watcher.process import gpg_environment
from watcher.receiver import Recipient, choose, search_words

BUFFER_BYTES = 1 << 20
"""Bytes handed on at once: python-gnupg's own 16 KiB cost a third of the throughput."""

WORDS_BYTES = 1000
"""gpg's last words in an error are cut to this."""

KEYRING_SECONDS = 120.0
"""How long gpg may take for what is no stream: to list keys, to wrap a file key. A locked keyring would hold it."""

FEED_SECONDS = 5.0
"""After gpg's end so long for the thread that fed it to come back from its last read."""

_KEY = re.compile(rb"[0-9a-f]{64}")

_OPTIONS = (
    "--no-options", "--no-encrypt-to", "--no-groups", "--no-throw-keyids", "--no-armor", "--no-textmode",
    "--no-symkey-cache", "--utf8-strings", "--no-auto-check-trustdb",
)  # fmt: skip
"""A gpg.conf must not add or hide recipients, or change the form. `--no-options` switches the user's file off, but not
/etc/gnupg/gpg.conf, so its settings are taken back one by one. The agent must not keep the file key; names are UTF-8;
and gpg must not bring its trust database up to date, for which it would wait as long as another process locks that."""

_FORMAT = ("--rfc4880", "--compress-algo", "none", "--s2k-digest-algo", "SHA512", "--s2k-count", "65536")
"""No OCB, which GnuPG 2.4 would choose by itself; of the digests for a passphrase not SHA-1, GnuPG 2.2's choice.

Rounds make a weak passphrase costly to guess; 32 random bytes need none, so the count is the least that gpg takes by
itself. Without one gpg asks its agent how quick this machine is, and fails where no agent can start: in a home that is
full or read-only.
"""

_WITHOUT_KEYS = ("--no-keyring",)
"""For what a passphrase opens: a keyring would be locked, which cannot be done in a home that is full."""

# python-gnupg logs whole command lines and each status line; our errors say what matters of them.
logging.getLogger("gnupg").setLevel(logging.CRITICAL + 1)


class Source(Protocol):
    """A stream to be encrypted."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


class FileKey:
    """One archive's secret: a line of 64 hex digits, 32 random bytes. Shows itself to nobody by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def generate(cls) -> FileKey:
        """Return a new key from the operating system's random source."""
        return cls(secrets.token_hex(32))

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __repr__(self) -> str:
        return "FileKey(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a file key is not to be stored")


class _GPG(gnupg.GPG):  # type: ignore[misc]  # python-gnupg has no types
    """One gpg operation, as a child of a job (or of none), with nothing of the user's own settings.

    gpg is ended after `limit` seconds; None lets it go on.
    Raises CannotRun when gpg does not run, RecipientUnusable when `home` is no directory.
    """

    def __init__(self, home: Path | None, job: Job | None = None, limit: float | None = KEYRING_SECONDS) -> None:
        self._job = job
        self._timer: threading.Timer | None = None
        self.limit = limit
        self.process: subprocess.Popen[bytes] | None = None
        if home is not None and not home.is_dir():
            raise RecipientUnusable(f"gnupg_home: '{home}' is not a directory; name the one that holds the keyring")
        # gpg's words are compared and shown: C is the one locale that they are known in.
        environment = {**_terminal(), **gpg_environment()}
        try:
            super().__init__(gnupghome=str(home) if home else None, env=environment, options=list(_OPTIONS))
        except ValueError as error:
            if job is not None:
                job.check()
            words = " ".join(str(error).split())
            raise CannotRun(f"gpg does not work ({words}); install GnuPG 2.2 or newer") from error
        self.buffer_size = BUFFER_BYTES

    def close(self) -> None:
        """End gpg if it still runs."""
        if self._timer is not None:
            self._timer.cancel()
        if self.process is not None and self._job is not None:
            self._job.end(self.process)

    def _open_subprocess(self, args: list[str], passphrase: bool = False) -> subprocess.Popen[bytes]:
        # python-gnupg would keep the process to itself, and leave it in our terminal's process group.
        self.close()
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = self.make_args(args, passphrase)
        start = self._job.start if self._job else start_child
        self.process = start(command, env=self.env, **pipes)
        if self.limit is not None:
            self._timer = threading.Timer(self.limit, kill, (self.process,))
            self._timer.daemon = True
            self._timer.start()
        return self.process


def gpg_version(home: Path | None) -> str:
    """Return gpg's version. Raises CannotRun, or RecipientUnusable when `home` is no directory."""
    with closing(_GPG(home)) as gpg:
        return ".".join(map(str, gpg.version or ("unknown",)))


def encrypt(source: Source, key: FileKey, write: Callable[[bytes], object], job: Job, home: Path | None = None) -> None:
    """Encrypt `source` to its end with `key`, handing what gpg gives to `write`.

    Raises what `source.read` or `write` raised, the job's reason if it was cancelled, else EncryptFailed.
    A stream that ended early is encrypted without complaint: whether it was whole, its source must say.
    """

    def run(gpg: _GPG, feed: _Feed) -> Any:
        return gpg.encrypt_file(
            feed, None, symmetric="AES256", passphrase=key.reveal(), armor=False, extra_args=[*_FORMAT, *_WITHOUT_KEYS]
        )  # fmt: skip

    result = _stream(run, source, write, job, home, EncryptFailed("gpg ended before it had read the whole run"))
    if not _succeeded(result):
        raise EncryptFailed(f"gpg could not encrypt: {_words(result)}")


def validate(read: Callable[[int], bytes], key: FileKey, job: Job, home: Path | None = None) -> tuple[Digest, Digest]:
    """Decrypt the stored archive that `read` gives; return the digest of the file and of what was in it.

    Raises ValidateFailed when it does not decrypt, the job's reason if it was cancelled.
    """
    plain = _Hash()
    file = decrypt(read, key, plain.update, job, home)
    return file, plain.digest


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

    def run(gpg: _GPG, feed: _Feed) -> Any:
        return gpg.decrypt_file(feed, passphrase=key.reveal(), extra_args=[*_WITHOUT_KEYS])

    result = _stream(run, reader, write, job, home, ValidateFailed("gpg ended before it had read the whole archive"))
    if not _succeeded(result):
        raise ValidateFailed(f"the stored archive does not decrypt: {_words(result)}")
    return reader.digest


def _stream(
    run: Callable[[_GPG, _Feed], Any],
    source: Source,
    write: Callable[[bytes], object],
    job: Job,
    home: Path | None,
    ended_early: Exception,
) -> Any:
    """Let `run` stream `source` through one gpg into `write`; return python-gnupg's result.

    Raises what `source` or `write` raised, the job's reason, or `ended_early`, whichever came first.
    """
    with closing(_GPG(home, job)) as gpg, closing(_Feed(source)) as feed:
        sink = _Sink(write, gpg)
        gpg.on_data = sink
        gpg.limit = None
        try:
            with enough_threads():
                result = run(gpg, feed)
        except (BrokenPipeError, ValueError) as error:
            # gpg closed its end of the pipe, or python-gnupg ours, under the thread that feeds it.
            job.check()
            sink.check()
            feed.check()
            raise ended_early from error
    job.check()
    sink.check()
    return result


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
    with closing(_GPG(home, job, limit_seconds)) as gpg, enough_threads():
        result = gpg.encrypt(
            key.reveal().encode() + b"\n", recipient.for_gpg, armor=False, always_trust=True,
            extra_args=["--cipher-algo", "AES256", *_FORMAT],
        )  # fmt: skip
    if job is not None:
        job.check()
    if _succeeded(result) and result.data:
        wrapped = bytes(result.data)
        recipient.require(wrapped)
        return wrapped
    if "INV_RECP" in result.stderr or "No public key" in result.stderr:
        raise RecipientUnusable(
            f"gpg_receiver: gpg refuses key {recipient.fingerprint} ({result.status_detail or result.status}); "
            f"import a usable public key: gpg --import FILE"
        )
    raise WrapFailed(f"gpg could not wrap the file key to {recipient.fingerprint}: {_words(result)}")


def unwrap(wrapped: bytes, home: Path | None = None) -> FileKey:
    """Return the file key that was wrapped. Asks for the private key's passphrase through gpg's own agent.

    Raises WrapFailed when no private key here opens it, or what was wrapped is no file key.
    """
    with closing(_GPG(home)) as gpg:
        gpg.limit = None  # a person may have to look for the passphrase
        result = gpg.decrypt(wrapped)
    if not _succeeded(result):
        raise WrapFailed(f"the file key cannot be unwrapped: {_words(result)}; is the private key in this keyring?")
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


def _list_keys(receiver: str, home: Path | None, job: Job | None, limit_seconds: float) -> list[dict[str, Any]]:
    with closing(_GPG(home, job, limit_seconds)) as gpg, enough_threads():
        # `--`: a receiver that starts with a hyphen is no option.
        found = gpg.list_keys(keys=["--", receiver])
    if job is not None:
        job.check()
    if not found and found.returncode != 0 and "No public key" not in found.stderr:
        raise RecipientUnusable(
            f"gpg_receiver: the keyring cannot be read: {_words(found)}; mend it, see gpg --list-keys"
        )
    return [{**key, "uids": [_as_utf8(user) for user in key["uids"]]} for key in found]


def _terminal() -> dict[str, str]:
    # gpg finds the terminal on which to ask for a passphrase by its standard input, which is a pipe here.
    try:
        return {"GPG_TTY": os.ttyname(0)}
    except OSError:
        return {}


def _as_utf8(text: str) -> str:
    # python-gnupg reads gpg's output as latin-1, in which nothing fails.
    return text.encode("latin-1").decode("utf-8", "replace")


class _Hash:
    """SHA-256 and length of what goes through."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._size = 0

    def update(self, data: bytes) -> None:
        self._sha256.update(data)
        self._size += len(data)

    @property
    def digest(self) -> Digest:
        return Digest(self._size, self._sha256.hexdigest())


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
        self._hash = _Hash()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes. Raises the job's reason once it is cancelled."""
        data = self._read(size)
        self._hash.update(data)
        self._job.moved(len(data))
        return data

    @property
    def digest(self) -> Digest:
        """What has been read so far."""
        return self._hash.digest


class _Sink:
    """python-gnupg's `on_data`: hands chunks on, keeps none, and ends gpg when they cannot be taken."""

    def __init__(self, write: Callable[[bytes], object], gpg: _GPG) -> None:
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


def _succeeded(result: Any) -> bool:
    return bool(result.ok) and result.returncode == 0


def _words(result: Any) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.startswith("gpg: ")]
    words = "; ".join(line.removeprefix("gpg: ") for line in lines) or getattr(result, "status", "") or ""
    return words[-WORDS_BYTES:] or f"exit status {result.returncode}"
