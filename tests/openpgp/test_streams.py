"""File keys, streams through gpg, and recipients, with real gpg and real keyrings."""

import copy
import errno
import fcntl
import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from blake3 import blake3
from machine import NOBODY, as_user_nobody, make_reachable
from sites import children, gpg, keyring, wait_until

from watcher import openpgp
from watcher.errors import (
    CannotRun,
    EncryptFailed,
    Interrupted,
    NotTheRunsFault,
    RecipientUnusable,
    ValidateFailed,
    WrapFailed,
)
from watcher.job import PIPE_BYTES, Job
from watcher.model import Content, Digest, Encryption, Run
from watcher.openpgp import FileKey, Recipient, streams

CONTENT = os.urandom(3_000_000)
PAST = "20200101T000000"
LATER = "20210101T000000"


@pytest.fixture
def job() -> Job:
    return Job(Run(Path("/data/sequencing/sequencer_A/run_001")))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty keyring, for what needs none."""
    with keyring(tmp_path_factory.mktemp("gpg") / "home") as path:
        yield path


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Path]:
    """An empty keyring of this test's own."""
    with keyring(tmp_path / "keyring") as path:
        yield path


def make_key(home: Path, user: str, expires: str = "never", usage: str = "default", at: str | None = None) -> str:
    """Make a key pair (`at` a faked time); return its fingerprint."""
    faked = ["--faked-system-time", at] if at else []
    algorithm = {"default": "future-default", "sign": "ed25519"}.get(usage, "rsa2048")
    command = ["--passphrase", "", "--pinentry-mode", "loopback", "--status-fd", "1", "--quick-generate-key"]
    status = gpg(home, *faked, *command, user, algorithm, usage, expires).decode()
    return str(re.findall(r"KEY_CREATED . (\w+)", status)[0])


def expire(home: Path, fingerprint: str, *subkeys: str) -> None:
    """Let a key that was made in the past (or its subkeys: `*`) have expired in the past, too."""
    gpg(home, "--faked-system-time", LATER, "--pinentry-mode", "loopback", "--passphrase", "",
        "--quick-set-expire", fingerprint, "1d", *subkeys)  # fmt: skip


def revoke(home: Path, fingerprint: str) -> None:
    certificate = (home / "openpgp-revocs.d" / f"{fingerprint}.rev").read_text().replace(":-----BEGIN", "-----BEGIN")
    gpg(home, "--import", data=certificate.encode())


def disable(home: Path, fingerprint: str) -> None:
    gpg(home, "--command-fd", "0", "--edit-key", fingerprint, "disable", "save", data=b"")


def encrypted(content: bytes, key: FileKey, job: Job, home: Path) -> bytes:
    out = io.BytesIO()
    openpgp.encrypt(io.BytesIO(content), key, out.write, job, home)
    return out.getvalue()


class Trouble:
    """A source that does something after its first `pieces` pieces."""

    def __init__(self, what: Callable[[], object], pieces: int = 2) -> None:
        self._what = what
        self._left = pieces
        self.reads = 0

    def read(self, size: int, /) -> bytes:
        self.reads += 1
        if self._left == 0:
            self._what()
        self._left -= 1
        return CONTENT[:size]


class Limited:
    """The first `size` bytes of an endless source."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source = source
        self._size = size
        self.given = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(min(size, self._size - self.given))
        self.given += len(data)
        return data


# the file key


def test_a_file_key_is_a_new_line_of_64_hex_digits_each_time() -> None:
    first, second = FileKey.generate().reveal(), FileKey.generate().reveal()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert re.fullmatch("[0-9a-f]{64}", second)
    assert first != second


def test_a_file_key_shows_itself_in_no_text() -> None:
    key = FileKey.generate()
    shown = f"{key} {key!r} {[key]} {(key,)} " + str({"key": key}) + "%s %r" % (key, key)  # noqa: UP031
    assert key.reveal() not in shown
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize("store", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_file_key_refuses_to_be_stored(store: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="not to be stored"):
        store(FileKey.generate())


def test_no_log_line_at_debug_has_the_file_key(
    job: Job, gnupg: Path, recipient: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = FileKey.generate()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("watcher").debug("control: %s", "a line is seen")
        stored = encrypted(CONTENT, key, job, gnupg)
        openpgp.validate(io.BytesIO(stored).read, key, job, gnupg)
        wrapped = openpgp.wrap(key, openpgp.find_recipient(recipient, gnupg), gnupg)
        openpgp.unwrap(wrapped, gnupg)
    assert "a line is seen" in caplog.text
    assert key.reveal() not in caplog.text
    assert {record.name for record in caplog.records} <= {"watcher", "watcher.job"}


def test_the_file_key_is_in_no_command_line_and_no_environment_of_gpg(job: Job, home: Path) -> None:
    key = FileKey.generate()
    seen: list[bytes] = []

    def look() -> None:
        for pid in children():
            seen.extend(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        raise Interrupted("seen enough")

    with pytest.raises(Interrupted, match="seen enough"):
        openpgp.encrypt(Trouble(look), key, len, job, home)
    assert any(b"--symmetric" in one for one in seen)
    assert not any(key.reveal().encode() in one for one in seen)


# encrypt and validate


def test_what_was_encrypted_validates_to_the_digests_of_both_streams(job: Job, home: Path) -> None:
    key = FileKey.generate()
    stored = encrypted(CONTENT, key, job, home)
    file, plain = openpgp.validate(io.BytesIO(stored).read, key, job, home)
    assert plain == Content(len(CONTENT), blake3(CONTENT).hexdigest())
    assert file == Digest(len(stored), hashlib.sha256(stored).hexdigest())


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 100_000], ids=["empty", "one byte", "zeros"])
def test_small_and_empty_streams_round_trip(content: bytes, job: Job, home: Path) -> None:
    key = FileKey.generate()
    out = io.BytesIO()
    openpgp.decrypt(io.BytesIO(encrypted(content, key, job, home)).read, key, out.write, job, home)
    assert out.getvalue() == content


def test_gpg_alone_decrypts_with_the_key_as_a_passphrase(job: Job, home: Path) -> None:
    key = FileKey.generate()
    path = home.parent / "stored.gpg"
    path.write_bytes(encrypted(CONTENT, key, job, home))
    plain = gpg(home, "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt", str(path),
                data=key.reveal().encode() + b"\n")  # fmt: skip
    assert plain == CONTENT


def test_an_archive_is_aes_256_with_integrity_protection_uncompressed_and_for_nobody_else(job: Job, home: Path) -> None:
    path = home.parent / "packets.gpg"
    key = FileKey.generate()
    path.write_bytes(encrypted(b"\0" * 1_000_000, key, job, home))
    packets = gpg(home, "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--list-packets", str(path),
                  data=key.reveal().encode() + b"\n").decode()  # fmt: skip
    assert re.search(r"symkey enc packet: version 4, cipher 9, aead 0, ?s2k 3, hash 10", packets)
    assert "mdc_method: 2" in packets
    assert "compressed packet" not in packets
    assert "pubkey enc packet" not in packets
    assert path.stat().st_size > 1_000_000


def writes_ocb() -> bool:
    """Say whether this machine's gpg writes OCB."""
    return tuple(map(int, openpgp.gpg_version(None).split(".")[:2])) >= (2, 4)


def test_ocb_is_written_where_gpg_can_and_refused_by_its_version_where_it_cannot(job: Job, home: Path) -> None:
    if not writes_ocb():
        with pytest.raises(CannotRun, match=r"encryption: gpg 2\.\d+\.\d+ does not write OCB; install GnuPG 2\.4"):
            openpgp.require(Encryption.OCB, home)
        return
    openpgp.require(Encryption.OCB, home)
    key, path, out = FileKey.generate(), home.parent / "ocb.gpg", io.BytesIO()
    openpgp.encrypt(io.BytesIO(CONTENT), key, out.write, job, home, Encryption.OCB)
    stored = out.getvalue()
    path.write_bytes(stored)
    packets = gpg(home, "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--list-packets", str(path),
                  data=key.reveal().encode() + b"\n").decode()  # fmt: skip
    assert re.search(r"symkey enc packet: version 5, cipher 9, aead 2, ?s2k 3, hash 10", packets)
    assert "aead encrypted packet: cipher=9 aead=2" in packets
    assert "compressed packet" not in packets
    file, plain = openpgp.validate(io.BytesIO(stored).read, key, job, home)
    assert (file.size, plain) == (len(stored), Content(len(CONTENT), blake3(CONTENT).hexdigest()))
    for place in (30, 1_000_000, -1):
        damaged = bytearray(stored)
        damaged[place] ^= 1
        with pytest.raises(ValidateFailed):
            openpgp.validate(io.BytesIO(bytes(damaged)).read, key, job, home)


@pytest.mark.parametrize(
    ("version", "refused"),
    [("2.2.40", True), ("2.3.8", True), ("2.4.0", False), ("2.5.3", False), ("3.0.1-beta9", False)],
)
def test_each_version_of_gpg_is_judged_by_what_it_writes(
    version: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "gpg"
    words = f"gpg (GnuPG) {version}\ncfg:version:{version}\ncfg:pubkey:1\ncfg:cipher:9\ncfg:digest:10\ncfg:compress:0"
    stand_in.write_text(f"#!/bin/sh\ncat <<'END'\n{words}\nEND\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    openpgp.require(Encryption.MDC, None)
    if refused:
        with pytest.raises(CannotRun, match=f"gpg {version} does not write OCB"):
            openpgp.require(Encryption.OCB, None)
    else:
        openpgp.require(Encryption.OCB, None)


def pipe_bytes(pid: int) -> list[int]:
    """Return the sizes of the pipes that are a process's standard input and output."""
    sizes = []
    for number in (0, 1):
        with open(f"/proc/{pid}/fd/{number}", "rb" if number == 0 else "wb", opener=without_waiting) as pipe:
            sizes.append(fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ))
    return sizes


def without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC & ~os.O_CREAT | os.O_NONBLOCK)


def test_a_run_flows_through_large_pipes_both_ways(job: Job, home: Path) -> None:
    key, found, stored = FileKey.generate(), list[list[int]](), io.BytesIO()

    def look(_piece: bytes, times: int) -> None:
        if len(found) < times:  # at the first piece gpg has not ended
            found.append(pipe_bytes(children()[0]))

    def write(piece: bytes) -> None:
        look(piece, 1)
        stored.write(piece)

    openpgp.encrypt(io.BytesIO(CONTENT * 10), key, write, job, home)
    stored.seek(0)
    openpgp.decrypt(stored.read, key, partial(look, times=2), job, home)
    assert found == [[PIPE_BYTES, PIPE_BYTES]] * 2


@pytest.mark.root
def test_a_user_whose_pipes_have_used_up_their_limit_archives_through_small_ones(tmp_path: Path) -> None:
    script = """
        import fcntl, io, os
        from pathlib import Path
        from watcher import openpgp
        from watcher.job import PIPE_BYTES, Job
        from watcher.model import Run
        held = []
        try:
            while True:
                held.append(os.pipe())
                fcntl.fcntl(held[-1][0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except PermissionError:
            pass
        key, stored, content = openpgp.FileKey.generate(), io.BytesIO(), os.urandom(3_000_000)
        openpgp.encrypt(io.BytesIO(content), key, stored.write, Job(Run(Path("/r"))), None)
        stored.seek(0)
        assert openpgp.validate(stored.read, key, Job(Run(Path("/r"))), None)[1].size == len(content)
        print(len(held))
    """
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    make_reachable(home)
    command = [*as_user_nobody(), sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


@pytest.mark.parametrize("cut", [1, 100, 1_500_000, 2_999_000])
def test_a_truncated_archive_fails_validation(cut: int, job: Job, home: Path) -> None:
    key = FileKey.generate()
    stored = encrypted(CONTENT, key, job, home)
    with pytest.raises(ValidateFailed):
        openpgp.validate(io.BytesIO(stored[:-cut]).read, key, job, home)


@pytest.mark.parametrize("place", [0, 5, 30, 1_000_000, -1], ids=["header", "packet", "session", "middle", "last byte"])
def test_one_flipped_bit_fails_validation(place: int, job: Job, home: Path) -> None:
    key = FileKey.generate()
    stored = bytearray(encrypted(CONTENT, key, job, home))
    stored[place] ^= 1
    try:
        _, plain = openpgp.validate(io.BytesIO(bytes(stored)).read, key, job, home)
    except ValidateFailed:
        return
    # A bit that gpg does not need, such as one of a version number, may be flipped; then the content is whole.
    assert plain == Content(len(CONTENT), blake3(CONTENT).hexdigest())
    assert place == 0


def test_another_key_does_not_validate(job: Job, home: Path) -> None:
    stored = encrypted(CONTENT, FileKey.generate(), job, home)
    with pytest.raises(ValidateFailed, match="Bad session key"):
        openpgp.validate(io.BytesIO(stored).read, FileKey.generate(), job, home)


def test_an_empty_file_fails_validation(job: Job, home: Path) -> None:
    with pytest.raises(ValidateFailed):
        openpgp.validate(io.BytesIO(b"").read, FileKey.generate(), job, home)


def test_plain_data_fails_validation(job: Job, home: Path) -> None:
    with pytest.raises(ValidateFailed):
        openpgp.validate(io.BytesIO(b"not OpenPGP " * 1000).read, FileKey.generate(), job, home)


# what goes wrong on the way


def kill_gpg() -> None:
    for pid in children():
        os.kill(pid, signal.SIGKILL)


def test_gpg_killed_while_it_encrypts_is_an_encrypt_failure(job: Job, home: Path) -> None:
    with pytest.raises(EncryptFailed):
        openpgp.encrypt(Trouble(kill_gpg), FileKey.generate(), len, job, home)
    assert children() == []


def test_gpg_killed_after_it_has_read_everything_is_an_encrypt_failure(job: Job, home: Path) -> None:
    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if not data:
                kill_gpg()
            return data

    with pytest.raises(EncryptFailed):
        openpgp.encrypt(Source(b"x" * 1000), FileKey.generate(), len, job, home)


def test_what_needs_no_private_key_needs_no_agent(job: Job, gnupg: Path, recipient: str) -> None:
    home = gnupg
    where = ["gpgconf", "--homedir", str(home), "--list-dirs", "agent-socket"]
    socket = Path(subprocess.run(where, capture_output=True, check=True, text=True).stdout.strip())
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True, capture_output=True)
    wait_until(lambda: not socket.exists(), "the agent has ended")
    key = FileKey.generate()
    stored = encrypted(CONTENT, key, job, home)
    openpgp.validate(io.BytesIO(stored).read, key, job, home)
    openpgp.wrap(key, openpgp.find_recipient(recipient, home), home)
    assert not socket.exists()


def test_gpg_killed_while_it_decrypts_is_a_validate_failure(job: Job, home: Path) -> None:
    stored, key = io.BytesIO(encrypted(CONTENT, FileKey.generate(), job, home)), FileKey.generate()

    class Stored(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            kill_gpg()
            return super().read(1000)

    with pytest.raises(ValidateFailed):
        openpgp.validate(Stored(stored.getvalue()).read, key, job, home)
    assert children() == []


@pytest.mark.parametrize("words", ["write to closed file", "flush of closed file"])
def test_a_pipe_that_python_gnupg_closes_while_it_is_fed_is_gpgs_early_end(words: str, job: Job, home: Path) -> None:
    # python-gnupg's own race, between the end of gpg and the thread that feeds it: not to be had on demand.
    def run(_gpg: object, _feed: object) -> None:
        raise ValueError(words)

    early = ValidateFailed("gpg ended before it had read the whole archive")
    with pytest.raises(ValidateFailed, match="gpg ended before"):
        streams._stream(run, io.BytesIO(), len, job, home, early)


@pytest.mark.parametrize("error", [ValueError("of the source"), BrokenPipeError(errno.EPIPE, "of the source")])
def test_a_source_that_fails_as_a_closed_pipe_would_is_not_taken_for_gpgs_early_end(
    error: Exception, job: Job, home: Path
) -> None:
    class Source:
        def read(self, size: int, /) -> bytes:
            raise error

    with pytest.raises(type(error), match="of the source"):
        openpgp.encrypt(Source(), FileKey.generate(), len, job, home)


@pytest.mark.parametrize("size", [1, 200_000_000], ids=["in gpg's last piece", "long before the end"])
def test_a_full_disk_comes_out_as_the_error_that_the_disk_gave_and_ends_gpg(size: int, job: Job, home: Path) -> None:
    with open("/dev/zero", "rb", buffering=0) as zeros, open("/dev/full", "wb", buffering=0) as full:
        source = Limited(zeros, size)
        with pytest.raises(OSError, match="No space left") as caught:
            openpgp.encrypt(source, FileKey.generate(), full.write, job, home)
    assert caught.value.errno == errno.ENOSPC
    assert source.given < 50_000_000
    assert children() == []


def test_a_reader_that_cannot_take_the_content_ends_the_decryption_with_its_error(job: Job, home: Path) -> None:
    key = FileKey.generate()
    stored = encrypted(CONTENT, key, job, home)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        openpgp.decrypt(io.BytesIO(stored).read, key, full.write, job, home)
    assert children() == []


def test_a_source_that_fails_ends_the_encryption_with_its_error(job: Job, home: Path) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        openpgp.encrypt(Trouble(fail), FileKey.generate(), len, job, home)
    assert children() == []


def test_a_cancelled_job_ends_gpg_and_raises_the_reason(job: Job, home: Path) -> None:
    # A source that gives no more bytes, and does not end: a child of the job, as tar is.
    silent = job.start(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert silent.stdin is not None
    assert silent.stdout is not None
    source: IO[bytes] = silent.stdout

    def cancel() -> None:
        wait_until(children, "gpg runs")
        job.cancel(Interrupted("stopped by a test"))

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Interrupted, match="stopped by a test"):
        openpgp.encrypt(source, FileKey.generate(), len, job, home)
    canceller.join()
    job.end(silent)
    silent.stdin.close()
    silent.stdout.close()
    assert children() == []


def test_a_cancelled_validation_raises_the_reason(job: Job, home: Path) -> None:
    key = FileKey.generate()
    stored = encrypted(CONTENT, key, job, home)

    class Stored(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            job.cancel(Interrupted("stopped by a test"))
            return super().read(size)

    with pytest.raises(Interrupted, match="stopped by a test"):
        openpgp.validate(Stored(stored).read, key, job, home)
    assert children() == []


def test_a_cancelled_job_starts_no_gpg(job: Job, home: Path) -> None:
    job.cancel(Interrupted("stopped by a test"))
    with pytest.raises(Interrupted):
        openpgp.encrypt(io.BytesIO(b"x"), FileKey.generate(), len, job, home)
    with pytest.raises(Interrupted):
        openpgp.find_recipient("ops@example.org", home, job)


def test_a_thread_that_outlives_its_gpg_reads_no_more_from_the_source() -> None:
    inside, go_on, read = threading.Event(), threading.Event(), []

    class Source:
        def read(self, size: int, /) -> bytes:
            inside.set()
            go_on.wait()
            return b"x" * size

    feed = streams._Feed(Source())
    reader = threading.Thread(target=lambda: read.extend([feed.read(3), feed.read(3)]))
    closer = threading.Thread(target=feed.close)
    reader.start()
    inside.wait()
    closer.start()
    wait_until(lambda: feed._closed, "the feed is closed")
    assert closer.is_alive()  # for a read that began is waited for
    go_on.set()
    reader.join()
    closer.join()
    assert read == [b"xxx", b""]


def test_no_child_is_left_after_many_operations(job: Job, gnupg: Path, recipient: str) -> None:
    for _ in range(5):
        key = FileKey.generate()
        stored = encrypted(b"x" * 10_000, key, job, gnupg)
        openpgp.validate(io.BytesIO(stored).read, key, job, gnupg)
        openpgp.unwrap(openpgp.wrap(key, openpgp.find_recipient(recipient, gnupg), gnupg), gnupg)
    assert children() == []
    assert job._children == set()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(home: Path) -> None:
    peaks = [peak_kilobytes(home, megabytes) for megabytes in (16, 400)]
    assert peaks[1] - peaks[0] < 20_000, peaks


def peak_kilobytes(home: Path, megabytes: int) -> int:
    """Return the peak of a process that encrypts and validates so much."""
    script = """
        import resource, sys, tempfile
        from pathlib import Path
        from watcher import openpgp
        from watcher.job import PIPE_BYTES, Job
        from watcher.model import Run
        class Zeros:
            left = int(sys.argv[2]) << 20
            def read(self, size):
                size = min(size, self.left)
                self.left -= size
                return bytes(size)
        key, job, home = openpgp.FileKey.generate(), Job(Run(Path("/r"))), Path(sys.argv[1])
        with tempfile.TemporaryFile() as stored:
            openpgp.encrypt(Zeros(), key, stored.write, job, home)
            stored.seek(0)
            assert openpgp.validate(stored.read, key, job, home)[1].size == int(sys.argv[2]) << 20
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(home), str(megabytes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# whose settings count


def test_the_users_gpg_conf_changes_nothing_in_an_archive(job: Job, keys: Path) -> None:
    other = make_key(keys, "somebody@example.org")
    settings = f"encrypt-to {other}\narmor\ncompress-algo zlib\ns2k-cipher-algo CAST5\ncipher-algo CAST5\n"
    (keys / "gpg.conf").write_text(settings)
    key, path = FileKey.generate(), keys / "stored.gpg"
    path.write_bytes(encrypted(b"\0" * 1_000_000, key, job, keys))
    (keys / "gpg.conf").unlink()
    packets = gpg(keys, "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--list-packets", str(path),
                  data=key.reveal().encode() + b"\n").decode()  # fmt: skip
    assert "pubkey enc packet" not in packets
    assert "compressed packet" not in packets
    assert "cipher 9," in packets
    assert not path.read_bytes().startswith(b"-----")


def test_the_users_gpg_conf_adds_nobody_to_a_wrapped_key(keys: Path) -> None:
    wanted, other = make_key(keys, "ops@example.org"), make_key(keys, "somebody@example.org")
    (keys / "gpg.conf").write_text(f"encrypt-to {other}\narmor\nhidden-encrypt-to {other}\n")
    wrapped = openpgp.wrap(FileKey.generate(), openpgp.find_recipient("ops@example.org", keys), keys)
    (keys / "gpg.conf").unlink()
    packets = gpg(keys, "--list-packets", data=wrapped).decode()
    assert packets.count("pubkey enc packet") == 1
    assert "mdc_method: 2" in packets
    assert "aead" not in packets
    assert not wrapped.startswith(b"-----")
    assert subkey_id(keys, wanted) in packets


def subkey_id(home: Path, fingerprint: str) -> str:
    lines = gpg(home, "--with-colons", "--list-keys", fingerprint).decode().splitlines()
    return next(line.split(":")[4] for line in lines if line.startswith("sub:"))


def test_without_a_home_of_its_own_gnupghome_counts(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = make_key(keys, "ops@example.org")
    monkeypatch.setenv("GNUPGHOME", str(keys))
    assert openpgp.find_recipient("ops@example.org").fingerprint == fingerprint


def test_a_home_of_its_own_counts_more_than_gnupghome(keys: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = make_key(keys, "ops@example.org")
    monkeypatch.setenv("GNUPGHOME", str(home))
    assert openpgp.find_recipient("ops@example.org", keys).fingerprint == fingerprint


def test_without_gnupghome_the_users_own_keyring_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with keyring(tmp_path / ".gnupg") as path:
        fingerprint = make_key(path, "ops@example.org")
        monkeypatch.delenv("GNUPGHOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert openpgp.find_recipient("ops@example.org").fingerprint == fingerprint


PINENTRY = """#!/bin/sh
echo OK
while read -r line; do
    case "$line" in
        GETPIN*) echo "D {secret}"; echo OK ;;
        BYE*) echo OK; exit ;;
        *) echo OK ;;
    esac
done
"""


def test_the_agent_keeps_no_file_key(job: Job, keys: Path) -> None:
    key = FileKey.generate()
    pinentry = keys / "pinentry"
    pinentry.write_text(PINENTRY.format(secret=key.reveal()))
    pinentry.chmod(0o700)
    (keys / "gpg-agent.conf").write_text(f"pinentry-program {pinentry}\n")
    ours, control = keys / "ours.gpg", keys / "control.gpg"
    ours.write_bytes(encrypted(CONTENT, key, job, keys))
    openpgp.validate(io.BytesIO(ours.read_bytes()).read, key, job, keys)
    # The control: gpg as a person runs it, whose passphrase the agent keeps.
    gpg(keys, "--output", str(control), "--symmetric", data=b"x")
    pinentry.unlink()
    assert gpg(keys, "--decrypt", str(control)) == b"x"
    with pytest.raises(subprocess.CalledProcessError):
        gpg(keys, "--decrypt", str(ours))


def test_a_missing_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipientUnusable, match=f"gnupg_home: '{tmp_path}/nowhere' is not a directory"):
        openpgp.find_recipient("ops@example.org", tmp_path / "nowhere")


def test_a_machine_without_gpg_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match=r"cannot run 'gpg'.*installed"):
        openpgp.find_recipient("ops@example.org")


def test_a_gpg_that_knows_none_of_our_options_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "gpg"
    old.write_text("#!/bin/sh\necho 'gpg: invalid option' >&2\nexit 2\n")
    old.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CannotRun, match=r"invalid option.*GnuPG 2\.2"):
        openpgp.gpg_version(None)


REAL_GPG = shutil.which("gpg")


@pytest.fixture
def own_gpg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the PATH with a gpg that logs its options there, and fails while a file `broken` is there."""
    program = tmp_path / "bin" / "gpg"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/bin/log\n'
        f'test ! -e {tmp_path}/bin/broken || {{ echo "gpg: error while loading shared libraries" >&2; exit 127; }}\n'
        f'exec {REAL_GPG} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program.parent


def test_gpg_is_asked_for_its_version_once(own_gpg: Path, job: Job, home: Path) -> None:
    for _ in range(2):
        key = FileKey.generate()
        openpgp.validate(io.BytesIO(encrypted(CONTENT, key, job, home)).read, key, job, home)
    asked = (own_gpg / "log").read_text().splitlines()
    assert ["--list-config" in line for line in asked] == [True, False, False, False, False]


def test_a_gpg_that_was_replaced_is_asked_again(own_gpg: Path, job: Job, home: Path) -> None:
    key = FileKey.generate()
    encrypted(CONTENT, key, job, home)
    (own_gpg / "newer").write_text((own_gpg / "gpg").read_text())
    (own_gpg / "newer").chmod(0o755)
    (own_gpg / "newer").rename(own_gpg / "gpg")
    encrypted(CONTENT, key, job, home)
    assert (own_gpg / "log").read_text().count("--list-config") == 2


def test_a_gpg_that_works_no_more_is_not_the_runs_fault(own_gpg: Path, job: Job, home: Path) -> None:
    key = FileKey.generate()
    stored = encrypted(CONTENT, key, job, home)
    (own_gpg / "broken").touch()
    with pytest.raises(CannotRun, match=r"gpg does not work .*shared libraries"):
        encrypted(CONTENT, key, job, home)
    (own_gpg / "broken").unlink()
    openpgp.validate(io.BytesIO(stored).read, key, job, home)
    (own_gpg / "broken").touch()
    with pytest.raises(CannotRun, match=r"gpg does not work .*shared libraries"):
        openpgp.validate(io.BytesIO(stored).read, key, job, home)


# recipients


def test_a_recipient_is_found_by_mail_name_and_fingerprint_and_says_who_it_is(keys: Path) -> None:
    fingerprint = make_key(keys, "Jörg Ops <ops@example.org>")
    for receiver in ("ops@example.org", "Jörg Ops", fingerprint, fingerprint[-16:], f"0x{fingerprint}"):
        found = openpgp.find_recipient(receiver, keys)
        assert (found.fingerprint, found.user, found.expires) == (fingerprint, "Jörg Ops <ops@example.org>", None)


def test_a_recipient_that_is_missing_is_named_with_the_command_that_imports_one(keys: Path) -> None:
    with pytest.raises(RecipientUnusable, match=r"no public key matches 'ops@example\.org'.*gpg --import"):
        openpgp.find_recipient("ops@example.org", keys)


def test_two_keys_of_one_mail_are_ambiguous_and_both_are_named(keys: Path) -> None:
    both = {make_key(keys, "Old <ops@example.org>"), make_key(keys, "New <ops@example.org>")}
    with pytest.raises(RecipientUnusable, match=r"matches 2 keys; set it to one fingerprint") as caught:
        openpgp.find_recipient("ops@example.org", keys)
    assert both == set(re.findall("[0-9A-F]{40}", str(caught.value)))
    assert all(openpgp.find_recipient(one, keys).fingerprint == one for one in both)


def test_an_exact_mail_is_preferred_to_one_that_only_contains_it(keys: Path) -> None:
    make_key(keys, "devops@example.org")
    fingerprint = make_key(keys, "ops@example.org")
    make_key(keys, "ops@example.org.invalid")
    assert openpgp.find_recipient("ops@example.org", keys).fingerprint == fingerprint


def test_an_expired_exact_mail_is_not_replaced_by_one_that_only_contains_it(keys: Path) -> None:
    make_key(keys, "devops@example.org")
    make_key(keys, "ops@example.org", "1d", at=PAST)
    with pytest.raises(RecipientUnusable, match="has expired"):
        openpgp.find_recipient("ops@example.org", keys)


def test_of_an_unusable_and_a_usable_key_the_usable_one_is_taken(keys: Path) -> None:
    make_key(keys, "Old <ops@example.org>", "1d", at=PAST)
    revoked = make_key(keys, "Lost <ops@example.org>")
    revoke(keys, revoked)
    usable = make_key(keys, "New <ops@example.org>")
    assert openpgp.find_recipient("ops@example.org", keys).fingerprint == usable


def expired_key(home: Path) -> None:
    make_key(home, "ops@example.org", "1d", at=PAST)


def expired_key_without_subkeys(home: Path) -> None:
    make_key(home, "ops@example.org", "1d", usage="sign,cert,encr", at=PAST)


def revoked_key(home: Path) -> None:
    revoke(home, make_key(home, "ops@example.org"))


def disabled_key(home: Path) -> None:
    disable(home, make_key(home, "ops@example.org"))


def key_for_signing(home: Path) -> None:
    make_key(home, "ops@example.org", usage="sign")


def key_with_an_expired_subkey(home: Path) -> None:
    expire(home, make_key(home, "ops@example.org", at=PAST), "*")


def key_with_a_revoked_subkey(home: Path) -> None:
    fingerprint = make_key(home, "ops@example.org")
    answers = "key 1\nrevkey\ny\n0\n\ny\nsave\n"
    gpg(home, "--pinentry-mode", "loopback", "--passphrase", "", "--command-fd", "0", "--edit-key", fingerprint,
        data=answers.encode())  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (expired_key, "has expired"),
        (expired_key_without_subkeys, "has expired"),
        (revoked_key, "is revoked"),
        (disabled_key, "is disabled"),
        (key_for_signing, "has no encryption subkey"),
        (key_with_an_expired_subkey, "its encryption subkey has expired"),
        (key_with_a_revoked_subkey, "its encryption subkey is revoked"),
    ],
)
def test_a_key_that_cannot_encrypt_is_refused_with_the_reason(
    make: Callable[[Path], None], words: str, keys: Path
) -> None:
    make(keys)
    with pytest.raises(RecipientUnusable, match=rf"no key of 'ops@example\.org' can encrypt: [0-9A-F]{{40}} {words};"):
        openpgp.find_recipient("ops@example.org", keys)


def test_a_recipient_tells_when_the_first_of_its_keys_expires(keys: Path) -> None:
    make_key(keys, "ops@example.org", "20991231T000000")
    assert openpgp.find_recipient("ops@example.org", keys).expires == datetime(2099, 12, 31, tzinfo=UTC)


def test_a_receiver_that_looks_like_an_option_is_none(keys: Path) -> None:
    make_key(keys, "ops@example.org")
    for receiver in ("-foo", "--version", "--list-secret-keys"):
        with pytest.raises(RecipientUnusable, match=f"no public key matches '{receiver}'"):
            openpgp.find_recipient(receiver, keys)


def test_a_broken_keyring_is_not_called_a_missing_key(keys: Path) -> None:
    make_key(keys, "ops@example.org")
    (keys / "pubring.kbx").write_bytes(b"garbage" * 100)
    with pytest.raises(RecipientUnusable, match=r"the keyring cannot be read: .*Invalid packet"):
        openpgp.find_recipient("ops@example.org", keys)


# wrap and unwrap


def test_a_wrapped_key_holds_the_key_line_and_opens_with_plain_gpg(gnupg: Path, recipient: str) -> None:
    key = FileKey.generate()
    wrapped = openpgp.wrap(key, openpgp.find_recipient(recipient, gnupg), gnupg)
    assert gpg(gnupg, "--decrypt", data=wrapped) == key.reveal().encode() + b"\n"
    assert openpgp.unwrap(wrapped, gnupg).reveal() == key.reveal()


@pytest.mark.parametrize("what", ["expired", "revoked", "deleted"])
def test_a_recipient_that_became_unusable_since_it_was_found_is_refused(what: str, keys: Path) -> None:
    fingerprint = make_key(keys, "ops@example.org", at=PAST)
    found = openpgp.find_recipient("ops@example.org", keys)
    assert openpgp.wrap(FileKey.generate(), found, keys)
    spoil: dict[str, Callable[[], object]] = {
        "expired": lambda: expire(keys, fingerprint),
        "revoked": lambda: revoke(keys, fingerprint),
        "deleted": lambda: gpg(keys, "--yes", "--delete-secret-and-public-key", fingerprint),
    }
    spoil[what]()
    with pytest.raises(RecipientUnusable, match=f"gpg refuses key {fingerprint}.*gpg --import"):
        openpgp.wrap(FileKey.generate(), found, keys)


def test_a_recipient_that_nobody_has_signed_is_wrapped_to(keys: Path, tmp_path: Path) -> None:
    make_key(keys, "ops@example.org")
    with keyring(tmp_path / "watcher") as here:
        gpg(here, "--import", data=gpg(keys, "--export", "ops@example.org"))
        key = FileKey.generate()
        wrapped = openpgp.wrap(key, openpgp.find_recipient("ops@example.org", here), here)
        with pytest.raises(WrapFailed, match=r"cannot be unwrapped: .*No secret key.*private key in this keyring"):
            openpgp.unwrap(wrapped, here)
    assert openpgp.unwrap(wrapped, keys).reveal() == key.reveal()


def test_something_else_that_was_wrapped_is_no_file_key(gnupg: Path, recipient: str) -> None:
    for content in (b"a letter", b"\xff" * 32, b"0" * 63 + b"\n", b"0" * 65 + b"\n", b""):
        wrapped = gpg(gnupg, "--recipient", recipient, "--encrypt", data=content)
        with pytest.raises(WrapFailed, match="no file key"):
            openpgp.unwrap(wrapped, gnupg)


def test_garbage_is_not_unwrapped(gnupg: Path) -> None:
    with pytest.raises(WrapFailed, match="cannot be unwrapped"):
        openpgp.unwrap(b"garbage", gnupg)


def test_gpg_killed_while_it_wraps_is_a_wrap_failure_or_the_jobs_reason(gnupg: Path, recipient: str) -> None:
    found = openpgp.find_recipient(recipient, gnupg)
    job = Job(Run(Path("/r")))
    job.cancel(Interrupted("stopped by a test"))
    with pytest.raises(Interrupted, match="stopped by a test"):
        openpgp.wrap(FileKey.generate(), found, gnupg, job)


# A keyring that another process has locked; a gpg that hangs


def test_a_keyring_that_another_process_has_locked_is_read_all_the_same(keys: Path, job: Job) -> None:
    make_key(keys, "ops@example.org")  # gpg would check its trust database now: with a lock
    for locked in ("pubring.kbx", "trustdb.gpg"):
        (keys / f"{locked}.lock").write_text(f"{os.getpid():10}\n{os.uname().nodename}\n")
    waiting = subprocess.Popen(["gpg", "--homedir", str(keys), "--batch", "--list-keys"], stderr=subprocess.PIPE)
    assert waiting.stderr is not None
    assert any(b"waiting for lock" in line for line in waiting.stderr)
    waiting.kill()
    waiting.communicate()
    key = FileKey.generate()
    found = openpgp.find_recipient("ops@example.org", keys, job)
    wrapped = openpgp.wrap(key, found, keys, job)
    assert gpg(keys, "--decrypt", data=wrapped).strip() == key.reveal().encode()


@pytest.mark.parametrize("operation", ["--list-keys", "--encrypt"])
@pytest.mark.parametrize("with_job", [True, False], ids=["of a job", "of none"])
def test_gpg_that_hangs_over_the_keyring_is_ended_and_that_is_not_the_runs_fault(
    operation: str, with_job: bool, job: Job, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "gpg"
    real = shutil.which("gpg")
    hanging.write_text(f'#!/bin/bash\n[[ " $* " = *" {operation} "* ]] && exec sleep 1000\nexec {real} "$@"\n')
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    mine = job if with_job else None
    find = partial(openpgp.find_recipient, "ops@example.org", home, mine, limit_seconds=0.3)
    wrap = partial(openpgp.wrap, FileKey.generate(), Recipient("A" * 40, "ops", None), home, mine, limit_seconds=0.3)
    with pytest.raises(NotTheRunsFault):
        (find if operation == "--list-keys" else wrap)()
    assert children("sleep") == []
