"""What is told to systemd, and what is told again since it was not heard."""

from __future__ import annotations

import logging
import os

import pytest
from machine import no_descriptors
from sites import Systemd

from watcher.daemon import Notifier, watchdog_seconds

pytestmark = pytest.mark.unit


def test_without_systemd_nothing_is_sent() -> None:
    Notifier(None).send("READY=1")


def test_a_state_that_systemd_could_not_be_told_is_a_warning_and_no_repetition_the_next_time(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(systemd.address)
    with no_descriptors():
        notifier.send("STATUS=idle")
    assert caplog.messages == ["systemd does not hear us: Too many open files"]
    assert caplog.records[0].levelno == logging.WARNING
    for _ in range(2):
        notifier.send("STATUS=idle")
    assert systemd.listen() == ["STATUS=idle"]


@pytest.mark.parametrize("state", ["READY=1", "STOPPING=1"])
def test_a_state_that_is_told_only_once_and_was_not_heard_goes_with_the_next_one(systemd: Systemd, state: str) -> None:
    notifier = Notifier(systemd.address)
    with no_descriptors():
        notifier.send(state, "STATUS=before")
        notifier.send("WATCHDOG=1", "STATUS=meanwhile")
    for _ in range(2):
        notifier.send("WATCHDOG=1", "STATUS=idle")
    assert systemd.listen() == [f"{state}\nWATCHDOG=1\nSTATUS=idle", "WATCHDOG=1\nSTATUS=idle"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_has_the_period_that_systemd_gave_this_process(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_seconds(environ) == seconds
