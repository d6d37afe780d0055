"""A user's mistake is told with its place and its remedy, all at once, and nothing is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import pytest
from couchdb_server import Database, PouchServer, Unavailable
from fault_proxy import FaultProxy
from sites import Site, gpg, keyring, make_key


def refused(site: Site) -> str:
    """Start the watcher, which must refuse at once; return what it says."""
    done = site.command()
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert site.statusdb_is_untouched()
    return done.stderr


def test_a_missing_config_file_is_named(site: Site) -> None:
    site.config.unlink()
    assert str(site.config) in refused(site)


def test_broken_yaml_is_told_with_line_and_column(site: Site) -> None:
    site.config.write_text("statusdb:\n  url: [unclosed\nsequencing_path: /x\n", encoding="utf-8")
    words = refused(site)
    assert "line" in words
    assert "column" in words


def test_all_problems_of_a_config_are_told_at_once(site: Site) -> None:
    site.configure(max_concurrent_jobs="many", ignore="nosync", tar_exclusion=["x"], destination_path=None)
    words = refused(site)
    for key in ("max_concurrent_jobs", "ignore", "tar_exclusions", "destination_path"):
        assert key in words


def no_sequencing_path(site: Site) -> str:
    site.configure(sequencing_path=str(site.root / "absent"))
    return "absent"


def sequencing_path_is_a_file(site: Site) -> str:
    site.configure(sequencing_path=str(site.config))
    return "is not a directory"


def no_destination_path(site: Site) -> str:
    site.configure(destination_path=str(site.root / "unmounted"))
    return "unmounted"


def destination_is_the_sequencing_path(site: Site) -> str:
    site.configure(destination_path=str(site.sequencing))
    return "sequencing_path"


def destination_inside_the_sequencing_path(site: Site) -> str:
    inside = site.sequencing / "sequencer_A" / "archives"
    inside.mkdir()
    site.configure(destination_path=str(inside))
    return "inside"


def sequencing_path_inside_the_destination(site: Site) -> str:
    site.configure(destination_path=str(site.root))
    return "inside"


def keys_below_a_file(site: Site) -> str:
    site.configure(run_keys_path=str(site.config / "keys"))
    return "run_keys_path"


def no_such_recipient(site: Site) -> str:
    site.configure(gpg_receiver="nobody@example.org")
    return "no public key matches 'nobody@example.org'"


@pytest.mark.parametrize(
    "mistake",
    [
        no_sequencing_path,
        sequencing_path_is_a_file,
        no_destination_path,
        destination_is_the_sequencing_path,
        destination_inside_the_sequencing_path,
        sequencing_path_inside_the_destination,
        keys_below_a_file,
        no_such_recipient,
    ],
)
def test_a_machine_that_does_not_fit_the_config_is_refused(site: Site, mistake: Callable[[Site], str]) -> None:
    expected = mistake(site)
    assert expected in refused(site)
    assert not (site.root / "unmounted").exists()


def ambiguous(home: Path) -> str:
    gpg(home, "--passphrase", "", "--quick-generate-key", "Two <two@example.org>", "future-default", "default", "never")
    gpg(home, "--passphrase", "", "--quick-generate-key", "Too <two@example.org>", "future-default", "default", "never")
    return "matches 2 keys"


def expired(home: Path) -> str:
    gpg(
        home, "--passphrase", "", "--faked-system-time", "20200101T000000",
        "--quick-generate-key", "two@example.org", "future-default", "default", "1d",
    )  # fmt: skip
    return "has expired"


def signing_only(home: Path) -> str:
    gpg(home, "--passphrase", "", "--quick-generate-key", "two@example.org", "ed25519", "sign", "never")
    return "has no encryption subkey"


def revoked(home: Path) -> str:
    fingerprint = make_key(home, "two@example.org")
    certificate = (home / "openpgp-revocs.d" / f"{fingerprint}.rev").read_text(encoding="utf-8")
    gpg(home, "--import", data=certificate.replace(":-----BEGIN", "-----BEGIN").encode())
    return "is revoked"


@pytest.mark.parametrize("fault", [ambiguous, expired, signing_only, revoked])
def test_a_recipient_that_cannot_be_used_is_refused_and_named(
    site: Site, tmp_path: Path, fault: Callable[[Path], str]
) -> None:
    with keyring(tmp_path / "other") as home:
        expected = fault(home)
        site.configure(gnupg_home=str(home), gpg_receiver="two@example.org")
        words = refused(site)
    assert expected in words
    assert "gpg_receiver" in words


class Refuser(BaseHTTPRequestHandler):
    """Answers every request as CouchDB does to a wrong password, and counts."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = b'{"error":"unauthorized","reason":"Name or password is incorrect."}\n'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def test_a_wrong_password_ends_the_start_after_one_try_that_names_user_and_server(site: Site) -> None:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Refuser,), {"asked": asked}))
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    site.configure(statusdb={"url": url, "username": "archiver", "password": "not-the-password"})
    done = site.command()
    server.shutdown()
    server.server_close()
    assert done.returncode == 3
    assert "archiver" in done.stderr
    assert url in done.stderr
    assert "not-the-password" not in done.stderr
    assert "Traceback" not in done.stderr
    assert len(asked) == 1


def test_a_database_that_is_away_at_the_start_is_waited_for(site: Site, couchdb_database: Database) -> None:
    site.complete(site.make_run())
    with FaultProxy(couchdb_database.url) as proxy:
        proxy.down()
        site.use_couchdb(couchdb_database.url, couchdb_database.name, through=proxy.url)
        daemon = site.start()
        assert "WARNING" in daemon.wait_for_log("the status database is away")
        proxy.up()
        site.wait_for()
        assert daemon.stop() == 0


def test_a_database_that_goes_away_during_a_run_gets_its_record_when_it_is_back(
    site: Site, couchdb_database: Database
) -> None:
    run = site.make_run(size=50_000_000)
    with FaultProxy(couchdb_database.url) as proxy:
        site.use_couchdb(couchdb_database.url, couchdb_database.name, through=proxy.url)
        daemon = site.start().wait_ready()
        site.complete(run)
        daemon.wait_for_log("run_001: claimed")
        proxy.down()
        daemon.wait_for_log("run_001: cannot .* yet, trying again")
        proxy.up()
        document = site.wait_for()
        assert daemon.stop() == 0
    assert document["failure_count"] == 0
    assert daemon.log.count("run_001: claimed") == 1
    assert site.restore().is_dir()


def test_a_server_that_restarts_is_no_reason_to_end(
    site: Site, tmp_path: Path, unavailable: Callable[[str], NoReturn]
) -> None:
    (tmp_path / "couch").mkdir()
    try:
        server = PouchServer(tmp_path / "couch")
    except Unavailable as error:
        unavailable(str(error))
    with server:
        site.use_couchdb(server.url, "restarted")
        daemon = site.start().wait_ready()
        server.restart()
        site.complete(site.make_run())
        site.wait_for()
        assert daemon.stop() == 0


def test_files_that_cannot_be_read_fail_the_attempt_with_tar_s_words(site: Site, unprivileged: list[str]) -> None:
    run = site.make_run()
    (run / "secret").write_bytes(b"x")
    (run / "secret").chmod(0)
    site.complete(run)
    site.configure(retry_delay=60)
    # A fresh process of another user: root could read the file.
    done = subprocess.run(
        [*unprivileged, *site.once()], capture_output=True, text=True, check=False, env=site.environment, cwd=site.root
    )
    assert done.returncode == 1, done.stderr
    document = site.wait_for(status="pending")
    assert document["failure_count"] == 1
    assert document["last_error"]["kind"] == "TarFailed"
    assert "secret: Cannot open: Permission denied" in document["last_error"]["message"]
    assert site.staged_files() == []
