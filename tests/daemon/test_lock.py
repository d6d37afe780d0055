"""A worker id is one process's own on a destination."""

from __future__ import annotations

from pathlib import Path

import pytest

from watcher.daemon import worker_lock
from watcher.errors import ConfigError

pytestmark = pytest.mark.unit


def test_the_lock_is_free_again_when_its_holder_has_ended(tmp_path: Path) -> None:
    with worker_lock(tmp_path, "a/b"), pytest.raises(ConfigError, match="a/b"), worker_lock(tmp_path, "a/b"):
        pass
    with worker_lock(tmp_path, "a/b"):
        assert len(list(tmp_path.iterdir())) == 1
