"""gpg itself, through python-gnupg: one operation, its options, and its words."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import gnupg

from watcher.errors import CannotRun, NotTheRunsFault, RecipientUnusable, WrapFailed
from watcher.job import Job, enlarge, kill, start_child
from watcher.model import Encryption
from watcher.process import ProgramFile, gpg_environment, program_file

BUFFER_BYTES = 1 << 20
"""So many bytes are handed on at once. python-gnupg's default of 16 KiB costs a third of the throughput."""

WORDS_BYTES = 1000
"""An error has at most so many bytes of gpg's last words."""

OCB_VERSION = (2, 4)
"""GnuPG 2.3 had a form of it that was changed; since 2.4.0 it is this one."""

KEYRING_SECONDS = 120.0
"""How long gpg may take to list keys or to wrap a file key. It waits while another process locks the keyring."""

_OPTIONS = (
    "--no-options", "--no-encrypt-to", "--no-groups", "--no-throw-keyids", "--no-armor", "--no-textmode",
    "--no-symkey-cache", "--utf8-strings", "--no-auto-check-trustdb",
)  # fmt: skip
"""A gpg.conf must not add or hide recipients, or change the form. `--no-options` switches the user's file off, but not
/etc/gnupg/gpg.conf, so its settings are taken back one by one. The agent must not keep the file key; names are UTF-8;
and gpg must not bring its trust database up to date, for which it would wait as long as another process locks that."""

_FORMAT = ("--compress-algo", "none", "--s2k-digest-algo", "SHA512", "--s2k-count", "65536")
"""Of the digests for a passphrase not SHA-1, GnuPG 2.2's choice.

Rounds make a weak passphrase costly to guess; 32 random bytes need none, so the count is the least that gpg takes by
itself. Without one gpg asks its agent how quick this machine is, and fails where no agent can start: in a home that is
full or read-only.
"""

FORMATS = {Encryption.MDC: ("--rfc4880", *_FORMAT), Encryption.OCB: ("--gnupg", "--force-ocb", *_FORMAT)}
"""The options for what gpg writes. GnuPG 2.4 chooses between the two by itself, unless it is told."""

WITHOUT_KEYS = ("--no-keyring",)
"""For streams under a file key. gpg would lock the keyring, which fails in a home that is full or read-only."""

_known: dict[ProgramFile | None, dict[str, Any]] = {}
"""What python-gnupg has set up after it has asked gpg for its version, for each program file. It would ask each time:
half of a small run's gpg starts were this question."""


class GPG(gnupg.GPG):  # type: ignore[misc]  # python-gnupg has no types
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
        # We compare and show gpg's words, which we know in the locale C only.
        environment, gnupghome = {**_terminal(), **gpg_environment()}, str(home) if home else None
        if (file := program_file("gpg")) in _known:
            self.__dict__ |= {**_known[file], "env": environment, "gnupghome": gnupghome}
            return
        own = set(self.__dict__)
        self._ask(environment, gnupghome)
        self.buffer_size = BUFFER_BYTES
        if file is not None:
            _known[file] = {name: value for name, value in self.__dict__.items() if name not in own}

    def _ask(self, environment: dict[str, str], gnupghome: str | None) -> None:
        try:
            super().__init__(gnupghome=gnupghome, env=environment, options=list(_OPTIONS))
        except ValueError as error:
            if self._job is not None:
                self._job.check()
            words = " ".join(str(error).split())
            raise CannotRun(f"gpg does not work ({words}); install GnuPG 2.2 or newer") from error

    def close(self) -> None:
        """End gpg if it still runs."""
        if self._timer is not None:
            self._timer.cancel()
        if self.process is not None and self._job is not None:
            self._job.end(self.process)

    def _open_subprocess(self, args: list[str], passphrase: bool = False) -> subprocess.Popen[bytes]:
        # python-gnupg would not give us the process, and would leave it in our terminal's process group.
        self.close()
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = self.make_args(args, passphrase)
        start = self._job.start if self._job else start_child
        self.process = start(command, env=self.env, **pipes)
        if self.limit is None:  # a run flows through
            enlarge(self.process.stdin)
            enlarge(self.process.stdout)
        else:
            self._timer = threading.Timer(self.limit, kill, (self.process,))
            self._timer.daemon = True
            self._timer.start()
        return self.process


def gpg_version(home: Path | None) -> str:
    """Ask gpg for its version, and return it. Raises CannotRun, or RecipientUnusable when `home` is no directory."""
    _known.clear()
    return known_version(home)


def known_version(home: Path | None) -> str:
    """Return the version of the gpg that is in use. Raises as `gpg_version` does."""
    with closing(GPG(home)) as gpg:
        return ".".join(map(str, gpg.version or ("unknown",)))


def require(encryption: Encryption, home: Path | None) -> None:
    """Raise CannotRun if this gpg cannot write that."""
    version = gpg_version(home)
    major, minor, *_ = (int(number) if number.isdigit() else 0 for number in f"{version}.0".split("."))
    if encryption is Encryption.OCB and (major, minor) < OCB_VERSION:
        raise CannotRun(f"encryption: gpg {version} does not write OCB; install GnuPG 2.4 or newer, or write mdc")


def _terminal() -> dict[str, str]:
    # gpg asks for a passphrase on the terminal of its standard input, which is a pipe here.
    try:
        return {"GPG_TTY": os.ttyname(0)}
    except OSError:
        return {}


def succeeded(result: Any) -> bool:
    """Say whether gpg ended well, by python-gnupg's result."""
    return bool(result.ok) and result.returncode == 0


def not_encrypted_to(fingerprint: str, result: Any, what: str) -> NotTheRunsFault:
    """Return the error for what gpg did not encrypt to a public key: whether a person must mend that key, or not."""
    if "INV_RECP" in result.stderr or "No public key" in result.stderr:
        return RecipientUnusable(
            f"gpg_receiver: gpg refuses key {fingerprint} ({result.status_detail or result.status}); "
            f"import a usable public key: gpg --import FILE"
        )
    return WrapFailed(f"gpg could not {what} to {fingerprint}: {gpg_words(result)}")


def gpg_words(result: Any) -> str:
    """Return what gpg said last, for an error: WORDS_BYTES at most."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.startswith("gpg: ")]
    words = "; ".join(line.removeprefix("gpg: ") for line in lines) or getattr(result, "status", "") or ""
    return words[-WORDS_BYTES:] or f"exit status {result.returncode}"
