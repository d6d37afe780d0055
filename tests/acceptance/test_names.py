"""Runs are archived and restored whatever they are called, or it is said why not."""

from __future__ import annotations

import os

import pytest
from couchdb_server import Database
from sites import Site, assert_same_tree

from watcher.source import SENTINEL

HOSTILE = (
    "with spaces",
    "with 'single' and \"double\" quotes",
    "-rf",
    "--exclude=x",
    "plus+plus",
    "100%25",
    "colon:slash",
    "what?",
    "hash#tag",
    "line\nbreak",
    "tab\tand\\backslash",
    "$(touch x)`date`",
    "ünïcödé-测序",
    "x" * 200,
    "y" * 247,
    "é" * 123,
)


@pytest.fixture(params=["sqlite", "couchdb"])
def site_on(request: pytest.FixtureRequest, site: Site) -> Site:
    """A site on each kind of status database."""
    if request.param == "couchdb":
        database: Database = request.getfixturevalue("couchdb_database")
        site.use_couchdb(database.url, database.name)
    return site


def test_hostile_names_are_archived_and_restored_like_any_other(site_on: Site) -> None:
    runs = [site_on.complete(site_on.make_run(name, size=1000)) for name in HOSTILE]
    done = site_on.command("once")
    assert done.returncode == 0, done.stderr
    for run in runs:
        document = site_on.document(run.name)
        assert document is not None
        assert document["status"] == "encrypted", document
        assert_same_tree(run, site_on.restore(run.name))
    assert site_on.staged_files() == []


def test_the_restore_command_takes_hostile_names(site_on: Site) -> None:
    runs = [site_on.complete(site_on.make_run(name, size=1000)) for name in HOSTILE]
    assert site_on.command("once").returncode == 0
    to = site_on.root / "back"
    to.mkdir()
    for run in runs:
        done = site_on.command("restore", "--to", str(to), "--", run.name)
        assert done.returncode == 0, done.stderr
        assert_same_tree(run, to / run.name)
    assert len(list(to.iterdir())) == len(HOSTILE)


BAD = {
    "_underscore": ("_underscore", "its name starts with '_', which CouchDB keeps for itself; rename it"),
    os.fsdecode(b"latin-\xe9"): (r"latin-\udce9", "its name is not valid UTF-8; rename it"),
    "z" * 248: ("z" * 248, "its name has 248 bytes and may have 247; rename it"),
}
"""Each name, how it is shown, and what is said against it."""


def test_a_name_that_cannot_be_archived_is_told_and_the_others_go_on(site: Site) -> None:
    for name in BAD:
        site.complete(site.make_run(name, size=10))
    good = site.complete(site.make_run("good", size=10))
    done = site.command("once")
    assert site.wait_for("good")["path"] == str(good)
    shown = [line.rstrip().split(maxsplit=3) for line in site.command("status").stdout.splitlines()]
    for name, reason in BAD.values():
        path = site.sequencing / "sequencer_A" / name
        assert done.stderr.count(f"'{path}' is not archived: {reason}") == 1, done.stderr
        assert [name, "sequencer_A", "unusable", f"'{path}': {reason}"] in shown
    assert "ERROR" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_sequencers_with_one_run_name_are_a_collision(site: Site) -> None:
    first = site.complete(site.make_run("run_001", "sequencer_A"))
    daemon = site.start().wait_ready()
    document = site.wait_for("run_001")
    before = (site.archives / "run_001.tar.gpg").read_bytes()
    second = site.complete(site.make_run("run_001", "sequencer_B"))
    line = daemon.wait_for_log("collision")
    assert "ERROR" in line
    assert str(first) in line
    assert str(second) in line
    assert "collision" in site.command("status").stdout
    assert daemon.stop() == 0
    assert (site.archives / "run_001.tar.gpg").read_bytes() == before
    assert site.document("run_001") == document


def test_ignored_sequencers_and_runs_are_left_alone(site: Site) -> None:
    site.configure(ignore=["nosync", "transferring"])
    site.complete(site.make_run("in_nosync", "nosync"))
    site.complete(site.make_run("transferring"))
    daemon = site.start().wait_ready()
    site.complete(site.make_run("late", "nosync"))
    site.complete(site.make_run("run_001"))
    site.wait_for("run_001")
    assert daemon.stop() == 0
    assert site.statusdb().count_by_status() == {"encrypted": 1}


def test_what_tar_exclusions_name_is_not_in_the_archive(site: Site) -> None:
    site.configure(tar_exclusions=["Demultiplex*", "demux_*"])
    run = site.make_run()
    (run / "Demultiplexed").mkdir()
    (run / "Demultiplexed" / "big").write_bytes(b"x")
    (run / "demux_1").write_bytes(b"x")
    site.complete(run)
    assert site.command("once").returncode == 0
    restored = site.restore()
    left_out = {"Demultiplexed", "demux_1"}
    assert {path.name for path in run.iterdir()} - {path.name for path in restored.iterdir()} == left_out


def test_a_symbolic_link_is_no_run_and_nothing_outside_is_read(site: Site) -> None:
    outside = site.root / "outside"
    outside.mkdir()
    (outside / SENTINEL).write_bytes(b"0\n")
    (site.sequencing / "sequencer_A" / "linked").symlink_to(outside)
    done = site.command("once")
    assert "symbolic link" in done.stderr
    assert site.document("linked") is None
    assert list(site.archives.glob("*.gpg")) == []


def test_a_sentinel_that_is_a_directory_is_told(site: Site) -> None:
    run = site.make_run()
    (run / SENTINEL).mkdir()
    assert "not a file" in site.command("once").stderr
    assert site.document() is None


def test_a_held_run_waits_for_its_exit_code_to_become_zero(site: Site) -> None:
    daemon = site.start().wait_ready()
    run = site.complete(site.make_run(), "23\n")
    line = daemon.wait_for_log("exit code 23")
    assert "WARNING" in line
    assert "exit code 23" in " ".join(site.command("status").stdout.split())
    assert site.document() is None
    site.complete(run, "0\n")
    site.wait_for()


def test_the_policy_presence_takes_any_exit_code(site: Site) -> None:
    site.configure(sentinel_policy="presence")
    site.complete(site.make_run(), "23\n")
    assert site.command("once").returncode == 0
    assert site.wait_for()["failure_count"] == 0
