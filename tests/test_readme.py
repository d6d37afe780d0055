"""What the README and the pages of `docs/` say, held against the code."""

import re
import socket
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from watcher import config, errors
from watcher.commands.demo import RESTORE
from watcher.commands.parser import COMMANDS
from watcher.config import Config
from watcher.config.schema import StatusDBConfig
from watcher.model import TRANSITIONS, Status
from watcher.source import SENTINEL

ROOT = Path(__file__).parent.parent
PAGES = tuple(ROOT / page for page in ("README.md", "docs/operation.md", "docs/configuration.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def block(name: str) -> str:
    """Return the lines that a page has under `<!-- name -->`."""
    after = re.split(rf"<!-- {name} -->\n```[a-z]+\n", TEXT, maxsplit=1)[1]
    return after.split("```\n", 1)[0]


def table(header: str) -> list[list[str]]:
    """Return the cells of the table whose header line starts so, backquotes taken off."""
    lines = TEXT[TEXT.index(f"| {header}") :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(cell: str) -> list[str]:
    return [name.strip(" `") for name in cell.split(",")]


def test_the_table_of_events_is_the_code_s() -> None:
    described = {row[0]: (set(names(row[1])), set(names(row[2]))) for row in table("event | from | to")}
    real = {
        str(event): (
            {str(status or "none") for status in moves},
            {str(status) for targets in moves.values() for status in targets},
        )
        for event, moves in TRANSITIONS.items()
    }
    assert described == real


def test_every_status_has_its_row() -> None:
    assert [names(row[0])[0] for row in table("status | what may")] == [str(status) for status in Status]


def test_every_kind_of_last_error_is_one_of_ours_and_says_whether_it_counts() -> None:
    rows = table("`last_error.kind`")
    counts = {name: row[1] == "yes" for row in rows for name in names(row[0])}
    assert counts == {name: issubclass(getattr(errors, name), errors.RunFailed) for name in counts}
    leaves = {
        error.__name__
        for parent in (errors.RunFailed, errors.NotTheRunsFault)
        for error in (parent, *parent.__subclasses__())
    } - {"NotTheRunsFault"}
    assert set(counts) == leaves


def test_every_key_of_the_configuration_has_its_row() -> None:
    described = {name for row in table("key | default") for name in names(row[0])}
    keys = {each.name for each in fields(Config) if each.name != "statusdb"}
    statusdb = {
        "statusdb.url",
        "statusdb.username",
        ".password",
        ".password_file",
        "statusdb.database",
        "statusdb.ca_file",
    }
    assert described == keys | statusdb
    assert {name.removeprefix("statusdb").removeprefix(".") for name in statusdb} == {
        each.name for each in fields(StatusDBConfig)
    }


DESCRIBED = {
    "": None,
    "the system's": None,
    "gpg's own": None,
    "the host's name": socket.gethostname(),
    "rsync's and others' temporary names": Config.transfer_names,
    "the transfer's own logs": (".metadata_rsync_exitcode", "rsync*.log", "*.rsync.log", "transfer*.log"),
}
"""Defaults that the table has words for, or no words."""


def described_defaults() -> dict[str, str]:
    """Return what the table of keys has as the default of each."""
    found = {}
    for row in table("key | default"):
        keys, cells = names(row[0]), names(row[1])
        found |= dict(zip(keys, cells if len(cells) == len(keys) else cells * len(keys), strict=True))
    return {f"statusdb{key}" if key.startswith(".") else key: cell for key, cell in found.items()}


def real_default(key: str) -> Any:
    """Return the code's default for a key; None for one that must be given."""
    section, _, name = key.rpartition(".")
    key = next(each for each in fields(StatusDBConfig if section else Config) if each.name == name)
    if key.default_factory is not MISSING:
        return key.default_factory()
    return None if key.default is MISSING else key.default


@pytest.mark.parametrize(("key", "cell"), described_defaults().items(), ids=described_defaults())
def test_a_key_s_default_in_the_table_is_the_code_s(key: str, cell: str, tmp_path: Path) -> None:
    if cell in DESCRIBED:
        assert real_default(key) == DESCRIBED[cell]
    elif cell == "none":
        assert not real_default(key)
    else:
        section, _, name = key.rpartition(".")
        assert real_default(key) is not None
        assert loaded(tmp_path, {section: {name: cell}} if section else {name: cell}) == loaded(tmp_path, {})


def loaded(directory: Path, keys: dict[str, Any]) -> Config:
    """Return the Config of the keys, and of what is required."""
    needed = {"sequencing_path": "/s", "destination_path": "/d", "gpg_receiver": "ops@example.org"}
    statusdb = {"url": "couch.example.org", **keys.get("statusdb", {})}
    file = directory / "df_archive.yaml"
    file.write_text(yaml.safe_dump({**needed, **keys, "statusdb": statusdb}), encoding="utf-8")
    return config.load(file, {})


def test_the_lines_that_restore_are_those_that_the_tests_and_the_demo_use() -> None:
    first, rest = block("restore").split("\n", 1)
    assert first.startswith("RUN=")
    assert rest == RESTORE


def test_the_minimal_configuration_is_one(tmp_path: Path) -> None:
    file = tmp_path / "df_archive.yaml"
    file.write_text(block("minimal"), encoding="utf-8")
    assert config.load(file, {}).gpg_receiver == "ops@example.org"


def test_the_sentinel_that_is_dropped_is_the_one_that_is_awaited() -> None:
    command, path = block("drop").split()
    directories = yaml.safe_load(block("minimal"))
    assert command == "touch"
    assert Path(path).name == SENTINEL
    assert Path(path).parent.parent.parent == Path(directories["sequencing_path"])


def test_every_command_has_its_row() -> None:
    rows = [row[0].strip("`").split()[1:2] for row in table("command | what it does")]
    assert [name for words in rows for name in words] == [command.name for command in COMMANDS]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, place = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        assert not place or place in anchors(other), target


def anchors(page: Path) -> set[str]:
    """Return where a link into a page may lead: its headings, as code hosts name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
