"""What the machine refuses the watcher, and what a terminal or a changing run does to it."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from barrier import Gate
from machine import limited_command, mounted, require_namespace
from network_mount import TYPE, NetworkMount
from sites import COMMAND, Site, assert_same_tree, wait_until


@pytest.fixture
def network(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A directory on a network file system."""
    path = tmp_path / "network"
    path.mkdir()
    try:
        mount = NetworkMount(path)
        mount.__enter__()
    except OSError as error:
        unavailable(f"FUSE cannot be mounted here: {error}")
    yield path
    mount.__exit__(None, None, None)


@pytest.mark.root
def test_sqlite_on_a_network_file_system_is_refused_by_every_command(site: Site, network: Path) -> None:
    site.configure(statusdb={"url": f"sqlite://{network}/status.db"})
    words = f"statusdb.url: '{network}/status.db' lies on a network file system ({TYPE})"
    for command in ((), ("once",), ("status",), ("retry", "run_001"), ("restore", "run_001", "--to", "/tmp")):
        done = site.command(*command)
        assert done.returncode == 3
        assert words in done.stderr
        assert "CouchDB for several hosts" in done.stderr
    checked = site.command("check")
    assert checked.returncode == 1
    assert f"FAIL  status database: {words}" in checked.stdout


@pytest.mark.root
def test_runs_on_a_network_file_system_are_rescanned_more_often_and_that_is_said(site: Site, network: Path) -> None:
    site.configure(sequencing_path=str(network), network_rescan_interval="7 s")
    daemon = site.start().wait_ready()
    line = daemon.wait_for_log("network file system")
    assert "WARNING" in line
    assert f"({TYPE})" in line
    assert "every 7 s" in line
    assert daemon.stop() == 0
    checked = site.command("check")
    assert checked.returncode == 0
    assert f"warn  sequencing_path: '{network}' on {TYPE}; events of other hosts do not come" in checked.stdout


@pytest.fixture
def remote_sequencer(site: Site, network: Path) -> Path:
    """A sequencer that is a link to a network file system, beside local ones."""
    link = site.sequencing / "sequencer_remote"
    link.symlink_to(network)
    return link


@pytest.mark.root
def test_one_sequencer_on_a_network_file_system_is_enough_and_is_named(site: Site, remote_sequencer: Path) -> None:
    site.configure(network_rescan_interval="7 s")
    daemon = site.start().wait_ready()
    line = daemon.wait_for_log("network file system")
    assert f"'{remote_sequencer}' is on a network file system ({TYPE})" in line
    assert "every 7 s" in line
    assert daemon.log.count("network file system") == 1
    assert daemon.stop() == 0
    checked = site.command("check").stdout
    assert f"ok    sequencing_path: '{site.sequencing}' on " in checked
    assert f"warn  sequencing_path: '{remote_sequencer}' on {TYPE}; events of other hosts do not come" in checked
    site.configure(ignore=[remote_sequencer.name])
    assert TYPE not in site.command("check").stdout


@pytest.mark.root
def test_beside_a_network_file_system_what_no_event_tells_of_is_found_by_the_shorter_interval(
    site: Site, remote_sequencer: Path, unavailable: Callable[[str], NoReturn]
) -> None:
    require_namespace(unavailable)
    site.configure(rescan_interval="1 h", network_rescan_interval="0.3 s")
    daemon = site.start(prefix=limited_command("max_inotify_instances", 0)).wait_ready()
    site.complete(site.make_run())
    daemon.wait_for_log("run_001: registered .* noticed by rescan")
    assert daemon.stop() == 0


@pytest.mark.root
def test_a_network_file_system_that_is_mounted_later_is_noticed_and_said(site: Site, network: Path) -> None:
    site.configure(rescan_interval="1 h", network_rescan_interval="0.3 s")
    daemon = site.start().wait_ready()
    subprocess.run(["mount", "--bind", str(network), str(site.sequencing / "sequencer_B")], check=True)
    try:
        line = daemon.wait_for_log("network file system")
        daemon.wait_for_log("something was mounted or unmounted in .*: a rescan finds")
        assert f"'{site.sequencing / 'sequencer_B'}' is on a network file system ({TYPE})" in line
        wait_until(lambda: daemon.log.count("runs seen in") > 4, "rescans in the shorter interval")
        assert daemon.log.count("network file system") == 1
    finally:
        subprocess.run(["umount", str(site.sequencing / "sequencer_B")], check=True)
    site.complete(site.make_run("run_001", "sequencer_B"))
    site.wait_for()
    assert daemon.stop() == 0


@pytest.mark.root
def test_a_sequencer_that_is_mounted_later_is_watched(site: Site, tmp_path: Path) -> None:
    site.configure(rescan_interval="1 h")
    daemon = site.start().wait_ready()
    with mounted(site.sequencing / "sequencer_B"):
        run = site.make_run("run_001", "sequencer_B")
        daemon.wait_for_log("something was mounted or unmounted in")
        wait_until(lambda: daemon.log.count("runs seen in") == 2, "the rescan for it")
        site.complete(run)
        daemon.wait_for_log("run_001: registered .* noticed by event")
        site.wait_for()
        assert daemon.stop() == 0


def unreadable_sequencing_path(site: Site) -> str:
    site.sequencing.chmod(0)
    return f"sequencing_path: '{site.sequencing}' is not readable"


def unwritable_destination(site: Site) -> str:
    site.archives.chmod(0o555)
    return f"destination_path: '{site.archives}' is not writable"


def unwritable_keys(site: Site) -> str:
    site.keys.mkdir(mode=0o555)
    return f"run_keys_path: '{site.keys}' is not writable"


def keys_that_cannot_be_made(site: Site) -> str:
    parent = site.root / "closed"
    parent.mkdir(mode=0o555)
    site.configure(run_keys_path=str(parent / "keys"))
    return f"run_keys_path: '{parent}' is not writable"


def unreadable_config(site: Site) -> str:
    site.config.chmod(0)
    return f"config file '{site.config}' cannot be read: Permission denied"


def config_that_is_a_directory(site: Site) -> str:
    site.config.unlink()
    site.config.mkdir()
    return f"config file '{site.config}' cannot be read: Is a directory"


def unwritable_log_file(site: Site) -> str:
    log = site.root / "absent" / "df_archive.log"
    site.configure(log_file=str(log))
    return f"log_file: '{log}' cannot be written: No such file or directory"


def database_in_a_missing_directory(site: Site) -> str:
    site.configure(statusdb={"url": f"sqlite://{site.root}/absent/status.db"})
    return f"statusdb.url: directory '{site.root}/absent' of the SQLite file does not exist; create it"


@pytest.mark.parametrize(
    "mistake",
    [
        unreadable_sequencing_path,
        unwritable_destination,
        unwritable_keys,
        keys_that_cannot_be_made,
        unreadable_config,
        config_that_is_a_directory,
        unwritable_log_file,
        database_in_a_missing_directory,
    ],
)
@pytest.mark.parametrize("command", [[], ["once"]], ids=["watch", "once"])
def test_what_this_user_may_not_do_is_refused_and_named(
    mistake: Callable[[Site], str], command: list[str], site: Site, unprivileged: list[str]
) -> None:
    expected = mistake(site)
    done = subprocess.run(
        [*unprivileged, *COMMAND, "-c", str(site.config), *command],
        capture_output=True, text=True, check=False, env=site.environment,
    )  # fmt: skip
    for path in (site.sequencing, site.archives, site.config):
        path.chmod(0o755)
    assert done.returncode == 3
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not site.database.exists()


def test_once_finishes_what_it_has_begun_at_the_first_signal(site: Site, gate: Gate) -> None:
    site.configure(max_concurrent_jobs=1)
    for number in range(3):
        site.complete(site.make_run(f"run_{number}"))
    daemon = site.start("once", PATH=gate.path)
    daemon.wait_for_log(": claimed")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for_log("finishing what runs")
    gate.open()
    assert daemon.wait() == 0
    assert ": claimed" not in daemon.log.partition("finishing what runs")[2]
    assert site.statusdb().count_by_status() == {"encrypted": 1, "pending": 2}


def test_ctrl_c_twice_at_a_terminal_cancels(site: Site, gate: Gate) -> None:
    site.complete(site.make_run())
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [COMMAND[0], "-c", str(site.config)], site.environment | {"PATH": gate.path})
    wait_until(site.staged_files, "the archive is begun")
    os.write(terminal, b"\x03")
    said = read_until(terminal, b"finishing what runs")
    os.write(terminal, b"\x03")
    said += read_until(terminal, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, said.decode()
    os.close(terminal)
    assert b"Traceback" not in said
    assert site.staged_files() == []
    document = site.document()
    assert document is not None
    assert (document["status"], document["failure_count"]) == ("pending", 0)


def read_until(terminal: int, word: bytes | None) -> bytes:
    """Return what the terminal shows up to a word, or to its end."""
    said = b""
    try:
        while word is None or word not in said:
            said += os.read(terminal, 4096)
    except OSError:
        assert word is None, said.decode()
    return said


def test_a_run_that_changes_while_it_is_archived_costs_no_attempt_and_is_archived_when_it_is_still(
    site: Site,
) -> None:
    run = site.make_run(size=100_000_000)
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            with (run / "Data" / "L001" / "C1.cbcl").open("ab") as file:
                file.write(b"more")
            stop.wait(0.001)

    writer = threading.Thread(target=grow)
    writer.start()
    site.complete(run)
    daemon = site.start()
    daemon.wait_for_log("run_001: released, to be tried again .*C1.cbcl: file changed as we read it")
    document = site.document()
    stop.set()
    writer.join()
    assert document is not None
    assert document["failure_count"] == 0
    assert site.wait_for()["failure_count"] == 0
    assert_same_tree(run, site.restore())
    assert daemon.stop() == 0


def test_a_run_that_vanishes_while_it_is_archived_leaves_nothing_and_the_next_goes_on(site: Site) -> None:
    run = site.complete(site.make_run(size=300_000_000))
    for number in range(50):
        (run / f"file{number}").write_bytes(b"x" * 1000)
    daemon = site.start()
    wait_until(site.staged_files, "the archive grows")
    shutil.rmtree(run)
    daemon.wait_for_log("run_001: (released|failed)")
    site.complete(site.make_run("run_002"))
    site.wait_for("run_002")
    assert daemon.stop() == 0
    document = site.document("run_001")
    assert document is not None
    assert document["status"] == "pending"
    assert document["last_error"]["kind"] in ("TarFailed", "RunNotSettled")
    assert site.staged_files() == []
    assert not (site.archives / "run_001.tar.gpg").exists()
    assert "Traceback" not in daemon.log
