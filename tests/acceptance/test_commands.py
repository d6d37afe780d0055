"""The commands as an operator types them."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import COMMAND, Site, assert_same_tree

from watcher.commands.parser import COMMANDS
from watcher.model import Status

EXISTING_SITE = """\
statusdb:
  username: myuser
  password: mypassword
  url: couch.example.org        # no scheme: https
  database: archiving_status
sequencing_path: {root}/sequencing
destination_path: {root}/archives
gpg_receiver: ops@example.org
ignore: [nosync, transferring]
tar_exclusions: ["Demultiplex*", "demux_*"]
log_file: {root}/dataflow_archive.log
log_level: INFO                 # DEBUG, INFO, WARN, ERROR
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=300)


def archived(site: Site) -> Site:
    """Archive one run."""
    site.complete(site.make_run())
    assert site.command("once").returncode == 0
    return site


def test_version_and_help_need_no_configuration() -> None:
    assert run("--version").stdout.startswith("dataflow_archive ")
    words = run("--help").stdout
    assert all(command.name in words for command in COMMANDS)
    assert "exit codes" in words


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_each_command_explains_itself(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 4


def test_a_wrong_command_line_exits_with_2() -> None:
    assert run("archive-everything").returncode == 2
    assert run("restore", "run_001").returncode == 2


def test_the_configuration_is_found_at_its_usual_place_and_by_the_environment(site: Site) -> None:
    usual = site.root / "conf" / "df_archive.yaml"
    usual.parent.mkdir()
    site.config.rename(usual)
    for environment in ({"HOME": str(site.root)}, {"ARCHIVE_CONFIG": str(usual)}):
        done = subprocess.run(
            [*COMMAND, "check"], capture_output=True, text=True, check=False, env={**site.environment, **environment}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(usual) in done.stdout


def test_the_file_of_an_existing_installation_works_unchanged(site: Site) -> None:
    site.config.write_text(EXISTING_SITE.format(root=site.root), encoding="utf-8")
    done = site.command("check", GNUPGHOME=str(site.gnupg), HOME=str(site.root))
    assert "FAIL  status database" in done.stdout
    assert "couch.example.org" in done.stdout
    assert done.stdout.count("FAIL") == 1, done.stdout


def test_check_tells_a_line_each_and_changes_nothing(site: Site) -> None:
    before = sorted(path.name for path in site.root.rglob("*"))
    done = site.command("check")
    assert done.returncode == 0, done.stdout
    for what in ("sequencing_path", "destination_path", "free space", "gpg", "tar", "recipient", "database", "inotify"):
        assert what in done.stdout
    assert sorted(path.name for path in site.root.rglob("*")) == before


@pytest.mark.parametrize("has_database", [False, True], ids=["before the first start", "later"])
def test_check_tells_what_the_watcher_would_do_with_each_run_and_it_does_that(has_database: bool, site: Site) -> None:
    site.complete(site.make_run("archived"))
    if has_database:
        assert site.command("once").returncode == 0
        site.make_run("kept")
        assert site.command("hold", "kept").returncode == 0
    site.complete(site.make_run("new"))
    site.complete(site.make_run("broken"), "23\n")
    site.make_run("not_yet")
    site.complete(site.make_run("_name"))
    done = site.command("check", "--plan", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"mark": "ok", "what": "config", "detail": str(site.config)} in report["findings"]
    planned = {Path(each["path"]).name: each["does"] for each in report["plan"]}
    first = {"kept": "nothing"} if has_database else {"archived": "archives it"}
    assert planned == {"new": "archives it", "broken": "nothing", "not_yet": "nothing", "_name": "nothing", **first}
    assert all(each["why"] for each in report["plan"])
    lines = site.command("check", "--plan").stdout.splitlines()
    assert any(line.startswith("broken ") and "exit code 23" in line for line in lines)
    site.command("once")
    archived = {document["_id"] for document in site.statusdb().with_status(Status.ENCRYPTED)}
    assert archived == {"archived", *(name for name, does in planned.items() if does == "archives it")}


def test_check_fails_where_something_would_keep_the_watcher_from_archiving(site: Site) -> None:
    site.configure(gpg_receiver="nobody@example.org", destination_path=str(site.root / "absent"))
    done = site.command("check")
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 2
    assert "nobody@example.org" in done.stdout
    assert "absent" in done.stdout


def test_once_archives_what_is_ready_and_exits(site: Site) -> None:
    runs = [site.complete(site.make_run(f"run_{number}")) for number in range(3)]
    not_ready = site.make_run("not_ready")
    assert site.command("once").returncode == 0
    for one in runs:
        assert_same_tree(one, site.restore(one.name))
    assert site.document(not_ready.name) is None
    assert site.command("once").returncode == 0


def test_status_shows_counts_and_json_shows_documents(site: Site) -> None:
    archived(site)
    assert "1 encrypted" in site.command("status").stdout
    assert "run_001" not in site.command("status").stdout
    assert "run_001" in site.command("status", "--all").stdout
    report = json.loads(site.command("status", "--all", "--json").stdout)
    assert report["counts"] == {"encrypted": 1}
    assert report["runs"][0]["archive"]["file"] == "run_001.tar.gpg"
    assert report["skipped"] == []


def test_status_ends_quietly_when_its_reader_leaves(site: Site) -> None:
    archived(site)
    done = subprocess.run(
        ["bash", "-c", f"{COMMAND[0]} -c '{site.config}' status --all --json | head -c 1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""


def test_retry_refuses_what_has_not_failed(site: Site) -> None:
    archived(site)
    done = site.command("retry", "run_001")
    assert done.returncode == 1
    assert "'encrypted'" in done.stderr
    done = site.command("retry", "run_999")
    assert done.returncode == 1
    assert "'run_999' is not in the status database" in done.stderr


def test_restore_gives_the_run_back_and_refuses_to_overwrite(site: Site) -> None:
    archived(site)
    to = site.root / "back"
    to.mkdir()
    assert site.command("restore", "run_001", "--to", str(to)).returncode == 0
    assert_same_tree(site.sequencing / "sequencer_A" / "run_001", to / "run_001")
    again = site.command("restore", "run_001", "--to", str(to))
    assert again.returncode == 1
    assert "not overwritten" in again.stderr
    assert [path.name for path in to.iterdir()] == ["run_001"]


def test_restore_notices_an_archive_that_is_not_the_recorded_one(site: Site) -> None:
    archived(site)
    archive = site.archives / "run_001.tar.gpg"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    done = site.command("restore", "run_001", "--to", str(site.root))
    assert done.returncode == 1
    assert "not restored" in done.stderr
    assert not (site.root / "run_001").exists()
    assert "Traceback" not in done.stderr


def test_restore_names_what_is_missing(site: Site) -> None:
    archived(site)
    assert "run_999" in site.command("restore", "run_999", "--to", str(site.root)).stderr
    assert "is not a directory" in site.command("restore", "run_001", "--to", str(site.root / "absent")).stderr
    (site.keys / "run_001.key.gpg").unlink()
    done = site.command("restore", "run_001", "--to", str(site.root))
    assert done.returncode == 1
    assert "run_001.key.gpg" in done.stderr


@pytest.fixture
def short(site: Site) -> Iterator[Path]:
    """A directory with a short name: gpg's agent makes a socket in it, whose path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def demo(site: Site, short: Path, *options: str) -> str:
    environment = {**site.environment, "TMPDIR": str(short)}
    done = subprocess.run([*COMMAND, "demo", *options], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_does_the_main_job_and_leaves_nothing_behind(site: Site, short: Path) -> None:
    assert "byte for byte" in demo(site, short)
    assert list(short.iterdir()) == []


def test_the_demo_keeps_its_directory_when_asked(site: Site, short: Path) -> None:
    demo(site, short, "--keep")
    [kept] = short.iterdir()
    shown = subprocess.run(
        [*COMMAND, "-c", str(kept / "df_archive.yaml"), "status", "--all"], capture_output=True, text=True, check=False
    )
    assert "2 encrypted" in shown.stdout
