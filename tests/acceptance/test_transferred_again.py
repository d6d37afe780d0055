"""A run that changes after it was archived: it is said, marked, and archived again when an operator asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sites import Site, assert_same_tree
from test_readme import block

from watcher.model import Document
from watcher.source import SENTINEL

WARNING = "is not what was archived any more"


@pytest.fixture
def archived(site: Site) -> Path:
    """A run that is archived."""
    run = site.complete(site.make_run())
    once(site)
    assert document_of(site)["status"] == "encrypted"
    return run


def once(site: Site) -> str:
    """Rescan all there is, as each start of the watcher does; return the log."""
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    return done.stderr


def document_of(site: Site) -> Document:
    document = site.document()
    assert document is not None
    return document


def shown(site: Site) -> list[dict[str, str]]:
    """Return what `status` shows as changed."""
    directories = json.loads(site.command("status", "--json").stdout)["skipped"]
    return [each for each in directories if each["state"] == "changed"]


def renew_sentinel(run: Path) -> None:
    (run / "new").write_text("0\n", encoding="ascii")
    (run / "new").rename(run / SENTINEL)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the sentinel renamed over": (renew_sentinel, "its sentinel was written again"),
    "the sentinel rewritten": (lambda run: (run / SENTINEL).write_text("0\n"), "its sentinel was written again"),
    "a file more": (lambda run: (run / "late").write_text("late"), "its top directory holds something else"),
    "a file less": (lambda run: (run / "RunInfo.xml").unlink(), "its top directory holds something else"),
    "a directory more": (lambda run: (run / "Late").mkdir(), "its top directory holds something else"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_encrypted_is_logged_marked_and_shown(site: Site, archived: Path, change: str) -> None:
    before = document_of(site)
    do, words = CHANGES[change]
    do(archived)
    (said,) = [line for line in once(site).splitlines() if WARNING in line]
    assert words in said
    document = document_of(site)
    assert document["changed_since"]
    assert {**document, "changed_since": "", "updated_at": "", "_rev": ""} == {
        **before, "changed_since": "", "updated_at": "", "_rev": "",
    }  # fmt: skip
    assert [each["path"] for each in shown(site)] == [str(archived)]
    assert str(archived) in site.command("status").stdout


def test_the_running_watcher_says_it_at_its_next_rescan_and_once(site: Site, archived: Path) -> None:
    site.configure(rescan_interval="1 s")
    daemon = site.start().wait_ready()
    (archived / "late").write_text("late")
    daemon.wait_for_log(WARNING)
    site.complete(site.make_run("run_002"))
    site.wait_for("run_002")
    (archived.parent / "run_002" / "late").write_text("late")  # told by a rescan after the first one
    daemon.wait_for_log(f"run_002: .*{WARNING}")
    assert daemon.log.count(f"run_001: '{archived}' {WARNING}") == 1


def test_a_log_that_the_transfer_leaves_is_no_change(site: Site, archived: Path) -> None:
    (archived / "rsync_7.log").write_text("sent 8 files")
    assert WARNING not in once(site)
    assert "changed_since" not in document_of(site)
    assert shown(site) == []


def test_a_changed_run_is_archived_again_by_the_readme_s_words(site: Site, archived: Path) -> None:
    (archived / "late").write_text("late")
    renew_sentinel(archived)
    once(site)
    first = (site.archives / "run_001.tar.gpg").read_bytes()
    site.lines_of_shell(block("again"))
    assert WARNING not in once(site)
    document = document_of(site)
    assert document["status"] == "encrypted"
    assert "changed_since" not in document
    assert shown(site) == []
    assert_same_tree(archived, site.restore())
    (aside,) = site.archives.glob("run_001.tar.gpg.2*Z")
    assert aside.read_bytes() == first
    assert len(list(site.archives.glob("run_001.manifest.jsonl.gz.gpg.2*Z"))) == 1
    assert len(list(site.keys.glob("run_001.key.gpg.2*Z"))) == 1


def test_a_rearchive_that_was_cut_off_is_done_again(site: Site, archived: Path) -> None:
    (archived / "late").write_text("late")
    once(site)
    (site.keys / "run_001.key.gpg").rename(site.keys / "run_001.key.gpg.20260428T100500Z")
    done = site.command("rearchive", "run_001")
    assert (done.returncode, done.stderr) == (0, "")
    assert "key.gpg" not in done.stdout
    once(site)
    assert_same_tree(archived, site.restore())


def test_what_has_not_changed_is_not_archived_again(site: Site, archived: Path) -> None:
    del archived
    before = sorted(site.archives.iterdir())
    done = site.command("rearchive", "run_001", "run_404")
    assert done.returncode == 1
    assert "run 'run_001' has not changed since it was archived" in done.stderr
    assert "run 'run_404' is not in the status database" in done.stderr
    assert sorted(site.archives.iterdir()) == before


def test_without_moving_the_old_files_away_nothing_is_overwritten(site: Site, archived: Path) -> None:
    (archived / "late").write_text("late")
    once(site)
    first = (site.archives / "run_001.tar.gpg").read_bytes()
    assert site.command("retry", "run_001").returncode == 0
    site.command("once")
    assert document_of(site)["last_error"]["kind"] == "PublishFailed"
    assert (site.archives / "run_001.tar.gpg").read_bytes() == first
