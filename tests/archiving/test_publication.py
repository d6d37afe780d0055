"""tar's stream and what its words mean; staging, publishing and adopting files."""

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import termios
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from blake3 import blake3
from harness import read_through
from machine import as_nobody, make_reachable
from sites import Site, wait_until
from tracing import require_strace, traced

from watcher.archiving import ArchiveStore
from watcher.archiving.files import reading, writing
from watcher.daemon import mark
from watcher.errors import CannotRun, ClaimLost, Interrupted, NoSpace, PublishFailed, RunNotSettled, TarFailed
from watcher.job import PIPE_BYTES, Job
from watcher.model import MAX_RUN_NAME_BYTES, NAME_MAX, Archive, Run, TarReport
from watcher.source import Rules, Stillness, hold
from watcher.tar import TarStream, tar_version

BIG = 4 * PIPE_BYTES
"""tar blocks in the middle of a file of this size until somebody reads."""

TOKEN, OTHER_TOKEN = "a" * 32, "b" * 32

NAMES = (
    "run_001",
    "with spaces",
    "-rf",
    "--exclude=x",
    "quote'\"",
    "line\nbreak",
    "tab\tback\\slash\\n\\t\\",
    "colon: file changed as we read it",
    "ünïcödé-测序",
    os.fsdecode(b"latin-\xe9"),
    "*?[glob]",
    "x" * 247,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with one small file and an empty directory."""
    path = tmp_path / "sequencer_A" / "run_001"
    (path / "Empty").mkdir(parents=True)
    (path / "small").write_bytes(b"x")
    return Run(path)


@contextmanager
def stream(run: Run, exclusions: tuple[str, ...] = (), tolerated: tuple[str, ...] = ()) -> Iterator[TarStream]:
    with hold(run, Rules(exclusions, tolerated)) as source, TarStream(Stillness(source, 0), Job(run)) as tar:
        yield tar


def run_size(run: Run) -> int:
    with hold(run, Rules()) as source:
        return source.list().size


def everything(tar: TarStream) -> bytes:
    pieces = []
    while piece := tar.read(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def archive(
    run: Run, exclusions: tuple[str, ...] = (), tolerated: tuple[str, ...] = ()
) -> tuple[bytes, TarReport, int]:  # fmt: skip
    with hold(run, Rules(exclusions, tolerated)) as source:
        still = Stillness(source, 0)
        with TarStream(still, Job(run)) as tar:
            return read_through(tar, still)


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return opened.getmembers()


def big_file(path: Path, size: int = BIG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def open_file(tar: TarStream) -> Path:
    """Wait until tar blocks in the middle of a big file; return that file."""

    def unread() -> int:
        answer = fcntl.ioctl(tar._stdout, termios.FIONREAD, b"\0" * 4)
        return int(struct.unpack("i", answer)[0])

    wait_until(lambda: unread() > PIPE_BYTES * 0.95, "tar's pipe is full")
    links = [os.readlink(link) for link in Path(f"/proc/{tar._process.pid}/fd").iterdir()]
    return next(Path(link) for link in links if Path(link).is_file() and "run_001" in link)


def changed(
    run: Run, change: Callable[[Path], object], tolerated: tuple[str, ...] = ()
) -> TarReport:  # fmt: skip
    """Archive a run and do something to it when tar is in the middle of a big file."""
    with stream(run, tolerated=tolerated) as tar:
        change(open_file(tar))
        everything(tar)
        return tar.report()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


# what tar gives


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_tar_takes_a_run_of_any_name_and_gives_it_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sequencer_A" / name
    path.mkdir(parents=True)
    (path / "small").write_bytes(b"content")
    data, report, members = archive(Run(path))
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=data, check=True)
    assert (tmp_path / name / "small").read_bytes() == b"content"
    assert members == 2
    assert report.warnings == ()


def test_the_report_has_the_digest_of_the_stream_and_counts_all_members(run: Run) -> None:
    for number in range(100):
        (run.path / f"file{number}").write_bytes(b"x")
    (run.path / "link").symlink_to("small")
    os.link(run.path / "small", run.path / "other name")
    os.mkfifo(run.path / "pipe")
    data, report, members = archive(run)
    assert report.stream.size == len(data)
    assert report.stream.blake3 == blake3(data).hexdigest()
    assert members == len(members_of(data)) == 106


@pytest.mark.parametrize("name", [*NAMES[1:-1], "tar: .", "a\ntar: .\n"], ids=ascii)
def test_no_name_in_a_run_is_taken_for_two_members_or_for_a_message(name: str, run: Run) -> None:
    (run.path / name).write_bytes(b"x")
    (run.path / f"{name}.directory").mkdir()
    _, report, members = archive(run)
    assert members == 5
    assert report.warnings == ()


def test_a_changed_file_is_tolerated_by_its_real_name_whatever_is_in_it(run: Run) -> None:
    name = "rsync\n: ü\\.log"
    big_file(run.path / name)
    report = changed(run, append, tolerated=(name,))
    assert len(report.warnings) == 1
    with pytest.raises(RunNotSettled):
        changed(run, append, tolerated=("rsync",))


def test_the_users_own_options_for_tar_change_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAR_OPTIONS", "--exclude=small --gzip --no-such-option")
    assert archive(run)[2] == 3


def test_holes_are_not_archived_and_not_counted(run: Run) -> None:
    with (run.path / "sparse").open("wb") as sparse:
        sparse.truncate(1_000_000_000)
    data, *_ = archive(run)
    assert len(data) < 100_000
    assert run_size(run) < 100_000


def test_the_size_of_a_run_is_at_least_what_tar_gives_and_not_much_more(run: Run) -> None:
    for number in range(200):
        big_file(run.path / f"directory{number % 7}" / f"file{number}", 10_000)
    (run.path / "link").symlink_to("small")
    data, *_ = archive(run)
    assert len(data) <= run_size(run) + 10240 < len(data) * 1.5


def test_symbolic_links_are_archived_and_not_followed(run: Run, tmp_path: Path) -> None:
    outside = big_file(tmp_path / "outside" / "secret", 100_000)
    (run.path / "file").symlink_to(outside)
    (run.path / "directory").symlink_to(outside.parent)
    data, *_ = archive(run)
    members = members_of(data)
    assert {member.name for member in members if member.issym()} == {"./run_001/file", "./run_001/directory"}
    assert not any("secret" in member.name for member in members)
    assert run_size(run) < 20_000


def test_exclusions_leave_out_what_matches_at_any_depth(run: Run) -> None:
    big_file(run.path / "Demultiplexed" / "big", 10)
    big_file(run.path / "data" / "demux_1", 10)
    data, *_ = archive(run, ("Demultiplex*", "demux_*"))
    assert {member.name for member in members_of(data)} == {
        "./run_001", "./run_001/Empty", "./run_001/small", "./run_001/data",
    }  # fmt: skip


@pytest.mark.parametrize("pattern", ["-rf", "--checkpoint-action=exec=touch x", "with space", "'\"", ""])
def test_an_exclusion_is_a_pattern_and_no_option(pattern: str, run: Run) -> None:
    assert archive(run, (pattern,))[2] == 3


@pytest.mark.parametrize("pattern", ["*", ".", "?"])
def test_exclusions_that_leave_nothing_fail_and_say_so(pattern: str, run: Run) -> None:
    with hold(run, Rules((pattern,))) as source:
        assert "tar_exclusions exclude the whole run" in str(source.list().trouble)
    with pytest.raises(TarFailed, match="exclude the whole run"):
        archive(run, (pattern,))


@pytest.mark.parametrize("pattern", ["run_001", "run_*"])
def test_an_exclusion_is_not_compared_with_the_runs_own_name(pattern: str, run: Run) -> None:
    assert archive(run, (pattern,))[2] == 3


# what happens while tar reads


def test_a_file_that_grows_while_tar_reads_it_means_that_the_run_has_not_settled(run: Run) -> None:
    big_file(run.path / "data" / "big")
    with pytest.raises(RunNotSettled, match="run_001/data/big: file changed as we read it"):
        changed(run, append)


def test_a_file_that_shrinks_while_tar_reads_it_means_that_the_run_has_not_settled(run: Run) -> None:
    big_file(run.path / "big")
    with pytest.raises(RunNotSettled, match=r"run_001/big: File shrank by \d+ bytes; padding with zeros"):
        changed(run, lambda path: os.truncate(path, 1000))


def test_a_file_that_is_removed_before_tar_reads_it_means_that_the_run_has_not_settled(run: Run) -> None:
    both = {big_file(run.path / "one"), big_file(run.path / "two")}
    with pytest.raises(RunNotSettled, match="File removed before we read it"):
        changed(run, lambda path: (both - {path}).pop().unlink())


def test_a_file_that_appears_beside_the_one_that_tar_reads_is_a_warning_about_its_directory(run: Run) -> None:
    big_file(run.path / "data" / "big")
    report = changed(run, lambda path: (path.parent / "new").write_bytes(b"x"))
    assert report.warnings == ("./run_001/data: file changed as we read it",)


def test_a_file_whose_mode_changes_while_tar_reads_it_means_that_the_run_has_not_settled(run: Run) -> None:
    big_file(run.path / "big")
    with pytest.raises(RunNotSettled, match="big: file changed as we read it"):
        changed(run, lambda path: path.chmod(0o600))


def test_a_tolerated_file_in_the_runs_top_directory_may_change(run: Run) -> None:
    big_file(run.path / "rsync_7.log")
    report = changed(run, append, tolerated=("rsync*.log",))
    assert report.warnings == ("./run_001/rsync_7.log: file changed as we read it",)


def test_a_tolerated_file_may_vanish(run: Run) -> None:
    both = {big_file(run.path / "rsync_1.log"), big_file(run.path / "rsync_2.log")}
    report = changed(run, lambda path: (both - {path}).pop().unlink(), tolerated=("rsync*.log",))
    assert any(warning.endswith("File removed before we read it") for warning in report.warnings)


def test_a_file_of_a_tolerated_name_further_down_may_not_change(run: Run) -> None:
    big_file(run.path / "data" / "rsync_7.log")
    with pytest.raises(RunNotSettled, match=r"data/rsync_7\.log"):
        changed(run, append, tolerated=("rsync*.log",))


def test_a_tolerated_change_does_not_hide_another(run: Run) -> None:
    big_file(run.path / "rsync_7.log")
    big_file(run.path / "data" / "big")

    def change(_path: Path) -> None:
        append(run.path / "rsync_7.log")
        (run.path / "data").rename(run.path / "moved")

    def archive_changed(stillness: Stillness) -> None:
        with TarStream(stillness, Job(run)) as tar:
            change(open_file(tar))
            everything(tar)
            tar.report()
        stillness.require()  # tar says nothing where it had read the directory before the change

    with hold(run, Rules(tolerated=("rsync*.log",))) as source, pytest.raises((RunNotSettled, TarFailed)):
        archive_changed(Stillness(source, 0))


def test_a_socket_is_left_out_with_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        _, report, members = archive(run)
    assert report.warnings == ("./run_001/socket: socket ignored",)
    assert members == 3


def test_a_socket_beside_a_tolerated_change_is_a_warning_like_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path)
    big_file(run.path / "rsync.log")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        report = changed(run, append, tolerated=("rsync.log",))
    assert sorted(report.warnings) == [
        "./run_001/rsync.log: file changed as we read it", "./run_001/socket: socket ignored",
    ]  # fmt: skip


def test_of_many_warnings_only_the_last_are_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path)
    for number in range(50):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"socket{number}")
    assert len(archive(run)[1].warnings) == 20


UNREADABLE = """
    import sys
    from pathlib import Path
    from watcher.tar import TarStream
    from watcher.errors import TarFailed
    from watcher.job import Job
    from watcher.model import Run
    from watcher.source import Rules, Stillness, hold
    run = Run(Path(sys.argv[1]))
    rules = Rules(tolerated=("secret",))
    with hold(run, rules) as source, TarStream(Stillness(source, 0), Job(run)) as tar:
        while tar.read(1 << 16):
            pass
        try:
            print("not raised", tar.report())
        except TarFailed as error:
            print(error)
"""


def as_somebody(*arguments: str) -> str:
    """Run UNREADABLE as a user for whom modes count, though it may be root."""
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-c", textwrap.dedent(UNREADABLE), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_cannot_be_read_fails_with_tars_words_though_its_name_be_tolerated(what: str, run: Run) -> None:
    secret = run.path / "secret"
    if what == "file":
        secret.write_bytes(b"x")
    else:
        secret.mkdir()
    secret.chmod(0)
    words = as_somebody(str(run.path))
    secret.chmod(0o700)
    assert words.startswith("tar ended with exit status 2: ./run_001/secret: Cannot open: Permission denied")


def links(run: Run, outside: Path) -> None:
    run.path.symlink_to(outside)


def another_directory(run: Run, outside: Path) -> None:
    shutil.copytree(outside, run.path)


@pytest.mark.parametrize("swapped_for", [links, another_directory])
@pytest.mark.parametrize("when", ["before tar starts", "while tar reads"])
def test_what_is_archived_is_the_held_directory_whatever_has_its_name(
    swapped_for: Callable[[Run, Path], None], when: str, run: Run, tmp_path: Path
) -> None:
    big_file(run.path / "big")
    outside = big_file(tmp_path / "outside" / "secret", 1000)
    with hold(run, Rules()) as source:
        still = Stillness(source, 0)

        def swap() -> None:
            run.path.rename(tmp_path / "moved")
            swapped_for(run, outside.parent)

        if when == "before tar starts":
            swap()
        with TarStream(still, Job(run)) as tar:
            if when == "while tar reads":
                open_file(tar)
                swap()
            data, _, members = read_through(tar, still)
            assert members == 4
        assert {member.name for member in members_of(data)} >= {"./run_001", "./run_001/big", "./run_001/small"}
        assert outside.read_bytes() not in data
        with pytest.raises(RunNotSettled, match="was replaced by another directory, or moved"):
            still.require()


def test_a_rename_and_back_while_tar_reads_changes_nothing(run: Run, tmp_path: Path) -> None:
    big_file(run.path / "big")
    with hold(run, Rules()) as source:
        still = Stillness(source, 0)
        with TarStream(still, Job(run)) as tar:
            run.path.rename(tmp_path / "moved")
            run.path.symlink_to(tmp_path)
            data = everything(tar)
            run.path.unlink()
            (tmp_path / "moved").rename(run.path)
            tar.report()
            assert len(members_of(data)) == 4
        still.require()


@pytest.mark.parametrize("what", ["missing", "symbolic link", "file"])
def test_a_run_that_is_no_directory_cannot_be_held(what: str, run: Run, tmp_path: Path) -> None:
    run.path.rename(tmp_path / "moved")
    if what == "symbolic link":
        run.path.symlink_to(tmp_path / "moved")
    elif what == "file":
        run.path.write_bytes(b"x")
    with pytest.raises(RunNotSettled, match="is no directory that can be archived"):
        archive(run)


def test_a_run_that_vanishes_while_tar_reads_it_is_no_success(run: Run) -> None:
    big_file(run.path / "one")
    big_file(run.path / "two")
    with pytest.raises((TarFailed, RunNotSettled)):
        changed(run, lambda _: shutil.rmtree(run.path))


# tar itself


def test_a_tar_that_is_killed_has_failed_though_its_stream_ended(run: Run) -> None:
    big_file(run.path / "big")
    with stream(run) as tar:
        open_file(tar)
        os.kill(tar._process.pid, signal.SIGKILL)
        everything(tar)
        with pytest.raises(TarFailed, match="tar was ended by signal 9: it said nothing"):
            tar.report()


def test_a_cancelled_job_ends_tar_and_raises_the_reason(run: Run) -> None:
    big_file(run.path / "big")
    job = Job(run)
    with hold(run, Rules()) as source, TarStream(Stillness(source, 0), job) as tar:
        open_file(tar)
        job.cancel(Interrupted("stopped by a test"))
        assert tar._process.wait() == -signal.SIGKILL
        with pytest.raises(Interrupted, match="stopped by a test"):
            everything(tar)
        with pytest.raises(Interrupted, match="stopped by a test"):
            tar.report()


def test_a_stream_that_is_left_early_leaves_no_tar_behind(run: Run) -> None:
    big_file(run.path / "big")
    with stream(run) as tar:
        open_file(tar)
    assert tar._process.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{tar._process.pid}").exists()


def test_a_machine_without_tar_says_so_and_it_is_not_the_runs_fault(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match=r"cannot run 'tar'.*is it installed"):
        archive(run)
    with pytest.raises(CannotRun, match=r"cannot run 'tar'.*is it installed"):
        tar_version()


def test_another_tar_than_gnus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tar_version().startswith("tar (GNU tar) ")
    (tmp_path / "tar").write_text("#!/bin/sh\necho bsdtar 3.7.2\n")
    (tmp_path / "tar").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CannotRun, match=r"not GNU tar, but 'bsdtar 3\.7\.2'"):
        tar_version()


# staging


@pytest.fixture
def archive_store(tmp_path: Path) -> ArchiveStore:
    for name in ("archives", "keys"):
        (tmp_path / name).mkdir()
    return ArchiveStore(tmp_path / "archives", tmp_path / "keys")


def test_the_longest_name_is_what_leaves_room_for_the_suffix(archive_store: ArchiveStore) -> None:
    assert MAX_RUN_NAME_BYTES == 247
    archive_store.final_archive("x" * 247).write_bytes(b"")
    archive_store.final_key("x" * 247).write_bytes(b"")
    with pytest.raises(OSError, match="File name too long"):
        archive_store.final_archive("x" * 248).write_bytes(b"")


@pytest.mark.parametrize(
    "name", ["run_001", "x" * 200, "x" * 247, "é" * 123, "测" * 82, "-rf", "line\nbreak"], ids=ascii
)
def test_staged_names_fit_are_hidden_and_carry_the_token(name: str, archive_store: ArchiveStore) -> None:
    for path in (archive_store.staged_archive(name, TOKEN), archive_store.staged_key(name, TOKEN)):
        assert len(os.fsencode(path.name)) <= NAME_MAX
        assert path.name.startswith(".")
        assert path.name.endswith(".partial")
        path.write_bytes(b"x")
        assert (path, TOKEN) in archive_store.staged()
    assert archive_store.staged_tokens(name) == (TOKEN,)
    assert archive_store.staged_archive(name, TOKEN).parent == archive_store.final_archive(name).parent
    assert archive_store.staged_key(name, TOKEN).parent == archive_store.final_key(name).parent


def test_two_long_names_with_one_beginning_have_different_staged_names(archive_store: ArchiveStore) -> None:
    one, two = "x" * 246 + "1", "x" * 246 + "2"
    assert archive_store.staged_archive(one, TOKEN) != archive_store.staged_archive(two, TOKEN)
    stage(archive_store, one, TOKEN)
    assert archive_store.staged_tokens(two) == ()
    archive_store.drop(two, TOKEN)
    assert archive_store.staged_tokens(one) == (TOKEN,)


def test_a_run_whose_name_begins_like_another_runs_staged_file_is_another_run(archive_store: ArchiveStore) -> None:
    stage(archive_store, f"run_001.{OTHER_TOKEN}", TOKEN)
    assert archive_store.staged_tokens("run_001") == ()
    archive_store.drop("run_001", TOKEN)
    assert archive_store.staged_tokens(f"run_001.{OTHER_TOKEN}") == (TOKEN,)


def test_published_and_foreign_files_are_nobodys_staged_files(archive_store: ArchiveStore) -> None:
    for name in ("run_001.tar.gpg", ".run_001.tar.gpg.partial", f".run_001.{'A' * 32}.tar.gpg.partial", ".hidden"):
        (archive_store.destination / name).write_bytes(b"x")
    assert archive_store.staged() == []


def test_the_archive_is_never_others_whatever_the_umask_and_the_wrapped_key_is_its_owners_alone(
    archive_store: ArchiveStore,
) -> None:
    modes = {}
    for umask in (0o000, 0o022, 0o027):
        before = os.umask(umask)
        try:
            archive = stage(archive_store, "run_001", TOKEN)
            archive_store.publish("run_001", archive)
        finally:
            os.umask(before)
        finals = (archive_store.final_archive("run_001"), archive_store.final_key("run_001"))
        modes[umask] = [stat.S_IMODE(path.stat().st_mode) for path in finals]
        for path in finals:
            path.unlink()
    assert modes == {0o000: [0o640, 0o600], 0o022: [0o640, 0o600], 0o027: [0o640, 0o600]}


def stage(archive_store: ArchiveStore, name: str, token: str, content: bytes = b"archive") -> Archive:
    """Stage an archive and its key as a worker does; return what the document would say of them."""
    with writing(archive_store.staged_archive(name, token)) as file:
        file.write(content)
    key_sha256 = archive_store.stage_key(name, token, b"key of " + content)
    return Archive(
        file=archive_store.final_archive(name).name, size=len(content), sha256=hashlib.sha256(content).hexdigest(),
        tar_sha256="", tar_size=0, key_file=archive_store.final_key(name).name, key_sha256=key_sha256,
        recipient="", members=1, token=token,
    )  # fmt: skip


def refuse_all(size: int) -> NoReturn:
    raise Interrupted(f"stopped by a test after {size} bytes")


def test_a_file_is_gone_when_its_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def fail() -> None:
        with writing(path) as file:
            file.write(b"x")
            assert path.exists()
            raise Interrupted("stopped by a test")

    with pytest.raises(Interrupted):
        fail()
    assert not path.exists()


@pytest.mark.root
def test_a_full_disk_is_no_space_and_leaves_no_partial_file(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(tmp_path)], check=True)
    path = tmp_path / "file"
    try:
        with pytest.raises(NoSpace, match=f"cannot write '{path}': No space left on device"), writing(path) as file:
            file.write(b"x" * 3_000_000)
        assert os.listdir(tmp_path) == []
        with writing(path) as file:
            file.write(b"x" * 1_000_000)
        assert path.stat().st_size == 1_000_000
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_writing_takes_no_name_that_is_taken(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    make(path)
    before = path.lstat()
    with pytest.raises(NoSpace, match="File exists"), writing(path):
        pass
    assert path.lstat().st_ino == before.st_ino
    assert not (tmp_path / "nowhere").exists()


def test_writing_into_a_missing_directory_is_no_space(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "file"
    with pytest.raises(NoSpace, match=f"cannot write '{path}': No such file or directory"), writing(path):
        pass


def test_reading_what_is_not_there_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="cannot read"), reading(tmp_path / "absent"):
        pass


# publishing


def test_publishing_gives_both_files_their_final_names_and_leaves_nothing_staged(archive_store: ArchiveStore) -> None:
    archive_store.publish("run_001", stage(archive_store, "run_001", TOKEN))
    assert os.listdir(archive_store.destination) == ["run_001.tar.gpg"]
    assert os.listdir(archive_store.keys) == ["run_001.key.gpg"]
    assert archive_store.final_archive("run_001").read_bytes() == b"archive"
    assert archive_store.final_key("run_001").read_bytes() == b"key of archive"


def test_the_key_has_its_name_before_the_archive(archive_store: ArchiveStore) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    archive_store.staged_archive("run_001", TOKEN).unlink()
    with pytest.raises(ClaimLost, match="is gone: another worker has taken the run over"):
        archive_store.publish("run_001", archive)
    assert archive_store.final_key("run_001").exists()
    assert not archive_store.final_archive("run_001").exists()


def test_an_archive_has_no_name_without_its_key(archive_store: ArchiveStore) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    archive_store.staged_key("run_001", TOKEN).unlink()
    with pytest.raises(ClaimLost):
        archive_store.publish("run_001", archive)
    assert not archive_store.final_archive("run_001").exists()


def test_publishing_twice_is_publishing_once(archive_store: ArchiveStore) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    archive_store.publish("run_001", archive)
    before = archive_store.final_archive("run_001").stat()
    archive_store.publish("run_001", archive)
    assert archive_store.final_archive("run_001").stat().st_ino == before.st_ino


FOREIGN: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"somebody else's"),
    "empty file": lambda path: path.touch(),
    "directory": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("which", ["final_archive", "final_key"])
@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_under_a_final_name_is_named_and_never_overwritten(
    what: str, which: str, archive_store: ArchiveStore
) -> None:
    final: Path = getattr(archive_store, which)("run_001")
    archive = stage(archive_store, "run_001", TOKEN)
    FOREIGN[what](final)
    before = final.lstat()
    words = rf"'{final}' exists and is not of this attempt; it is never overwritten"
    with pytest.raises(PublishFailed, match=words):
        archive_store.refuse_foreign("run_001")
    with pytest.raises(PublishFailed, match=words):
        archive_store.publish("run_001", archive)
    assert final.lstat().st_ino == before.st_ino
    assert final.lstat().st_mtime_ns == before.st_mtime_ns
    assert archive_store.staged_archive("run_001", TOKEN).exists()


# adopting


@pytest.mark.parametrize("renamed", [(), ("key",), ("key", "archive")], ids=str)
def test_an_announced_archive_is_adopted_however_far_it_was_published(
    renamed: tuple[str, ...], archive_store: ArchiveStore
) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    for what in renamed:
        getattr(archive_store, f"staged_{what}")("run_001", TOKEN).rename(
            getattr(archive_store, f"final_{what}")("run_001")
        )
    assert archive_store.adopt("run_001", archive)
    assert archive_store.final_archive("run_001").read_bytes() == b"archive"
    assert archive_store.final_key("run_001").read_bytes() == b"key of archive"
    assert archive_store.staged() == []


@pytest.mark.parametrize("which", ["archive", "key"])
def test_what_has_another_digest_than_announced_gets_no_name(which: str, archive_store: ArchiveStore) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    wrong = replace(archive, sha256="0" * 64) if which == "archive" else replace(archive, key_sha256="0" * 64)
    assert not archive_store.adopt("run_001", wrong)
    assert os.listdir(archive_store.destination) == [archive_store.staged_archive("run_001", TOKEN).name]
    assert os.listdir(archive_store.keys) == [archive_store.staged_key("run_001", TOKEN).name]


@pytest.mark.parametrize("missing", ["staged_archive", "staged_key"])
def test_half_of_an_archive_is_not_adopted(missing: str, archive_store: ArchiveStore) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    getattr(archive_store, missing)("run_001", TOKEN).unlink()
    assert not archive_store.adopt("run_001", archive)
    assert not archive_store.is_published("run_001")


def test_adopting_can_be_stopped_while_it_reads(archive_store: ArchiveStore) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    with pytest.raises(Interrupted, match="stopped by a test"):
        archive_store.adopt("run_001", archive, refuse_all)
    assert not archive_store.is_published("run_001")


ADOPTED_BESIDE_ITS_MAKER = """
import sys
from pathlib import Path
from watcher.archiving import ArchiveStore
from watcher.model import Archive

archive_store, archive = ArchiveStore(Path(sys.argv[1]), Path(sys.argv[2])), Archive(*eval(sys.argv[3]))
left = int(sys.argv[4])

def maker_names_it_before_the_nth_look(event, args):
    global left
    if event == "open" and str(args[0]).endswith((".gpg", ".partial")):
        left -= 1
        if left == 0:
            archive_store.publish("run_001", archive)

sys.addaudithook(maker_names_it_before_the_nth_look)
print(archive_store.adopt("run_001", archive))
"""


@pytest.mark.parametrize("look", [1, 2, 3])
def test_an_archive_that_its_maker_names_between_two_looks_at_it_is_adopted(
    look: int, archive_store: ArchiveStore
) -> None:
    archive = stage(archive_store, "run_001", TOKEN)
    fields = repr(dataclasses.astuple(archive))
    command = [
        sys.executable,
        "-c",
        ADOPTED_BESIDE_ITS_MAKER,
        str(archive_store.destination),
        str(archive_store.keys),
        fields,
        str(look),
    ]
    done = subprocess.run(command, cwd=archive_store.keys, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert archive_store.is_published("run_001")
    assert archive_store.staged() == []


@pytest.mark.parametrize("which", ["destination", "keys"])
@pytest.mark.parametrize("step", ["free_bytes", "stage_key", "publish", "adopt"])
def test_a_directory_that_is_not_mounted_any_more_takes_nothing(
    which: str, step: str, archive_store: ArchiveStore, tmp_path: Path
) -> None:
    marks = [mark(place, "worker_1") for place in (archive_store.destination, archive_store.keys)]
    marked = ArchiveStore(archive_store.destination, archive_store.keys, marks)
    archive = stage(marked, "run_001", TOKEN)
    arguments = {"free_bytes": (), "stage_key": (OTHER_TOKEN, b"wrapped")}.get(step, (archive,))
    place: Path = getattr(archive_store, which)
    place.rename(tmp_path / "elsewhere")
    place.mkdir()
    with pytest.raises(NoSpace, match=f"is '{place}' unmounted"):
        getattr(marked, step)("run_001", *arguments)
    assert os.listdir(place) == []
    place.rmdir()
    (tmp_path / "elsewhere").rename(place)
    assert marked.adopt("run_001", archive)


@pytest.mark.root
@pytest.mark.parametrize("unreadable", ["receipt", "directory"])
def test_what_cannot_be_read_is_not_taken_for_absent(
    unreadable: str, archive_store: ArchiveStore, tmp_path: Path
) -> None:
    make_reachable(tmp_path)
    archive_store.stage_receipt("run_001", stage(archive_store, "run_001", TOKEN))
    (receipt,) = archive_store.destination.glob(".*.manifest.partial")
    receipt.chmod(0o600)
    tmp_path.chmod(0o755)
    archive_store.destination.chmod(0o755 if unreadable == "receipt" else 0o711)
    finished, former = (
        (lambda: archive_store.is_finished("run_001", TOKEN)),
        (lambda: archive_store.staged_tokens("run_001")),
    )
    look: Callable[[], object] = finished if unreadable == "receipt" else former
    with as_nobody(), pytest.raises(NoSpace, match="cannot read"):
        look()


def test_dropping_one_claims_files_leaves_those_of_another(archive_store: ArchiveStore) -> None:
    stage(archive_store, "run_001", TOKEN)
    stage(archive_store, "run_001", OTHER_TOKEN)
    stage(archive_store, "run_002", TOKEN)
    archive_store.drop("run_001", TOKEN)
    assert archive_store.staged_tokens("run_001") == (OTHER_TOKEN,)
    assert archive_store.staged_tokens("run_002") == (TOKEN,)


def test_a_receipt_goes_before_the_files_that_it_speaks_of(archive_store: ArchiveStore) -> None:
    archive_store.stage_receipt("run_001", stage(archive_store, "run_001", TOKEN))
    staged = archive_store.staged_key("run_001", TOKEN)
    staged.unlink()
    staged.mkdir()  # which no unlink removes
    with pytest.raises(NoSpace, match="cannot remove"):
        archive_store.drop("run_001", TOKEN)
    assert not archive_store.is_finished("run_001", TOKEN)


# on the disk, in this order


def test_names_that_another_has_given_are_on_the_disk_before_the_staged_ones_go(
    archive_store: ArchiveStore, unavailable: Callable[[str], NoReturn]
) -> None:
    """So that no power cut takes both of a file's names."""
    require_strace(unavailable)
    stage(archive_store, "run_001", TOKEN)
    os.link(archive_store.staged_key("run_001", TOKEN), archive_store.final_key("run_001"))
    program = "import sys, pathlib, watcher.archiving; "
    program += "watcher.archiving.ArchiveStore(*map(pathlib.Path, sys.argv[1:3])).drop('run_001', sys.argv[3])"
    command = [sys.executable, "-c", program, str(archive_store.destination), str(archive_store.keys), TOKEN]
    done = traced(
        command, "fsync,unlink,unlinkat", archive_store.keys.parent / "trace", longest=255, cwd=archive_store.keys
    )
    first_gone = re.search(r"unlink(at)?\(.*partial", done)
    assert first_gone
    for directory in (archive_store.destination, archive_store.keys):
        assert re.search(rf"fsync\(\d+<{re.escape(str(directory))}>\) += 0", done[: first_gone.start()])
    assert archive_store.staged_tokens("run_001") == ()


def test_every_file_is_on_the_disk_before_it_has_its_name_and_the_names_before_the_record(
    site: Site, unavailable: Callable[[str], NoReturn]
) -> None:
    require_strace(unavailable)
    site.complete(site.make_run())
    calls = "fsync,fdatasync,link,linkat,rename,pwrite64"
    done = traced(site.once(), calls, site.root / "trace", env=site.environment)

    def place(pattern: str, after: int = 0) -> int:
        match = re.compile(pattern).search(done, after)
        assert match, f"{pattern} after:\n{done[after:][:2000]}"
        return match.start()

    archive, key = (rf"\.run_001\.[0-9a-f]{{32}}\.{what}\.gpg\.partial" for what in ("tar", "key"))
    directories = [re.escape(str(path)) for path in (site.archives, site.keys)]
    key_named = place(rf'link(at)?\(.*{key}".*run_001\.key\.gpg"')
    archive_named = place(rf'link(at)?\(.*{archive}".*run_001\.tar\.gpg"')
    assert place(rf"f(data)?sync\(\d+<.*{archive}>\) += 0") < key_named
    assert place(rf"f(data)?sync\(\d+<.*{key}>\) += 0") < key_named < archive_named
    for directory in directories:
        # The staged names too: an announced archive is one that a power cut cannot take away.
        assert place(rf"fsync\(\d+<{directory}>\) += 0") < key_named
    names_on_disk = [place(rf"fsync\(\d+<{directory}>\) += 0", archive_named) for directory in directories]
    record = place(rf"f(data)?sync\(\d+<{re.escape(str(site.database))}", max(names_on_disk))
    assert record > max(names_on_disk)
    assert json.loads(json.dumps(site.document()))["status"] == "encrypted"
