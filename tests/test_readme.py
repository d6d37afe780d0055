"""What the README says, held against the code."""

from pathlib import Path

from watcher import errors
from watcher.config import Config, StatusDBConfig
from watcher.demo import RESTORE
from watcher.model import TRANSITIONS, Status

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Return the shell lines that the README has under `<!-- name -->`."""
    after = README.split(f"<!-- {name} -->\n```sh\n", 1)[1]
    return after.split("```\n", 1)[0]


def table(header: str) -> list[list[str]]:
    """Return the cells of the table whose header line starts so, backquotes taken off."""
    lines = README[README.index(f"| {header}") :].splitlines()[2:]
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
    keys = {name for name in Config.model_fields if name != "statusdb"}
    statusdb = {
        "statusdb.url",
        "statusdb.username",
        ".password",
        ".password_file",
        "statusdb.database",
        "statusdb.ca_file",
    }
    assert described == keys | statusdb
    assert {name.removeprefix("statusdb").removeprefix(".") for name in statusdb} == set(StatusDBConfig.model_fields)


def test_the_lines_that_restore_are_those_that_the_tests_and_the_demo_use() -> None:
    first, rest = block("restore").split("\n", 1)
    assert first.startswith("RUN=")
    assert rest == RESTORE
