"""The systemd unit: systemd understands all of it, it gives nothing away, and it stops and restarts as promised."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

UNIT = Path(__file__).parent.parent.parent / "systemd" / "dataflow-archive-watch.service"
LINES = UNIT.read_text(encoding="utf-8").splitlines()
PROGRAM = "ExecStart=/opt/dataflow_archive/bin/dataflow_archive"

EXPOSURE_TIMES_TEN = 15
"""The most that `systemd-analyze security` may give the unit: 1.5, of 10. systemd 252 and 262 give it 1.2."""

WEIGHTY = (
    "User=dataflow-archive",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "NoNewPrivileges=yes",
    "RestrictSUIDSGID=yes",
    "CapabilityBoundingSet=",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "RemoveIPC=yes",
    "UMask=0077",
    "ProtectHostname=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
)
"""Lines without any one of which systemd finds more that is exposed."""

STANDING = (
    "AmbientCapabilities=",
    "PrivateMounts=yes",
    "LimitCORE=0",
    "MemorySwapMax=0",
    "Type=notify",
    "TimeoutStartSec=infinity",
    "TimeoutStopSec=infinity",
    "KillMode=mixed",
    "SuccessExitStatus=130 143",
    "Restart=on-failure",
    "RestartPreventExitStatus=3",
    "WatchdogSec=5min",
)
"""Lines whose absence nothing else here would show."""

Analyze = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def analyze(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Analyze:
    """Return what runs systemd-analyze with some options on a unit of these lines."""
    if not shutil.which("systemd-analyze"):
        unavailable("there is no 'systemd-analyze'; apt-get install systemd")

    def run(lines: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
        unit = tmp_path / UNIT.name
        unit.write_text("\n".join([*lines, ""]), encoding="utf-8")
        return subprocess.run(
            ["systemd-analyze", *options, str(unit)], capture_output=True, text=True, check=False, timeout=60
        )

    return run


def verify(analyze: Analyze, lines: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Let systemd read the unit; the program, which is not installed here, is another."""
    assert PROGRAM in lines
    here = [f"ExecStart={shutil.which('true')}" if line == PROGRAM else line for line in lines]
    return analyze(here, "verify", "--man=no", "--recursive-errors=no")


def is_within(analyze: Analyze, lines: Sequence[str]) -> bool:
    """Say whether the unit's exposure is at most the limit."""
    done = analyze(lines, "security", "--offline=true", f"--threshold={EXPOSURE_TIMES_TEN}")
    assert "Overall exposure level" in done.stdout, done.stderr
    return done.returncode == 0


def exposed(analyze: Analyze, lines: Sequence[str]) -> dict[str, float]:
    """Return what systemd finds exposed, and how much."""
    done = analyze(lines, "security", "--offline=true", "--json=short")
    assert done.returncode == 0, done.stderr
    return {check["name"]: float(check["exposure"]) for check in json.loads(done.stdout) if check["exposure"]}


def without(line: str) -> list[str]:
    assert LINES.count(line) == 1
    return [other for other in LINES if other != line]


def test_systemd_understands_every_line_of_the_unit(analyze: Analyze) -> None:
    done = verify(analyze, LINES)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_key_that_systemd_does_not_know_would_be_seen(analyze: Analyze) -> None:
    done = verify(analyze, [line.replace("ProtectClock", "ProtectClocks") for line in LINES])
    assert done.returncode != 0
    assert "ProtectClocks" in done.stderr


def test_the_unit_is_exposed_by_no_more_than_1_5_of_10(analyze: Analyze) -> None:
    assert is_within(analyze, LINES)


def test_a_unit_without_its_hardening_would_be_seen(analyze: Analyze) -> None:
    assert not is_within(analyze, [line for line in LINES if line not in WEIGHTY])


@pytest.mark.parametrize("line", WEIGHTY)
def test_the_unit_without_a_line_of_its_hardening_is_more_exposed(line: str, analyze: Analyze) -> None:
    before, after = exposed(analyze, LINES), exposed(analyze, without(line))
    assert sum(after.values()) > sum(before.values())


@pytest.mark.parametrize("line", STANDING)
def test_a_line_that_the_watcher_relies_on_stands(line: str) -> None:
    assert LINES.count(line) == 1
