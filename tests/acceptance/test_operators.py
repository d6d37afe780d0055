"""What operators do to runs: hold, release, cancel, retry; and the history that remembers it."""

from __future__ import annotations

import json

import pytest
from barrier import Gate
from couchdb_server import Database
from sites import Site, assert_same_tree, children, wait_until
from test_readme import block


def stand_in_the_way(site: Site, *names: str) -> None:
    """Let each of these runs fail: a foreign file has its archive's name."""
    for name in names:
        (site.archives / f"{name}.tar.gpg").write_bytes(b"somebody else's")


def test_a_run_that_is_held_before_its_sentinel_comes_is_archived_when_it_is_released(site: Site) -> None:
    daemon = site.start().wait_ready()
    run = site.make_run()
    done = site.command("hold", "run_001")
    assert (done.returncode, done.stdout) == (0, "run 'run_001' is held: no worker takes it until `release`\n")
    site.complete(run)
    site.complete(site.make_run("run_002"))
    site.wait_for("run_002")  # the event of the first came before
    assert site.wait_for(status="held")["failure_count"] == 0
    assert "run_001: claimed" not in daemon.log
    assert "1 held" in site.command("status").stdout
    assert site.command("release", "run_001").stdout == "run 'run_001' is pending again\n"
    site.wait_for()
    assert daemon.stop() == 0
    assert_same_tree(run, site.restore())


def test_no_worker_takes_a_run_that_is_held_while_it_waits(site: Site, gate: Gate) -> None:
    site.configure(max_concurrent_jobs=1)
    site.complete(site.make_run("run_001"))
    daemon = site.start(PATH=gate.path).wait_ready()
    site.wait_for("run_001", "processing")
    site.complete(site.make_run("run_002"))
    daemon.wait_for_log("run_002: registered")
    assert site.command("hold", "run_002").returncode == 0
    gate.open()
    site.wait_for("run_001")
    site.complete(site.make_run("run_003"))  # the one thread comes to it after run_002
    site.wait_for("run_003")
    assert site.wait_for("run_002", "held")
    assert daemon.stop() == 0


@pytest.mark.parametrize("server", ["sqlite", "couchdb"])
def test_a_cancelled_run_is_held_nothing_of_it_stays_and_it_can_be_archived_later(
    server: str, site: Site, gate: Gate, request: pytest.FixtureRequest
) -> None:
    if server == "couchdb":
        database: Database = request.getfixturevalue("couchdb_database")
        site.use_couchdb(database.url, database.name)
    run = site.complete(site.make_run())
    daemon = site.start(PATH=gate.path).wait_ready()
    wait_until(gate.is_reached, "tar runs")
    done = site.command("cancel", "run_001")
    assert (done.returncode, done.stderr) == (0, "")
    assert "run 'run_001' is held, no attempt counted: worker 'worker_1' stops" in done.stdout
    daemon.wait_for_log("run_001: stopped: run 'run_001' is 'held'")
    wait_until(lambda: site.staged_files() == [], "what was staged is removed")
    assert children("tar") == []
    document = site.wait_for(status="held")
    assert document["failure_count"] == 0
    assert "claim" not in document
    gate.open()
    assert site.command("release", "run_001").returncode == 0
    site.wait_for()
    assert daemon.stop() == 0
    assert_same_tree(run, site.restore())
    assert [step["event"] for step in site.wait_for()["history"]] == [
        "register", "claim", "cancel", "unhold", "claim", "record",
    ]  # fmt: skip


def test_all_failed_runs_are_retried_and_each_that_cannot_be_is_named(site: Site) -> None:
    stand_in_the_way(site, "run_001", "run_002")
    for name in ("run_001", "run_002", "run_003"):
        site.complete(site.make_run(name))
    daemon = site.start().wait_ready()
    for name in ("run_001", "run_002"):
        site.wait_for(name, "failed")
    site.wait_for("run_003")
    assert daemon.stop() == 0
    for name in ("run_001", "run_002"):
        (site.archives / f"{name}.tar.gpg").unlink()
    done = site.command("retry", "run_001", "run_003", "run_404")
    assert (done.returncode, done.stdout) == (1, "run 'run_001' is pending again, with no failures counted\n")
    assert "run 'run_003' is 'encrypted'" in done.stderr
    assert "run 'run_404' is not in the status database" in done.stderr
    assert site.command("retry", "--all-failed").stdout == "run 'run_002' is pending again, with no failures counted\n"
    assert site.command("retry", "--all-failed").stdout == "nothing was changed\n"
    assert site.command("once").returncode == 0


@pytest.mark.parametrize("arguments", [(), ("run_001", "--all-failed")], ids=["neither", "both"])
def test_retry_wants_names_or_all_failed(arguments: tuple[str, ...], site: Site) -> None:
    done = site.command("retry", *arguments)
    assert done.returncode == 2
    assert "name runs, or say --all-failed" in done.stderr


@pytest.mark.parametrize(
    ("typed", "options", "status", "code"),
    [
        ("n\n", (), "pending", 1),
        ("\n", (), "pending", 1),
        ("\x04", (), "pending", 1),
        ("y\n", (), "held", 0),
        ("", ("--yes",), "held", 0),
    ],
    ids=["no", "empty", "end of file", "yes", "--yes"],
)
def test_who_sits_at_a_terminal_is_asked(
    typed: str, options: tuple[str, ...], status: str, code: int, site: Site
) -> None:
    stand_in_the_way(site, "run_001")
    site.complete(site.make_run())
    assert site.command("once").returncode == 1
    shown = site.on_terminal("hold", "run_001", *options, typed=typed, code=code)
    assert ("hold run_001? [y/N]" in shown) == (not options)
    assert site.wait_for(status=status)


def test_a_run_is_held_and_released_by_the_pages_words(site: Site) -> None:
    site.make_run("run_002")
    site.complete(site.make_run("run_001"))
    assert site.command("once").returncode == 0
    shown = site.lines_of_shell(block("hold"))
    held, *history, released = shown.splitlines()
    assert ("is held" in held, "is pending again" in released) == (True, True)
    assert [line.split()[2] for line in history[1:]] == ["register", "hold"]


def test_a_run_that_is_nowhere_cannot_be_held(site: Site) -> None:
    site.complete(site.make_run("twice", "sequencer_A"))
    site.make_run("twice", "sequencer_B")
    site.start("once").wait()
    for name in ("run_404", "../run", "_bad", "x" * 300):
        done = site.command("hold", name)
        assert done.returncode == 1
        assert "is not in the status database" in done.stderr
    done = site.command("hold", "twice")
    assert "'encrypted': only a run that waits" in done.stderr


def test_the_history_says_what_happened_who_did_it_and_why(site: Site) -> None:
    stand_in_the_way(site, "run_001")
    for name in ("run_001", "run_002"):
        site.complete(site.make_run(name))
    assert site.command("once").returncode == 1
    assert site.command("hold", "run_001").returncode == 0
    steps = json.loads(site.command("history", "run_001", "--json").stdout)["steps"]
    assert [(step["event"], step["status"]) for step in steps] == [
        ("register", "pending"), ("claim", "processing"), ("fail", "pending"), ("hold", "held"),
    ]  # fmt: skip
    assert (steps[2]["by"], steps[2]["kind"]) == ("worker_1", "PublishFailed")
    assert "@" in steps[3]["by"]
    lines = site.command("history", "run_001").stdout.splitlines()
    assert len(lines) == 5
    assert "PublishFailed: " in lines[3]
    of_all = json.loads(site.command("history", "--json").stdout)["steps"]
    assert {step["run"] for step in of_all} == {"run_001", "run_002"}
    assert of_all == sorted(of_all, key=lambda step: str(step["at"]))
    assert len(json.loads(site.command("history", "--last", "2", "--json").stdout)["steps"]) == 2
    assert site.command("history", "--last", "0").returncode == 2
    assert "is not in the status database" in site.command("history", "run_404").stderr
