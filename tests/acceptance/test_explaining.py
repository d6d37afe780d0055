"""`explain` tells an operator why a run does not move, of each kind of run that a site may have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from barrier import Gate
from sites import Site, wait_until
from test_readme import block, names, table

from watcher.overview import Cause

EXPLAINED = {
    "nowhere": (1, "unknown", "no directory of this name"),
    "nosync": (0, "ignored", "is in `ignore`"),
    "not_yet": (0, "no sentinel", "drop .metadata_rsync_exitcode"),
    "broken": (0, "held by its sentinel", "exit code 23"),
    "_name": (0, "unusable", "rename the run"),
    "link": (0, "unusable", "symbolic link"),
    "new": (0, "not registered", "no watcher runs on this host"),
    "full": (0, "no room", "bytes are missing: '"),
    "failing": (0, "paused", "PublishFailed: "),
    "kept": (0, "held", "said `hold`"),
    "odd": (0, "unreadable", "updated_at is a number"),
    "good": (0, "encrypted", "it was archived at"),
    "twice": (0, "collision", "has the same name and is registered"),
    "../etc": (1, "unknown", "misspelt"),
}
"""For each run: the exit code, one of the causes, and some of the words."""


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    """A site with a run for each cause that lasts."""
    site = Site(tmp_path_factory.mktemp("troubled") / "site", gnupg, recipient, ignore=["nosync"], retry_delay="1 h")
    site.is_warm = True
    for name in ("good", "twice", "nosync", "_name", "failing", "odd"):
        site.complete(site.make_run(name))
    site.complete(site.make_run("broken"), "23\n")
    site.make_run("not_yet")
    (site.archives / "failing.tar.gpg").write_bytes(b"somebody else's")
    assert site.command("once").returncode == 1
    (site.sequencing / "sequencer_A" / "link").symlink_to(site.complete(site.make_run("good_one", "sequencer_B")))
    site.complete(site.make_run("twice", "sequencer_B"))
    site.complete(site.make_run("kept"))
    assert site.command("hold", "kept").returncode == 0
    site.store().put({**(site.document("odd") or {}), "updated_at": 5})
    site.configure(minimum_free_space="1000 TB")
    site.complete(site.make_run("full"))
    assert site.command("once").returncode == 1
    site.complete(site.make_run("new"))
    yield site
    site.close()


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_run_is_explained(name: str, troubled: Site) -> None:
    code, cause, words = EXPLAINED[name]
    done = troubled.command("explain", name)
    assert (done.returncode, done.stderr) == (code, "")
    assert f"{name}: {cause}\n  why:  " in done.stdout
    assert words in done.stdout
    report = json.loads(troubled.command("explain", name, "--json").stdout)
    assert report["run"] == name
    assert cause in [each["cause"] for each in report["explanations"]]
    assert all(each.keys() == {"cause", "why", "remedy"} for each in report["explanations"])


def test_every_cause_has_its_row() -> None:
    rows = table("cause | means")
    assert {name for row in rows for name in names(row[0])} == set(Cause)


def test_an_explanation_has_the_runs_history(troubled: Site) -> None:
    lines = troubled.command("explain", "failing").stdout.splitlines()
    assert [line.split()[2] for line in lines[4:]] == ["register", "claim", "fail"]


def test_a_run_is_explained_by_the_pages_words(site: Site) -> None:
    site.complete(site.make_run())
    assert site.command("once").returncode == 0
    shown = site.lines_of_shell(block("explain"))
    assert shown.startswith("run_001: encrypted\n")


def test_a_run_that_is_worked_on_is_explained_with_who_has_it_and_how_alive_that_is(site: Site, gate: Gate) -> None:
    site.complete(site.make_run())
    daemon = site.start(PATH=gate.path).wait_ready()
    wait_until(gate.is_reached, "tar runs")
    assert "working" in (shown := site.command("explain", "run_001").stdout)
    assert "worker 'worker_1' is archiving 0 %" in shown
    daemon.kill()
    assert "worker 'worker_1' has it: " in (shown := site.command("explain", "run_001").stdout)
    assert " ago" in shown
    site.configure(lease_seconds=10)
    site.store().put({**site.wait_for(status="processing"), "updated_at": "2026-04-28T10:05:00+00:00"})
    shown = site.command("explain", "run_001").stdout
    assert "run_001: stale" in shown
    assert "and its lease is 0:00:10: the worker is dead" in shown
