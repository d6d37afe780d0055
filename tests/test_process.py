"""What a parent leaves to the command changes nothing: the real command under a parent that sets something."""

from __future__ import annotations

import itertools
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sites import PATIENCE_SECONDS, Site

from watcher.process import BASE_DESCRIPTORS, JOB_DESCRIPTORS

PARENT = "import os, resource, signal, sys\n{}\nos.execvp(sys.argv[1], sys.argv[1:])"


def under(site: Site, settings: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as the successor of a parent that has done `settings`."""
    command = [*site.once()[:-1], *arguments]
    return subprocess.run(
        [sys.executable, "-c", PARENT.format(settings), *command], capture_output=True, text=True, check=False,
        env={**site.environment, **environment}, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


@pytest.fixture
def with_run(site: Site) -> Site:
    """A site with a run that is ready."""
    site.complete(site.make_run())
    return site


def status(site: Site) -> str:
    return str((site.document() or {}).get("status"))


def test_a_tar_that_failed_has_failed_though_the_parent_ignores_its_children(with_run: Site, tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "tar"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\ncase "$*" in *--create*) /bin/tar "$@"; exit 2;; esac\nexec /bin/tar "$@"\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{with_run.environment['PATH']}"
    under(with_run, "signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "once", PATH=path)
    assert status(with_run) != "encrypted"
    assert with_run.document()["last_error"]["kind"] == "TarFailed"  # type: ignore[index]


CLOSED = [numbers for count in (1, 2, 3) for numbers in itertools.combinations(range(3), count)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_a_closed_standard_stream_keeps_no_run_from_its_archive(closed: tuple[int, ...], with_run: Site) -> None:
    done = under(with_run, f"[os.close(number) for number in {closed}]", "once")
    assert done.returncode == 0, done.stderr
    assert status(with_run) == "encrypted"


def test_with_a_wide_umask_nobody_else_may_read_or_write(with_run: Site) -> None:
    assert under(with_run, "os.umask(0)", "once").returncode == 0
    modes = {path.suffixes[-2]: stat.S_IMODE(path.stat().st_mode) for path in with_run.archives.glob("run_*")}
    modes |= {path.suffixes[-2]: stat.S_IMODE(path.stat().st_mode) for path in with_run.keys.glob("run_*")}
    assert modes == {".tar": 0o640, ".gz": 0o640, ".key": 0o600}
    assert stat.S_IMODE(with_run.database.stat().st_mode) & 0o027 == 0
    [lock] = with_run.archives.glob(".*.lock")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


@pytest.mark.parametrize("variable", [{"TAR_OPTIONS": "--exclude=*"}, {"POSIXLY_CORRECT": "1"}, {"LANGUAGE": "de"}])
def test_the_parents_environment_does_not_change_what_is_archived(variable: dict[str, str], with_run: Site) -> None:
    done = under(with_run, "", "once", **variable)
    assert done.returncode == 0, done.stderr
    assert with_run.document()["archive"]["members"] == 8  # type: ignore[index]


@pytest.mark.parametrize(
    "settings",
    [
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watcher_gets_its_signals_though_the_parent_held_them_back(
    settings: str, number: signal.Signals, site: Site
) -> None:
    daemon = site.start(prefix=(sys.executable, "-c", PARENT.format(settings))).wait_ready()
    daemon.signal(number)
    assert daemon.wait() == 0


LIMITS = {"FSIZE": 512_000, "NOFILE": BASE_DESCRIPTORS + 2 * JOB_DESCRIPTORS - 1, "CPU": 1000}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_is_too_low_is_named_with_its_value_and_remedy(name: str, with_run: Site) -> None:
    low = f"resource.setrlimit(resource.RLIMIT_{name}, ({LIMITS[name]},) * 2)"
    keep = "import ctypes; ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)\n" + low  # without CAP_SYS_RESOURCE after exec
    for command, code in (("once", 3), ("check", 1)):
        done = under(with_run, keep, command)
        assert done.returncode == code, done.stderr
        words = done.stdout + done.stderr
        assert f"limit RLIMIT_{name}" in words
        assert f"is {LIMITS[name]}," in words
        assert f"Limit{name}=" in words


def test_a_soft_limit_is_raised(with_run: Site) -> None:
    low = "[resource.setrlimit(n, (v, resource.getrlimit(n)[1])) for n, v in ((1, 512), (7, 16))]"
    done = under(with_run, low, "once")
    assert done.returncode == 0, done.stderr
