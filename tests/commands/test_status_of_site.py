"""`status` shows the site in one screen: what needs a person comes first, and a hung disk keeps no answer back."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sites import COMMAND, PATIENCE_SECONDS, Site

from watcher.commands.parser import STATUSES
from watcher.model import Status
from watcher.overview import ORDER, PERSONS, Cause, gathered, within

LEAVE_SCREEN = "\x1b[?1049l"
"""xterm: back to the screen that was there before."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    """A site with an archived run, one that failed, one that is held, and one whose transfer failed."""
    site = Site(tmp_path_factory.mktemp("mixed") / "site", gnupg, recipient)
    site.is_warm = True
    (site.archives / "failing.tar.gpg").write_bytes(b"somebody else's")
    site.complete(site.make_run("good"))
    site.complete(site.make_run("failing", "sequencer_B"))
    daemon = site.start().wait_ready()
    site.wait_for("failing", "failed")
    site.wait_for("good")
    assert daemon.stop() == 0
    site.make_run("kept")
    assert site.command("hold", "kept").returncode == 0
    site.complete(site.make_run("broken"), "23\n")
    yield site
    site.close()


def named(site: Site, *options: str) -> list[str]:
    """Return the names of the runs that `status` shows with these options."""
    report = json.loads(site.command("status", "--json", *options).stdout)
    return [run["_id"] for run in report["runs"]]


def test_what_needs_a_person_comes_first(mixed: Site) -> None:
    lines = mixed.command("status", "--all").stdout.splitlines()
    assert lines[0] == "0 pending, 0 processing, 1 encrypted, 1 failed, 1 held"
    assert "free for archives; no watcher runs on this host" in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["alert", "failed", "held"]
    assert "failing: 3 attempts failed; PublishFailed: " in lines[3]
    assert "dataflow_archive retry" in lines[3]
    assert "the sentinel holds exit code 23" in lines[4]
    assert [line.split()[0] for line in lines[5:]] == ["run", "failing", "kept", "good", "broken"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), ["failing", "kept"]),
        (("--all",), ["failing", "kept", "good"]),
        (("--status", "encrypted"), ["good"]),
        (("--status", "held"), ["kept"]),
        (("--sequencer", "sequencer_B"), ["failing"]),
        (("--worker", "worker_1", "--all"), ["failing", "good"]),
        (("--older-than", "1h"), []),
        (("--older-than", "0"), ["failing", "kept"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_runs_that_are_shown_can_be_chosen(options: tuple[str, ...], shown: list[str], mixed: Site) -> None:
    assert named(mixed, *options) == shown


def test_the_json_has_the_alerts_and_explains_each_run(mixed: Site) -> None:
    report = json.loads(mixed.command("status", "--json", "--all").stdout)
    assert [alert["what"] for alert in report["alerts"]] == ["failed", "held by its sentinel"]
    assert all(alert["words"] and alert["remedy"] for alert in report["alerts"])
    assert {name: each["cause"] for name, each in report["explanations"].items()} == {
        "failing": "failed", "kept": "held", "good": "encrypted",
    }  # fmt: skip
    assert report["free_bytes"] > 0
    assert report["has_watcher"] is False


def test_too_little_room_and_a_watcher_that_does_not_run_are_alerts(site: Site) -> None:
    site.complete(site.make_run("run_001"))
    site.configure(minimum_free_space="1000 TB")
    assert site.command("once").returncode == 1
    alerts = {alert["what"]: alert for alert in json.loads(site.command("status", "--json").stdout)["alerts"]}
    assert list(alerts) == ["free space", "no room"]
    assert "minimum_free_space is 1000000000000000" in alerts["free space"]["words"]
    (run,) = site.store().get_many(["run_001"])
    assert isinstance(run, dict)
    site.store().put({key: value for key, value in run.items() if key != "last_error"})
    site.configure(minimum_free_space="1 MB")
    (alert,) = json.loads(site.command("status", "--json").stdout)["alerts"]
    assert (alert["what"], alert["remedy"]) == ("watcher", "start it: systemctl start dataflow-archive-watch")


def test_an_archived_run_that_has_changed_is_one_alert(site: Site) -> None:
    run = site.complete(site.make_run())
    assert site.command("once").returncode == 0
    (run / "late").write_text("late")
    assert site.command("once").returncode == 0
    for options in ((), ("--all",)):
        (alert,) = json.loads(site.command("status", "--json", *options).stdout)["alerts"]
        assert alert["what"] == "changed"
        assert alert["words"].startswith("run_001: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_gives_the_terminal_back_as_it_was(number: signal.Signals, mixed: Site) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    watching = subprocess.Popen(
        [*COMMAND, "-c", str(mixed.config), "status", "--watch"], stdin=theirs, stdout=theirs, stderr=theirs,
        env=mixed.measured_environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal, suppress(OSError):
        while b"failing" not in shown:
            shown += terminal.read(1 << 16)
        watching.send_signal(number)
        while data := terminal.read(1 << 16):
            shown += data
    assert watching.wait(PATIENCE_SECONDS) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert LEAVE_SCREEN in shown.decode()


def test_watch_without_a_terminal_prints_again_and_again_and_ends_with_its_reader(mixed: Site) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{COMMAND[0]} -c '{mixed.config}' status --watch | grep --max-count=2 pending"],
        capture_output=True, text=True, check=True, env=mixed.environment, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stdout.count("1 failed") == 2
    assert done.stderr == ""


@pytest.mark.unit
def test_a_look_at_a_disk_that_hangs_is_given_up_and_its_errors_are_raised() -> None:
    disk = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, disk.wait)
    disk.set()
    assert within(PATIENCE_SECONDS, disk.wait)
    with pytest.raises(ZeroDivisionError):
        within(PATIENCE_SECONDS, lambda: 1 // 0)


@pytest.mark.unit
def test_a_large_disk_may_take_longer_in_all_than_a_look_waits() -> None:
    turns = 20

    def names() -> Iterator[int]:
        for number in range(turns):
            threading.Event().wait(0.05)
            yield number

    assert gathered(0.5, names) == list(range(turns))


@pytest.mark.unit
def test_the_statuses_that_can_be_chosen_are_the_model_s() -> None:
    assert tuple(Status) == STATUSES


@pytest.mark.unit
def test_each_cause_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(Cause)
    assert Cause.FAILED in PERSONS
    assert Cause.QUEUED not in PERSONS
