"""Sites that the tests of one file share: a watcher is started once, and many runs go through it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import Daemon, Site


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    """A facility that the tests of a file share; each makes runs of its own."""
    site = Site(tmp_path_factory.mktemp("shared") / "site", gnupg, recipient, rescan_interval="1 h")
    site.is_warm = True
    yield site
    site.close()


@pytest.fixture(scope="module")
def watcher(shared_site: Site) -> Daemon:
    """The watcher of the shared site. Its next rescan is an hour away: what it sees, events told it."""
    return shared_site.start().wait_ready()


@pytest.fixture
def unprivileged() -> list[str]:
    """What goes before a command so that modes of files hold for it, though it may be root's."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
