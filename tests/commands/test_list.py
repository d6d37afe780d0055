"""`list`: what an archive holds, told from its manifest, and only from the manifest that was recorded."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from sites import COMMAND, Site
from spoiling import append, cut, flip, put_a_link
from test_readme import block

NAMES = ("a b", "umlaut ä", os.fsdecode(b"no utf-8 \xff"), "line\nbreak", "back\\slash", "return\r", "\\n", "* ?")


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory, gnupg: Path, recipient: str) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("listed") / "site", gnupg, recipient)
    site.is_warm = True
    run = site.make_run()
    for name in NAMES:
        (run / "data" / name).parent.mkdir(exist_ok=True)
        (run / "data" / name).write_text(name, errors="surrogateescape")
    os.utime(run / "data" / "a b", (1_700_000_000, 1_700_000_000))
    (run / "data" / "a b").chmod(0o640)
    (run / "link").symlink_to("data/a b")
    site.complete(run)
    assert site.command("once").returncode == 0
    yield site
    site.close()


def listed(site: Site, *arguments: str) -> str:
    done = site.command("list", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_line_for_people_has_mode_size_time_path_and_link(archived: Site) -> None:
    lines = listed(archived, "run_001").splitlines()
    assert f"-rw-r----- {3:>15} 2023-11-14 22:13:20 run_001/data/a b" in lines
    assert any(line.startswith("l") and line.endswith("run_001/link -> data/a b") for line in lines)
    assert any(line.startswith("d") and line.endswith(" run_001") for line in lines)
    assert any(line.endswith("run_001/data/line\\nbreak") for line in lines)
    assert len(lines) == len(list((archived.sequencing / "sequencer_A" / "run_001").rglob("*"))) + 1


def test_sha256sum_finds_each_file_of_a_restored_run_as_it_was(archived: Site, tmp_path: Path) -> None:
    shutil.copytree(archived.sequencing / "sequencer_A" / "run_001", tmp_path / "run_001", symlinks=True)
    command = [*COMMAND, "-c", str(archived.config), "list", "run_001", "--sha256sum"]
    sums = subprocess.run(command, capture_output=True, check=True, env=archived.environment).stdout
    check = ["sha256sum", "--check", "--strict", "--quiet"]
    subprocess.run(check, input=sums, cwd=tmp_path, check=True)
    files = [path for path in (tmp_path / "run_001").rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert len(sums.splitlines()) == len(files)
    for spoilt in ("return\r", os.fsdecode(b"no utf-8 \xff")):
        (tmp_path / "run_001" / "data" / spoilt).write_text("other")
    done = subprocess.run(check, input=sums, cwd=tmp_path, check=False, capture_output=True)
    assert done.stdout.count(b"FAILED") == 2


def test_the_json_is_the_manifest_s_own_lines(archived: Site) -> None:
    heading, *entries = map(json.loads, listed(archived, "run_001", "--json").splitlines())
    assert heading["run"] == "run_001"
    assert heading["archive"]["members"] == len(entries)
    assert {"path": "run_001/data/a b", "size": 3}.items() <= next(
        entry for entry in entries if entry.get("path") == "run_001/data/a b"
    ).items()


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["a b"], ["run_001/data/a b"]),
        (["run_001/link", "a*"], ["run_001/data/a b", "run_001/link"]),
        (["data/um*"], ["run_001/data/umlaut ä"]),
    ],
)
def test_patterns_choose_members_as_exclusions_do(patterns: list[str], found: list[str], archived: Site) -> None:
    lines = listed(archived, "run_001", *patterns, "--json").splitlines()[1:]
    assert sorted(json.loads(line)["path"] for line in lines) == found


def test_a_pattern_for_a_directory_means_what_is_in_it_too(archived: Site) -> None:
    assert len(listed(archived, "run_001", "data").splitlines()) == len(NAMES) + 1


def test_a_pattern_that_nothing_matches_is_an_error(archived: Site) -> None:
    done = archived.command("list", "run_001", "nothing", "*.none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "run 'run_001' has no member that matches 'nothing' or '*.none'" in done.stderr


@pytest.fixture
def manifest(archived: Site) -> Iterator[Path]:
    """The stored manifest, which a test may spoil."""
    path = archived.archives / "run_001.manifest.jsonl.gz.gpg"
    content = path.read_bytes()
    yield path
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, "is not what was recorded: its SHA-256 or size differs"),
        (cut, "is not what was recorded: its SHA-256 or size differs"),
        (append, "is not what was recorded: its SHA-256 or size differs"),
        (Path.unlink, "cannot be read: No such file or directory; bring the file back to there"),
        (put_a_link, "is not a regular file; bring the file itself back to there"),
    ],
)
def test_nothing_is_told_from_a_manifest_that_was_not_recorded(
    spoil: Callable[[Path], None], words: str, manifest: Path, archived: Site
) -> None:
    spoil(manifest)
    done = archived.command("list", "run_001")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"'{manifest}' {words}" in done.stderr


def without_private_key(site: Site, directory: Path) -> Path:
    """Return a configuration of the site whose keyring is empty."""
    (directory / "gnupg").mkdir(mode=0o700)
    config = directory / "other.yaml"
    config.write_text(yaml.safe_dump({**site.options, "gnupg_home": str(directory / "gnupg")}), encoding="utf-8")
    return config


def test_without_the_private_key_gpg_s_words_are_told(archived: Site, tmp_path: Path) -> None:
    done = archived.command("list", "run_001", "-c", str(without_private_key(archived, tmp_path)))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the file key cannot be unwrapped" in done.stderr


def test_a_clear_manifest_needs_no_key(site: Site, tmp_path: Path) -> None:
    site.configure(manifest="clear")
    site.complete(site.make_run())
    assert site.command("once").returncode == 0
    done = site.command("list", "run_001", "-c", str(without_private_key(site, tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "run_001/.metadata_rsync_exitcode" in done.stdout


def test_a_run_without_a_manifest_says_so(site: Site) -> None:
    site.configure(manifest="none")
    site.complete(site.make_run())
    assert site.command("once").returncode == 0
    done = site.command("list", "run_001")
    assert (done.returncode, done.stdout) == (1, "")
    assert "run 'run_001' has no manifest; gpg and tar --list show what its archive holds" in done.stderr


def test_the_words_of_the_pages_list_a_run(archived: Site, tmp_path: Path) -> None:
    by_hand = block("manifest").replace("/data/archives", str(archived.archives))
    script = block("list") + by_hand.replace("~/run_keys", str(archived.keys))
    path = f"{Path(sys.executable).parent}:{archived.environment['PATH']}"
    environment = {"ARCHIVE_CONFIG": str(archived.config), "PATH": path, "GNUPGHOME": str(archived.gnupg)}
    source = archived.sequencing / "sequencer_A" / "run_001"
    shutil.copytree(source, tmp_path / "run_001", symlinks=True)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env={**archived.measured_environment, **environment}, cwd=tmp_path,
        check=True, capture_output=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    members = len(list(source.rglob("*"))) + 1
    assert len(lines) == members + 2 + 1 + members, "all, the two that match, the manifest's first line, and all again"
