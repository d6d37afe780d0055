"""The README's installation, typed as it stands on a machine with a real systemd and Python 3.14."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sites import wait_until
from systemd_container import PYTHON_3_14, Container, Tree, Unavailable, debian_tree
from test_readme import block

pytestmark = pytest.mark.systemd

REPOSITORY = Path(__file__).parent.parent.parent
CHECKOUT = "/root/checkout"
LEFT_OUT = [".git", ".venv", "node_modules", "__pycache__", "*.egg-info", "build"]
UNIT = "dataflow-archive-watch"
CONFIG = "/etc/dataflow_archive/df_archive.yaml"
PASSWORD_FILE = "/etc/dataflow_archive/statusdb_password"
GROUP = "dataflow-archive"
AS_ARCHIVER = ("runuser", "-l", "dataflow-archive", "-s", "/bin/sh", "-c")

SITE = """\
statusdb:
  url: sqlite:///var/lib/dataflow-archive/status.db
sequencing_path: /data/sequencing
nice: 5
io_class: idle
destination_path: /data/archives
gpg_receiver: ops@example.org
minimum_free_space: 1 MB
quiet_period: 0
"""

PREPARE = """
mkdir -p /data/sequencing/sequencer_A /data/archives
chown dataflow-archive: /data/archives
gpg --batch --passphrase '' --quick-generate-key ops@example.org default default never
gpg --armor --export ops@example.org > /root/recipient.asc
"""


def shell(machine: Container | Tree, script: str, timeout: float = 300) -> str:
    return machine.run("bash", "-euo", "pipefail", "-c", f"cd {CHECKOUT}; {script}", timeout=timeout).stdout


@pytest.fixture(scope="module")
def tree(unavailable: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A Debian with the checkout in it, and nothing installed from it."""
    try:
        mine = debian_tree(PYTHON_3_14).copy(tmp_path_factory.mktemp("machine") / "tree")
    except Unavailable as error:
        unavailable(str(error))
    mine.copy_in(REPOSITORY, CHECKOUT, exclude=LEFT_OUT)
    return mine


@pytest.fixture(scope="module")
def machine(tree: Tree) -> Iterator[Container]:
    """The machine after the README's installation, booted, the watcher running."""
    shell(tree, block("install"), timeout=900)
    with Container(tree, hostname="archiver-1") as booted:
        shell(booted, PREPARE)
        booted.write(CONFIG, SITE)
        checked = shell(booted, f"cd /root; {block('configure')}")
        assert "FAIL" not in checked, checked
        yield booted


def make_run(machine: Container, name: str, megabytes: int = 1, sequencer: str = "sequencer_A") -> None:
    run = f"/data/sequencing/{sequencer}/{name}"
    machine.run("mkdir", "-p", f"{run}/Data")
    machine.run("dd", "if=/dev/urandom", f"of={run}/Data/big", "bs=1M", f"count={megabytes}", "status=none")
    machine.run("touch", f"{run}/.metadata_rsync_exitcode")


def document(machine: Container, name: str) -> dict[str, Any]:
    report = json.loads(machine.run(*AS_ARCHIVER, "dataflow_archive status --all --json").stdout)
    return next((run for run in report["runs"] if run["_id"] == name), {})


def wait_for(machine: Container, name: str, status: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = document(machine, name)
        return found if found.get("status") == status else None

    found: dict[str, Any] = wait_until(look, f"'{name}' becomes '{status}'")
    return found


def show(machine: Container, name: str) -> str:
    return machine.run("systemctl", "show", "--property", name, "--value", UNIT).stdout.strip()


def drop_in(machine: Container, name: str, text: str) -> None:
    machine.write(f"/etc/systemd/system/{UNIT}.service.d/{name}.conf", text)
    machine.run("systemctl", "daemon-reload")


def test_a_run_is_archived_under_all_the_hardening_and_restored_by_the_readme_s_lines(machine: Container) -> None:
    make_run(machine, "run_001")
    wait_for(machine, "run_001", "encrypted")
    variables, pipeline = block("restore").split("\n", 1)
    assert variables.startswith("RUN=run_001")
    # The keys lie in the archiver's home; the private key is root's.
    here = "RUN=run_001 KEYS=/var/lib/dataflow-archive/run_keys ARCHIVES=/data/archives TO=/root/restored"
    shell(machine, f"mkdir /root/restored; {here}\n{pipeline}")
    machine.run("diff", "-r", "/data/sequencing/sequencer_A/run_001", "/root/restored/run_001")
    assert "not archived" not in shell(machine, block("operate"))


def test_completion_and_the_manual_page_are_installed(machine: Container) -> None:
    shell(
        machine, "cd /usr/local/share; . ./bash-completion/completions/dataflow_archive; complete -p dataflow_archive"
    )
    assert "dataflow_archive" in shell(machine, "cat /usr/local/share/man/man1/dataflow_archive.1")


def test_systemd_has_nothing_to_say_against_the_installed_unit(machine: Container) -> None:
    verify = ("systemd-analyze", "verify", "--man=no", "--recursive-errors=no")
    verified = machine.run(*verify, f"/etc/systemd/system/{UNIT}.service")
    assert verified.stdout + verified.stderr == ""


def test_the_journal_tells_a_run_s_story_by_its_field(machine: Container) -> None:
    make_run(machine, "run_002")
    wait_for(machine, "run_002", "encrypted")
    story = machine.journal("-u", UNIT, "RUN_ID=run_002")
    words = [entry["MESSAGE"].split(" ")[:2] for entry in story]
    assert words == [["run_002:", "registered"], ["run_002:", "claimed"], ["run_002:", "encrypted"]]
    assert {entry["PRIORITY"] for entry in story} == {"6"}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in story} == {"dataflow_archive"}
    assert {(entry["SEQUENCER"], entry["WORKER"]) for entry in story} == {("sequencer_A", "archiver-1")}
    assert (story[-1]["PHASE"], story[-1]["ATTEMPT"]) == ("publishing", "1")


def test_systemd_shows_what_the_watcher_does(machine: Container) -> None:
    assert show(machine, "Type") == "notify"
    assert re.search(r"\d+ running, \d+ waiting; \d+ watches", show(machine, "StatusText"))


def test_the_group_of_the_unit_s_umask_is_the_program_s_own_choice(machine: Container) -> None:
    assert show(machine, "UMask") == "0077"
    status = machine.run("cat", f"/proc/{show(machine, 'MainPID')}/status").stdout
    assert "Umask:\t0027" in status


def test_a_sequencer_that_is_mounted_later_reaches_the_service(machine: Container) -> None:
    machine.run("mkdir", "-p", "/data/sequencing/sequencer_B")
    machine.run("mount", "-t", "tmpfs", "later", "/data/sequencing/sequencer_B")
    try:
        make_run(machine, "run_later", sequencer="sequencer_B")
        wait_for(machine, "run_later", "encrypted")
    finally:
        machine.run("umount", "/data/sequencing/sequencer_B")


def test_the_key_is_the_archiver_s_alone_and_the_archive_the_group_s_to_read(machine: Container) -> None:
    make_run(machine, "run_003")
    wait_for(machine, "run_003", "encrypted")
    files = ("/var/lib/dataflow-archive/run_keys/run_003.key.gpg", "/data/archives/run_003.tar.gpg")
    modes = machine.run("stat", "--format", "%a %U", *files).stdout.splitlines()
    assert modes == ["600 dataflow-archive", "640 dataflow-archive"]


def test_a_stop_finishes_the_run_in_progress(machine: Container) -> None:
    make_run(machine, "run_004", megabytes=300)
    wait_for(machine, "run_004", "processing")
    machine.run("systemctl", "stop", UNIT, timeout=300)
    assert document(machine, "run_004")["status"] == "encrypted"
    assert show(machine, "Result") == "success"
    machine.run("systemctl", "start", UNIT)


def test_a_second_signal_gives_the_run_back_and_counts_as_a_clean_end(machine: Container) -> None:
    make_run(machine, "run_005", megabytes=600)
    wait_for(machine, "run_005", "processing")
    machine.run("systemctl", "stop", "--no-block", UNIT)
    wait_until(lambda: show(machine, "StatusText").startswith("finishing"), "the first signal is seen")
    machine.run("systemctl", "kill", "--kill-whom=main", UNIT)
    wait_until(lambda: show(machine, "ActiveState") == "inactive", "the service has ended")
    assert (show(machine, "ExecMainStatus"), show(machine, "Result")) == ("143", "success")
    given_back = document(machine, "run_005")
    assert (given_back["status"], given_back["failure_count"]) == ("pending", 0)
    assert machine.run("find", "/data/archives", "-name", "*.partial").stdout == ""
    machine.run("systemctl", "start", UNIT)
    wait_for(machine, "run_005", "encrypted")


def test_a_configuration_error_is_told_once_and_not_tried_again(machine: Container) -> None:
    machine.run("systemctl", "stop", UNIT)
    machine.write(CONFIG, SITE + "tar_exclusion: [x]\n")
    try:
        assert machine.run("systemctl", "start", UNIT, check=False).returncode != 0
        assert (show(machine, "ExecMainStatus"), show(machine, "NRestarts")) == ("3", "0")
        assert show(machine, "ActiveState") == "failed"
        told = [entry["MESSAGE"] for entry in machine.journal("-u", UNIT, "_COMM=dataflow_archiv")]
        assert any("tar_exclusions" in message for message in told)
    finally:
        machine.write(CONFIG, SITE)
        machine.run("systemctl", "reset-failed", UNIT)
        machine.run("systemctl", "start", UNIT)


def test_a_watcher_that_hangs_is_started_again_and_goes_on_with_its_run(machine: Container) -> None:
    drop_in(machine, "watchdog", "[Service]\nWatchdogSec=5\n")
    machine.run("systemctl", "restart", UNIT)
    before = int(show(machine, "NRestarts"))
    make_run(machine, "run_006", megabytes=300)
    wait_for(machine, "run_006", "processing")
    machine.run("kill", "-STOP", show(machine, "MainPID"))
    wait_until(lambda: int(show(machine, "NRestarts")) > before, "systemd starts it again")
    assert wait_for(machine, "run_006", "encrypted")["failure_count"] == 0


@contextmanager
def on_a_couchdb_that_is_away(machine: Container, *lines: str) -> Iterator[None]:
    """Let the configuration name a CouchDB that nobody listens for, and a user; `lines` are further keys of it."""
    couch = "\n  ".join(["http://127.0.0.1:1", "username: archiver", *lines])
    machine.run("systemctl", "stop", UNIT)
    machine.write(CONFIG, SITE.replace("sqlite:///var/lib/dataflow-archive/status.db", couch))
    try:
        yield
    finally:
        machine.run("systemctl", "stop", UNIT)
        machine.write(CONFIG, SITE)
        machine.run("systemctl", "reset-failed", UNIT)  # the starts of all these tests count as too many
        machine.run("systemctl", "start", UNIT)


def assert_the_watcher_has_a_password(machine: Container) -> None:
    """Without one it would have ended with a configuration error."""
    machine.run("systemctl", "reset-failed", UNIT)
    machine.run("systemctl", "start", "--no-block", UNIT)
    wait_until(lambda: show(machine, "StatusText") == "waiting for the status database", "it waits")


def test_the_password_file_of_the_installation_serves_the_watcher_and_the_commands_and_nobody_else(
    machine: Container,
) -> None:
    assert machine.run("stat", "--format", "%a %U %G", PASSWORD_FILE).stdout.split() == ["640", "root", GROUP]
    shell(machine, f"echo secret > {PASSWORD_FILE}")
    with on_a_couchdb_that_is_away(machine, f"password_file: {PASSWORD_FILE}"):
        assert_the_watcher_has_a_password(machine)
        checked = machine.run(*AS_ARCHIVER, "dataflow_archive check", check=False)
    assert checked.returncode == 1
    assert "FAIL  status database: no good answer from 'http://127.0.0.1:1'" in checked.stdout


def test_the_password_may_be_a_credential_which_a_command_has_only_from_systemd(machine: Container) -> None:
    machine.write("/etc/credstore/statusdb_password", "secret\n", mode="0600")
    try:
        with on_a_couchdb_that_is_away(machine):
            assert_the_watcher_has_a_password(machine)
            without = machine.run(*AS_ARCHIVER, "dataflow_archive check", check=False)
            with_it = machine.run("sh", "-c", block("credential"), check=False)
    finally:
        machine.run("rm", "/etc/credstore/statusdb_password")
    assert without.returncode == 3
    assert "exists in the unit alone" in without.stderr
    assert with_it.returncode == 1, with_it.stderr
    assert "FAIL  status database: no good answer from 'http://127.0.0.1:1'" in with_it.stdout
