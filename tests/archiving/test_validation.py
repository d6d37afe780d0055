"""Validation that follows the writing: what it reads comes from the device, and no fault leaves one pass waiting."""

import ctypes
import hashlib
import io
import mmap
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from blake3 import blake3
from sites import children, keyring, wait_until

from watcher import openpgp
from watcher.archiving.files import StagedFile, version_of, writing
from watcher.archiving.pagecache import drop, is_cached
from watcher.archiving.readback import DROP_PAUSES_SECONDS, Readback
from watcher.archiving.validation import Validation, reread, validating
from watcher.errors import Interrupted, NoSpace, Stalled, ValidateFailed
from watcher.job import Job
from watcher.model import Content, Digest, Phase, Run
from watcher.openpgp import FileKey

MIB = 1 << 20
WINDOWS = 6
CONTENT = os.urandom(WINDOWS * MIB + 4321)
READAHEAD_BYTES = MIB
"""More than Linux reads ahead by itself."""

IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def job() -> Job:
    return Job(Run(Path("/data/sequencing/sequencer_A/run_001")))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty keyring: streams under a file key need none."""
    with keyring(tmp_path_factory.mktemp("gpg") / "home") as path:
        yield path


@pytest.fixture(scope="module")
def key() -> FileKey:
    return FileKey.generate()


@pytest.fixture(scope="module")
def stored(key: FileKey, home: Path) -> bytes:
    """CONTENT as gpg encrypts it: WINDOWS windows, and some bytes."""
    out = io.BytesIO()
    openpgp.encrypt(io.BytesIO(CONTENT), key, out.write, Job(Run(Path("/run"))), home)
    return out.getvalue()


@pytest.fixture
def staged(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Iterator[Path]:
    """Where a file is to be written, on a file system that lets go of what has reached the device."""
    for place in (tmp_path, Path("/var/tmp"), Path(__file__).parent):
        if os.access(place, os.W_OK) and lets_go(place):
            with tempfile.TemporaryDirectory(dir=place) as directory:
                yield Path(directory, "staged")
            return
    unavailable("no file system here lets go of what has reached the device")


def lets_go(place: Path) -> bool:
    with tempfile.TemporaryFile(dir=place) as probe:
        probe.write(bytes(MIB))
        probe.flush()
        for pause in DROP_PAUSES_SECONDS:
            time.sleep(pause)
            drop(probe.fileno(), 0, MIB)
            if not is_cached(probe.fileno(), MIB // 2):
                return True
    return False


@contextmanager
def being_validated(
    path: Path, key: FileKey, job: Job, home: Path, follows: bool = True, window_bytes: int = MIB
) -> Iterator[tuple[StagedFile, Validation]]:
    with (
        writing(path, window_bytes=window_bytes) as file,
        validating(file, key, job, home, follows) as validation,
    ):
        yield file, validation


PIECE_BYTES = 256 << 10
"""Linux may keep what is written at once in one folio, which it drops as a whole: a piece is smaller than a window."""


def write(validation: Validation, data: bytes) -> None:
    for position in range(0, len(data), PIECE_BYTES):
        validation.write(data[position : position + PIECE_BYTES])


def validated(job: Job) -> int:
    """Return how many bytes of the stored file the second pass has taken."""
    return job.progress.bytes_validated


def resident_bytes(path: Path, offset: int, size: int) -> int:
    """Return how much of a file's range is in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    with open(path, "rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), offset)
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


# What is read


def test_each_window_has_left_the_page_cache_before_it_is_read(staged: Path, job: Job) -> None:
    window = 8 * MIB
    with writing(staged, window_bytes=window) as file, Readback(file, job) as readback:
        for start in range(0, 4 * window, window):
            file.write(os.urandom(window))
            if not start:
                continue
            before = start - window
            assert resident_bytes(staged, before, window) == window
            assert len(readback.read(1)) == 1  # of the window before the one that is full now
            assert resident_bytes(staged, before, window) <= READAHEAD_BYTES
            assert resident_bytes(staged, start, window) == window
            assert sum(len(readback.read(MIB)) for _ in range(window // MIB)) == window - 1


def test_what_is_left_at_the_end_has_left_the_page_cache_too(staged: Path, job: Job) -> None:
    with writing(staged, window_bytes=64 * MIB) as file, Readback(file, job) as readback:
        file.write(os.urandom(8 * MIB))
        file.sync()
        readback.finish()
        assert len(readback.read(1)) == 1
        assert resident_bytes(staged, 0, 8 * MIB) <= READAHEAD_BYTES


def test_what_was_written_is_read_in_order_to_its_end(staged: Path, job: Job) -> None:
    content = os.urandom(5 * MIB + 3)
    found = io.BytesIO()

    def read() -> None:
        with Readback(file, job) as readback:
            begun.append(readback)
            while data := readback.read(300_000):
                found.write(data)

    begun: list[Readback] = []
    with writing(staged, window_bytes=MIB) as file:
        reader = threading.Thread(target=read)
        reader.start()
        readback = wait_until(begun.copy, "the reader")[0]
        for position in range(0, len(content), 700_000):
            file.write(content[position : position + 700_000])
            readback.grew()
        file.sync()
        readback.finish()
        reader.join()
    assert hashlib.sha256(found.getvalue()).digest() == hashlib.sha256(content).digest()


# Both passes at once


def test_an_archive_is_validated_while_it_is_written(
    staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with being_validated(staged, key, job, home) as (file, validation):
        write(validation, stored[: 4 * MIB])
        wait_until(lambda: validated(job) == 3 * MIB, "three windows are validated, while the fourth is the last")
        write(validation, stored[4 * MIB :])
        file.sync()
        assert validation.digests() == (digest(stored), Content(len(CONTENT), blake3(CONTENT).hexdigest()))
    assert staged.read_bytes() == stored


def digest(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("why", ["it is to come after", "the file system keeps files in memory", "the file is small"])
def test_where_it_cannot_follow_validation_waits_for_the_end(
    why: str, staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    path = IN_MEMORY / f"staged-{os.getpid()}" if "memory" in why else staged
    try:
        with being_validated(path, key, job, home, "after" not in why, 4 * MIB if "small" in why else MIB) as (
            file, validation,
        ):  # fmt: skip
            write(validation, stored)
            if "memory" in why:
                wait_until(children, "the second pass begins")
            file.sync()
            assert validated(job) == 0
            assert validation.digests() == (digest(stored), Content(len(CONTENT), blake3(CONTENT).hexdigest()))
    finally:
        path.unlink(missing_ok=True)


def test_a_small_archive_needs_no_thread(staged: Path, stored: bytes, key: FileKey, job: Job, home: Path) -> None:
    before = threading.active_count()
    with being_validated(staged, key, job, home, window_bytes=16 * MIB) as (file, validation):
        write(validation, stored)
        assert threading.active_count() == before
        file.sync()
        assert validation.digests() == (digest(stored), Content(len(CONTENT), blake3(CONTENT).hexdigest()))


# Damage


def flip(path: Path, place: int) -> None:
    with open(path, "rb+") as file:
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 4]), place)


@pytest.mark.parametrize("place", [MIB + 77, 3 * MIB + 500_000, 5 * MIB, WINDOWS * MIB + 1000])
@pytest.mark.parametrize("when", ["while it is written", "when it is whole"])
def test_a_bit_that_is_flipped_before_it_was_read_is_found(
    place: int, when: str, staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with (
        pytest.raises(ValidateFailed, match="does not decrypt"),
        being_validated(staged, key, job, home, follows=when == "while it is written") as (file, validation),
    ):
        if when == "while it is written":
            end = (place // MIB + 1) * MIB  # the window of the place is the last one
            write(validation, stored[:end])
            flip(staged, place)
            write(validation, stored[end:])
        else:
            write(validation, stored)
            flip(staged, place)
        file.sync()
        validation.digests()
    assert not staged.exists()


@pytest.mark.parametrize("damage", ["a tail cut off", "bytes appended", "another run's archive", "half of it holes"])
def test_other_damage_is_found(damage: str, staged: Path, stored: bytes, key: FileKey, job: Job, home: Path) -> None:
    other = io.BytesIO()
    openpgp.encrypt(io.BytesIO(CONTENT), FileKey.generate(), other.write, Job(Run(Path("/run"))), home)
    with (
        pytest.raises(ValidateFailed),
        being_validated(staged, key, job, home) as (file, validation),
    ):
        write(validation, stored)
        file.sync()
        with open(staged, "rb+") as damaged:
            if damage == "a tail cut off":
                damaged.truncate(len(stored) - 1)
            elif damage == "bytes appended":
                os.pwrite(damaged.fileno(), b"\0", len(stored))
            elif damage == "half of it holes":
                damaged.truncate(len(stored) // 2)
                damaged.truncate(len(stored))
            else:
                os.pwrite(damaged.fileno(), other.getvalue(), 0)
        validation.digests()


def test_an_archive_that_was_written_to_since_has_another_version_and_is_found_by_reading_it_once_more(
    staged: Path, job: Job
) -> None:
    with writing(staged) as file:
        file.write(CONTENT)
        version = file.finished()
        assert file.finished() == version == version_of(staged)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    reread(staged, sha256, job)
    flip(staged, 5 * MIB)
    assert version_of(staged) != version
    with pytest.raises(ValidateFailed, match="has changed since it was validated"):
        reread(staged, sha256, job)
    staged.unlink()
    assert version_of(staged) == ""


# Faults of one pass end the other


def second_gpg() -> int:
    """Return the pid of the gpg of the second pass."""
    pids: list[int] = wait_until(children, "the second pass begins")
    return pids[0]


def test_when_the_second_gpg_dies_nobody_waits_for_it(
    staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with (
        pytest.raises(ValidateFailed, match=r"does not decrypt|gpg ended before it had read"),
        being_validated(staged, key, job, home) as (file, validation),
    ):
        write(validation, stored[: 4 * MIB])
        wait_until(lambda: validated(job) == 3 * MIB, "three windows are validated")
        os.kill(second_gpg(), signal.SIGKILL)
        write(validation, stored[4 * MIB :])
        file.sync()
        validation.digests()
    assert not staged.exists()


def test_what_the_second_pass_has_found_stops_the_writer(
    staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with (
        pytest.raises(ValidateFailed, match=r"does not decrypt|gpg ended before it had read"),
        being_validated(staged, key, job, home) as (_, validation),
    ):
        write(validation, b"no archive" + stored[: 4 * MIB])
        while True:
            write(validation, stored[:MIB])


def test_when_the_writer_fails_the_second_pass_is_over_even_if_its_gpg_hangs(
    staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with (
        pytest.raises(NoSpace, match="full"),
        being_validated(staged, key, job, home) as (_, validation),
    ):
        write(validation, stored[: 4 * MIB])
        os.kill(second_gpg(), signal.SIGSTOP)
        raise NoSpace("full")
    assert not children()
    assert job.progress == Job(job.run).progress  # the job has one pass again, and may go on
    job.check()


@pytest.mark.parametrize("windows", [2, 4])
def test_a_cancel_ends_both_passes(
    windows: int, staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with (
        pytest.raises(Interrupted, match="shut down"),
        being_validated(staged, key, job, home) as (_, validation),
    ):
        write(validation, stored[: windows * MIB])
        wait_until(lambda: validated(job) == (windows - 1) * MIB, "all that may be read was validated")
        job.cancel(Interrupted("shut down"))
        job.check()
    assert not children()


def test_a_cancel_while_the_rest_is_validated_ends_the_wait(
    staged: Path, stored: bytes, key: FileKey, job: Job, home: Path
) -> None:
    with (
        pytest.raises(Interrupted, match="shut down"),
        being_validated(staged, key, job, home) as (file, validation),
    ):
        write(validation, stored[: 4 * MIB])
        os.kill(second_gpg(), signal.SIGSTOP)
        write(validation, stored[4 * MIB :])
        file.sync()
        threading.Timer(0.1, job.cancel, (Interrupted("shut down"),)).start()
        validation.digests()
    assert not children()


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def pass_seconds(clock: Clock, job: Job, seconds: int) -> bool:
    """Let so many seconds pass, looking at the job each second; say whether it was found stalled."""
    for _ in range(seconds):
        clock.seconds += 1
        if job.cancel_if_stalled(900):
            return True
    return False


def test_a_second_pass_that_stands_still_ends_the_job_though_the_first_one_goes_on(
    staged: Path, key: FileKey, home: Path
) -> None:
    clock = Clock()
    job = Job(Run(Path("/data/sequencing/sequencer_A/run_001")), clock=clock)
    job.enter(Phase.ARCHIVING)
    with (
        pytest.raises(Stalled, match="no byte moved for 900 s while validating"),
        job.second_pass() as second,
        second.child(["sleep", "1000"]),
    ):
        with second.waiting():
            assert not pass_seconds(clock, job, 899)
            job.moved(1)
        for _ in range(3):
            job.moved(1)
            assert not pass_seconds(clock, job, 299)
        job.moved(1)
        assert pass_seconds(clock, job, 3)
        job.check()


def test_a_second_pass_that_waits_for_the_first_one_is_not_stalled() -> None:
    clock = Clock()
    job = Job(Run(Path("/data/sequencing/sequencer_A/run_001")), clock=clock)
    job.enter(Phase.ARCHIVING)
    with job.second_pass() as second, second.child(["sleep", "1000"]), second.waiting():
        for _ in range(20):
            job.moved(1)
            assert not pass_seconds(clock, job, 899)
        assert pass_seconds(clock, job, 3600)
    with pytest.raises(NoSpace, match="while archiving"):
        job.check()


def test_progress_shows_both_passes(job: Job) -> None:
    job.enter(Phase.ARCHIVING, 100)
    with job.second_pass() as second:
        job.moved(50)
        second.moved(20)
        assert (job.progress.bytes_done, job.progress.bytes_total, job.progress.bytes_validated) == (50, 100, 20)
        job.enter(Phase.VALIDATING, 110)
        assert (job.progress.bytes_done, job.progress.bytes_total, job.progress.bytes_validated) == (20, 110, 20)
    job.enter(Phase.WRAPPING)
    assert (job.progress.bytes_done, job.progress.bytes_validated) == (0, 0)
