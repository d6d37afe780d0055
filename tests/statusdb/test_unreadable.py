"""Whatever somebody writes into the database: the watcher lives, and honest runs are archived."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from couchdb_server import Database
from forged import DEEP, HUGE, INFINITE, MARKS, SURROGATE, ForgingProxy, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sites import Site

from watcher.model import Document
from watcher.statusdb import Unreadable
from watcher.statusdb.door import checked

ARCHIVE = {"file": "{}.tar.gpg", "key_file": "{}.key.gpg", "sha256": "a" * 64, "size": 5, "tar_sha256": "b" * 64}
MORE = {"tar_size": 5, "key_sha256": "c" * 64, "recipient": "F", "members": 1, "token": "d" * 32}
BAD: dict[str, dict[str, Any]] = {
    "deep": {"comment": DEEP},
    "huge": {"comment": HUGE},
    "infinite": {"comment": INFINITE},
    "surrogate": {"archive": {"recipient": SURROGATE}},
    "token": {"archive": {**ARCHIVE, **MORE, "token": "d" * 300}},
    "size": {"archive": {**ARCHIVE, **MORE, "size": "five"}},
    "claim": {"claim": "mine"},
    "total": {"claim": {"token": "d" * 32, "bytes_total": "many"}},
    "path": {"path": 5},
}
"""Each has ended a thread, or a command in a traceback, for every host."""


def is_sound(log: str) -> bool:
    return not any(words in log for words in ("Traceback", "a bug", "threads have died"))


def commands(site: Site, names: list[str]) -> Iterator[subprocess.CompletedProcess[str]]:
    yield site.command("status", "--all")
    yield site.command("status", "--json")
    yield site.command("check")
    for name in names:
        yield site.command("retry", name)
        yield site.command("restore", name, "--to", str(site.root))


def bad_documents(site: Site, status: str) -> list[Document]:
    """Return a document of each kind whose run is here and ready, as this worker's own claim where it has one."""
    made = []
    for name, fields in BAD.items():
        path = site.complete(site.make_run(name, size=100))
        archive = {key: str(value).format(name) if "{}" in str(value) else value for key, value in
                   fields.get("archive", {}).items()}  # fmt: skip
        document = {"_id": name, "path": str(path), "status": status, "worker_id": "worker_1", **fields}
        made.append({**document, "archive": archive} if archive else document)
    return made


@pytest.mark.parametrize("kind", ["sqlite", "couchdb"])
def test_what_has_stopped_every_watcher_stops_none(kind: str, site: Site, request: pytest.FixtureRequest) -> None:
    site.configure(lease_seconds=1, rescan_interval="1 s")
    with (
        ForgingProxy(request.getfixturevalue("couchdb_database").url)
        if kind == "couchdb"
        else tempfile.TemporaryFile() as proxy
    ):
        if isinstance(proxy, ForgingProxy):
            database: Database = request.getfixturevalue("couchdb_database")
            site.use_couchdb(*database, through=proxy.url)
        site.statusdb()
        for document in bad_documents(site, "processing"):
            site.store().put(document)
        if kind == "sqlite":
            forge(site.database)
        site.complete(site.make_run("before"))
        daemon = site.start().wait_ready()
        site.wait_for("before")
        daemon.wait_for_log("renewed|rescan: .* runs seen")
        site.complete(site.make_run("after"))
        site.wait_for("after")
        for name in BAD:
            assert daemon.log.count(f"document of run '{name}' is unreadable") == 1, daemon.log
        shown = site.command("status").stdout
        report = json.loads(site.command("status", "--json").stdout)
        assert {one["run"] for one in report["unreadable"]} == BAD.keys()
        assert all(f"\n{name} " in shown for name in BAD)
        assert shown.count(" unreadable ") == len(BAD)
        for done in commands(site, ["deep", "token"]):
            assert "Traceback" not in done.stderr
            assert done.returncode == 0 or "unreadable: " in done.stderr
        assert daemon.stop() == 0
        assert is_sound(daemon.log), daemon.log


text = st.text(max_size=8) | st.sampled_from(
    ["\ud800", "\0", "/", "..", "x" * 300, "d" * 32, "2026-04-28T10:00:00+00:00"]
)
numbers = st.integers() | st.floats() | st.sampled_from([10**4000, 2**63, -1])
anything = st.recursive(
    st.none() | st.booleans() | numbers | text | st.sampled_from([DEEP, HUGE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "path", "worker_id", "failure_count", "created_at", "updated_at", "claim", "archive", "not_before", "last_error",
    "last_claim", "unsettled_since", "comment", "_rev", "_deleted", "_id",
)  # fmt: skip
REVISIONS = itertools.count(1_000_000)
"""No holder's own: a document that is replaced has another revision."""

STATUSES = ("pending", "processing", "encrypted", "failed")


@st.composite
def documents(draw: st.DrawFn, root: Path) -> Document:
    """Return a document that is ours but for some of its fields, or of any shape, by a name that is a run's or not."""
    name = draw(st.sampled_from([f"run_{number}" for number in range(4)]) | st.integers(0).map(lambda n: f"no_{n}"))
    archive = {"file": f"{name}.tar.gpg", "key_file": f"{name}.key.gpg", "sha256": "a" * 64, "tar_sha256": "b", **MORE}
    claim = {"token": "d" * 32, "phase": "archiving", "bytes_done": 1, "bytes_total": 2}
    ours: Document = {
        "_id": name, "path": str(root / name), "status": draw(st.sampled_from(STATUSES)), "worker_id": "worker_1",
        "failure_count": 0, "claim": claim, "archive": {**archive, "size": 5, "warnings": []},
    }  # fmt: skip
    for part in ("archive", "claim"):
        if draw(st.booleans()):
            ours[part] |= draw(st.dictionaries(st.sampled_from(sorted(ours[part])), anything, max_size=1))
        elif draw(st.booleans()):
            del ours[part]
    return ours | draw(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=2))


def insert(database: Path, documents: list[Document]) -> dict[str, str]:
    """Write the documents as someone with sqlite3 could; return the rows' bodies by their names."""
    bodies = {}
    with sqlite3.connect(database) as connection:
        for number, document in enumerate(documents):
            name, body = f"{document['_id']}", json.dumps(document)
            if not name.isprintable() or not name.startswith(("run_", "no_")):
                name = f"odd_{number}"
            for mark, forged in MARKS.items():
                body = body.replace(f'"{mark}"', forged)
            connection.execute(
                "insert or replace into documents (id, rev, status, body) values (?, ?, ?, ?)",
                (name, next(REVISIONS), document["status"], body),
            )
            bodies[name] = body
    connection.close()
    return bodies


def is_unreadable(name: str, body: str) -> bool:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return True
    return document.get("_id") != name or isinstance(checked({**document, "_rev": "1"}), Unreadable)


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_document_of_any_shape_keeps_an_honest_run_from_being_archived(
    gnupg: Path, recipient: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as root:
        site = Site(Path(root, "site"), gnupg, recipient, lease_seconds=1)
        try:
            survive(site, data.draw(st.lists(documents(site.sequencing / "sequencer_A"), min_size=40, max_size=80)))
        finally:
            site.close()


def survive(site: Site, batch: list[Document]) -> None:
    site.statusdb()
    half = len(batch) // 2
    bodies = insert(site.database, batch[:half])
    for name in ("run_0", "run_1", "run_2", "run_3", "honest_1"):
        site.complete(site.make_run(name, size=100))
    daemon = site.start().wait_ready()
    bodies |= insert(site.database, batch[half:])
    site.complete(site.make_run("honest_2", size=100))
    for name in ("honest_1", "honest_2"):
        assert site.wait_for(name)["failure_count"] == 0
    assert daemon.stop() == 0
    assert is_sound(daemon.log), daemon.log
    once = site.command("once")
    assert is_sound(once.stderr), once.stderr
    with sqlite3.connect(site.database) as connection:
        left = dict(connection.execute("select id, body from documents"))
    connection.close()
    for name, body in bodies.items():
        assert not is_unreadable(name, body) or left[name] == body, "an unreadable document was changed"
    for done in commands(site, ["run_0"]):
        assert "Traceback" not in done.stderr
