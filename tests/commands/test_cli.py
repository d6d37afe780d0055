"""The edges of the commands: where their output goes, when they are stopped, and what they say in trouble."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from couchdb_server import Database, free_port
from machine import inotify_limit
from sites import COMMAND, Site, assert_same_tree, keyring, make_key, wait_until

from watcher import openpgp
from watcher.errors import NoSpace
from watcher.model import Run

OPEN_RUNS = 1000
"""More than the watches of whatever else runs here, which the lowered limit shall not disturb."""

ON_A_DATABASE = (
    ("status",),
    ("status", "--json"),
    ("explain", "run_001"),
    ("history",),
    ("retry", "run_001"),
    ("rearchive", "run_001"),
    ("hold", "run_001"),
    ("release", "run_001"),
    ("cancel", "run_001"),
    ("list", "run_001"),
    ("verify", "--all"),
    ("restore", "run_001", "--to", "/tmp"),
)


def shell(site: Site, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$DA` is the command with this site's configuration."""
    variables = {"DA": f"{COMMAND[0]} -c {site.config}", **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False,
        env={**site.environment, **variables}, timeout=120,
    )  # fmt: skip


@pytest.fixture
def archived(site: Site) -> Site:
    """A site with one archived run."""
    site.complete(site.make_run())
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    return site


# where the output goes


@pytest.mark.parametrize("words", ["status --all", "status --json", "check", "--help", "restore --help"])
def test_a_reader_that_leaves_is_no_reason_to_complain(words: str, archived: Site) -> None:
    done = shell(archived, f"(sleep 0.2; $DA {words}; echo $? >&2) | true")
    assert done.stderr in ("0\n", "1\n")


def test_help_that_cannot_be_written_is_told(site: Site) -> None:
    done = shell(site, "$DA --help > /dev/full", PYTHONUNBUFFERED="")
    assert done.returncode == 1
    assert done.stderr == "dataflow_archive: the output cannot be written: No space left on device\n"


def test_a_reader_that_leaves_in_the_middle_is_no_reason_to_complain(archived: Site) -> None:
    statusdb = archived.statusdb()
    document = statusdb.get("run_001")
    assert document is not None
    document["extra"] = "x" * 1_000_000
    archived.store().put(document)
    done = shell(archived, "($DA status --all --json; echo $? >&2) | head -c 1")
    assert done.stderr == "1\n"


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", ["status --all", "status --json", "check"])
def test_output_that_cannot_be_written_is_told(words: str, buffered: str, archived: Site) -> None:
    done = shell(archived, f"$DA {words} > /dev/full", PYTHONUNBUFFERED=buffered)
    assert done.returncode == 1
    assert done.stderr == "dataflow_archive: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_without_the_streams_that_it_does_not_get(closed: str, archived: Site) -> None:
    done = shell(archived, f"$DA status --all {closed}; echo $? > {archived.root}/code")
    assert (archived.root / "code").read_text() == "0\n"
    assert done.stderr == ""


def test_a_watcher_without_standard_streams_archives(site: Site) -> None:
    site.complete(site.make_run())
    done = shell(site, f"$DA once <&- >&- 2>&-; echo $? > {site.root}/code")
    assert (site.root / "code").read_text() == "0\n", done.stderr
    assert (site.document() or {})["status"] == "encrypted"


def test_a_name_that_the_terminals_charset_has_not_is_shown_escaped(site: Site) -> None:
    site.complete(site.make_run("测序"))
    assert site.command("once", PYTHONIOENCODING="ascii").returncode == 0
    done = site.command("status", "--all", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "\\u6d4b\\u5e8f" in done.stdout


def test_a_status_for_another_program_has_one_line_for_each_run(site: Site) -> None:
    for sequencer in ("sequencer_A", "sequencer_B"):
        site.complete(site.make_run("run_001", sequencer))
    site.complete(site.make_run("held"), "23\n")
    site.complete(site.make_run("line\nbreak"))
    assert site.command("once").returncode == 0
    lines = site.command("status", "--all").stdout.splitlines()
    lines = lines[next(number for number, line in enumerate(lines) if line.startswith("run ")) :]
    assert len(lines) == 5, lines
    collision = next(line for line in lines if "collision" in line)
    assert str(site.sequencing / "sequencer_A" / "run_001") in collision
    assert str(site.sequencing / "sequencer_B" / "run_001") in collision
    assert any("held" in line and "exit code 23" in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_status_on_a_terminal_keeps_to_its_width(site: Site) -> None:
    site.complete(site.make_run("held" * 20), "23\n")
    site.complete(site.make_run("\x1b[31mred"))
    assert site.command("once").returncode == 0
    shown = site.on_terminal("status", "--all")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert max(map(len, lines)) == 100
    assert "exit code 23" in " ".join(" ".join(lines).split())
    assert "[31mred" in shown
    assert "\x1b[31mred" not in shown


def test_the_json_names_what_is_skipped_and_why(site: Site) -> None:
    site.complete(site.make_run("held"), "23\n")
    site.complete(site.make_run("_bad"))
    assert site.command("once").returncode == 0
    report = json.loads(site.command("status", "--json").stdout)
    assert {(one["state"], Path(one["path"]).name) for one in report["skipped"]} == {
        ("held", "held"), ("unusable", "_bad"),
    }  # fmt: skip
    assert all(one["reason"] for one in report["skipped"])
    assert report["counts"] == {}


def test_documents_of_other_programs_do_not_disturb_the_status(archived: Site) -> None:
    store = archived.store()
    store.put({"_id": "foreign", "hello": "world"})
    store.put({"_id": "odd", "status": "failed", "last_error": {"words": "none of ours"}, "failure_count": None})
    done = archived.command("status", "--all")
    assert done.returncode == 0, done.stderr
    assert "1 encrypted, 1 failed" in done.stdout
    for name in ("foreign", "odd"):
        for command in (("restore", name, "--to", str(archived.root)), ("retry", name)):
            assert "Traceback" not in archived.command(*command).stderr


def status_lines(site: Site) -> dict[str, str]:
    """Return the line of `status` about each run."""
    counts, *lines = site.command("status", "--all").stdout.splitlines()
    assert "pending" in counts
    lines = lines[next(number for number, line in enumerate(lines) if line.startswith("run ")) + 1 :]
    return {line.split()[0]: line.rstrip() for line in lines}


def test_a_run_whose_directory_is_not_here_is_pointed_out_until_it_is_done_with(archived: Site) -> None:
    statusdb, words = archived.statusdb(), "its directory is not on this host"
    runs = {name: archived.make_run(name) for name in ("here", "gone", "taken", "failed")}
    statusdb.register(map(Run, runs.values()))
    document = statusdb.get("taken")
    assert document is not None
    assert statusdb.claim(Run(runs["taken"]), "worker_2", document)
    failed = statusdb.get("failed")
    assert failed is not None
    archived.store().put({**failed, "status": "failed", "failure_count": 3})
    before = json.loads(archived.command("status", "--all", "--json").stdout)["runs"]
    assert not [line for line in status_lines(archived).values() if words in line]
    for name in ("gone", "taken", "failed"):
        shutil.rmtree(runs[name])
    shutil.rmtree(archived.sequencing / "sequencer_A" / "run_001")
    told = status_lines(archived)
    assert told.keys() == {"run_001", *runs}
    assert {name for name, line in told.items() if words in line} == {"gone", "taken"}
    after = json.loads(archived.command("status", "--all", "--json").stdout)
    assert sorted(map(str, after["runs"])) == sorted(map(str, before))
    assert {name for name, each in after["explanations"].items() if each["cause"] == "not on this host"} == {"gone"}


def test_why_a_run_waits_is_shown_beside_its_missing_directory(site: Site) -> None:
    run = site.make_run()
    site.statusdb().register([Run(run)])
    document = site.document()
    assert document is not None
    site.statusdb().note(document, NoSpace("no room"))
    shutil.rmtree(run)
    assert status_lines(site)["run_001"].endswith(f"not on this host: '{run}'; NoSpace: no room")


# a database that is not there


@pytest.mark.parametrize("command", ON_A_DATABASE, ids=" ".join)
def test_a_command_makes_no_database_and_says_who_does(command: tuple[str, ...], site: Site) -> None:
    done = site.command(*command)
    assert done.returncode == 3
    assert (
        done.stderr == f"dataflow_archive: statusdb.url: '{site.database}' does not exist yet; the watcher makes it\n"
    )
    assert not site.database.exists()


@pytest.mark.parametrize("command", ON_A_DATABASE, ids=" ".join)
def test_a_command_whose_server_is_away_says_so_and_ends(command: tuple[str, ...], site: Site) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    site.configure(statusdb={"url": url})
    done = site.command(*command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"dataflow_archive: no good answer from '{url}': ")
    assert done.stderr.count("\n") == 1


def test_commands_on_a_server_without_our_database_say_who_makes_it(site: Site, couchdb_url: str) -> None:
    site.use_couchdb(couchdb_url, "absent_database")
    for command in ON_A_DATABASE:
        done = site.command(*command)
        assert done.returncode == 3
        assert "absent_database" in done.stderr
        assert "the watcher makes it when it starts" in done.stderr


class Refuser(BaseHTTPRequestHandler):
    """Answers as CouchDB does to a wrong password; `asked` counts."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = b'{"error":"unauthorized","reason":"Name or password is incorrect."}\n'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # http.server's own names

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def refuser() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses every login: its address, and the paths that it was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Refuser,), {"asked": asked}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", [("once",), ("check",), *ON_A_DATABASE], ids=" ".join)
def test_a_wrong_password_is_tried_once_and_never_shown(
    command: tuple[str, ...], site: Site, refuser: tuple[str, list[str]]
) -> None:
    url, asked = refuser
    site.configure(statusdb={"url": url, "username": "archiver", "password": "not-the-password"})
    done = site.command(*command)
    said = done.stdout + done.stderr
    assert done.returncode == (3 if command == ("once",) else 1)
    assert f"user 'archiver' at '{url}' is refused" in said
    assert "not-the-password" not in said
    assert "Traceback" not in said
    assert len(asked) == 1


def test_retry_and_restore_refuse_what_is_no_run(couchdb_database: Database, site: Site) -> None:
    site.use_couchdb(couchdb_database.url, couchdb_database.name)
    assert site.command("once").returncode == 0
    for name in ("_design/dataflow_archive", "_all_docs", "", "../etc"):
        for command in (("retry", name), ("restore", name, "--to", str(site.root))):
            done = site.command(*command)
            assert done.returncode == 1, (command, done.stderr)
            assert "Traceback" not in done.stderr
            assert done.stderr.startswith("dataflow_archive: ")


# stopping


def test_no_core_file_with_a_file_key_is_written(site: Site) -> None:
    assert resource.RLIMIT_CORE == 4
    daemon = site.start().wait_ready()
    limits = Path(f"/proc/{daemon.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watcher_that_is_stopped_while_it_waits_for_its_database_exits_with_0(
    number: signal.Signals, site: Site
) -> None:
    site.configure(statusdb={"url": f"http://127.0.0.1:{free_port()}"})
    daemon = site.start()
    daemon.wait_for_log("the status database is away")
    daemon.signal(number)
    assert daemon.wait() == 0


SLOW_GPG = """#!/bin/sh
echo "$$" >> {started}
exec sleep 1000
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watcher_that_is_stopped_before_it_began_exits_with_0_and_a_command_does_not(
    number: signal.Signals, site: Site, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    (tmp_path / "gpg").write_text(SLOW_GPG.format(started=started))
    (tmp_path / "gpg").chmod(0o700)
    path = f"{tmp_path}:{site.environment['PATH']}"
    codes = {}
    for number_started, command in enumerate(((), ("once",), ("check",)), 1):
        daemon = site.start(*command, log=f"{number_started}.log", PATH=path)
        wait_until(lambda: started.exists() and started.read_text().count("\n") == number_started, "gpg was started")  # noqa: B023
        daemon.signal(number)
        codes[command] = daemon.wait()
        assert "Traceback" not in daemon.log
    for pid in started.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    assert codes == {(): 0, ("once",): 0, ("check",): 128 + number}


# the demo


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name: gpg's agent makes a socket in it, whose path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demo_that_is_stopped_leaves_nothing(number: signal.Signals, code: int, site: Site, short: Path) -> None:
    daemon = site.start("demo", log="demo.log", TMPDIR=str(short))
    wait_until(lambda: list(short.glob("*/status.db")), "the demo's watcher runs")
    daemon.signal(number)
    assert daemon.wait() == code
    assert "Traceback" not in daemon.log
    assert list(short.iterdir()) == []
    assert [line for line in processes() if str(short) in line] == []


def processes() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_demo_shows_the_states_as_they_change_and_leaves_no_process_behind(short: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--keep"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(short)},
    )
    assert done.returncode == 0, done.stderr
    shown = [line.strip() for line in done.stdout.splitlines()]
    assert shown.index("claimed") < shown.index("encrypted")
    assert shown.count("encrypted") == 2
    assert [line for line in processes() if str(short) in line] == []


def test_a_demo_that_fails_says_why_and_leaves_everything_to_look_at(short: Path, tmp_path: Path) -> None:
    (tmp_path / "tar").write_text(
        '#!/bin/sh\ncase "$*" in *--create*) echo "tar: no" >&2; exit 2;; esac\nexec /bin/tar "$@"\n'
    )
    (tmp_path / "tar").chmod(0o700)
    environment = {**os.environ, "TMPDIR": str(short), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [kept] = short.iterdir()
    assert f"everything is left in '{kept}'" in done.stderr
    assert "TarFailed" in done.stderr
    assert (kept / "watcher.log").exists()
    assert [line for line in processes() if str(short) in line] == []


def test_a_demo_without_gpg_names_it(short: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short), "PATH": str(tmp_path)}
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("dataflow_archive: cannot run 'gpg': No such file or directory; install it")


# a machine that lacks something


def test_everything_that_keeps_the_watcher_from_starting_is_told_at_once(site: Site, tmp_path: Path) -> None:
    site.configure(destination_path=str(site.root / "absent"))
    done = site.command(PATH=str(tmp_path))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    for words in ("destination_path", "cannot run 'tar'", "cannot run 'gpg'"):
        assert words in done.stderr
    checked = site.command("check", PATH=str(tmp_path))
    assert checked.returncode == 1
    assert "Traceback" not in checked.stderr
    failed = {line.split()[1] for line in checked.stdout.splitlines() if line.startswith("FAIL")}
    assert failed == {"directories:", "gpg:", "tar:", "recipient:"}


def test_why_the_watcher_does_not_start_is_in_its_log_file_too(site: Site) -> None:
    log = site.root / "df_archive.log"
    site.configure(log_file=str(log), gpg_receiver="nobody@example.org")
    assert site.command().returncode == 3
    assert "CRITICAL gpg_receiver: no public key matches 'nobody@example.org'" in log.read_text()


def test_ocb_is_archived_and_recorded_or_refused_before_anything_begins(site: Site) -> None:
    site.complete(site.make_run())
    site.configure(encryption="ocb")
    done = site.command("once")
    if tuple(map(int, openpgp.gpg_version(None).split(".")[:2])) < (2, 4):
        assert done.returncode == 3
        assert "encryption: gpg 2." in done.stderr
        assert "does not write OCB; install GnuPG 2.4 or newer, or write mdc" in done.stderr
        assert any("does not write OCB" in line for line in marked(site, "FAIL"))
        return
    assert done.returncode == 0, done.stderr
    document = site.document()
    assert document is not None
    assert document["archive"]["encryption"] == "ocb"
    assert_same_tree(site.sequencing / "sequencer_A" / "run_001", site.restore("run_001"))


@pytest.mark.parametrize(("expires", "mark"), [("never", "ok"), ("10d", "warn"), ("60d", "ok")])
def test_check_points_out_a_key_that_expires_soon(expires: str, mark: str, site: Site, tmp_path: Path) -> None:
    with keyring(tmp_path / "other") as home:
        fingerprint = make_key(home, "other@example.org", expires)
        site.configure(gnupg_home=str(home), gpg_receiver="other@example.org")
        done = site.command("check")
    assert done.returncode == 0
    words = "never expires" if expires == "never" else "expires 20"
    assert f"{mark:<5} recipient: {fingerprint} other@example.org, {words}" in done.stdout


def marked(site: Site, mark: str) -> list[str]:
    """Return the lines of `check` that have the mark, without it."""
    lines = [line.split(maxsplit=1) for line in site.command("check").stdout.splitlines()]
    return [words for found, words in lines if found == mark]


def test_check_fails_where_less_is_free_than_is_to_stay_free(site: Site) -> None:
    site.configure(minimum_free_space="1000 PB")
    [said] = marked(site, "FAIL")
    assert re.fullmatch(r"free space: [0-9.]+ GB, minimum_free_space 1000000000.0 GB", said)
    assert site.command("check").returncode == 1


@pytest.mark.root
@pytest.mark.alone
def test_check_warns_where_the_kernel_allows_too_few_watches(site: Site) -> None:
    site.statusdb()  # made; else there is a warning of its own
    for number in range(OPEN_RUNS):
        (site.sequencing / "sequencer_A" / f"open_{number}").mkdir()
    assert marked(site, "warn") == []
    needed = OPEN_RUNS + 3  # and both sequencers, and what holds them
    with inotify_limit("max_user_watches", needed):
        [said] = marked(site, "warn")
    assert said == (
        f"inotify: {needed} watches needed, fs.inotify.max_user_watches is {needed}; "
        f"raise it: sysctl -w fs.inotify.max_user_watches={needed * 4}"
    )


def test_a_broken_sqlite_file_is_named(site: Site) -> None:
    site.database.write_bytes(b"no database at all, but long enough to be read as one" * 100)
    done = site.command()
    assert done.returncode == 3
    assert f"SQLite file '{site.database}': file is not a database" in done.stderr
    for command in ON_A_DATABASE:
        done = site.command(*command)
        assert done.returncode in (1, 3)
        assert str(site.database) in done.stderr
        assert "Traceback" not in done.stderr
