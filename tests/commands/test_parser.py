"""The grammar of the command line: what a user may write, and what is refused."""

import pytest

from watcher.commands.parser import parser

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "line", ["list --json run_001 A B", "list run_001 --json A B", "list run_001 A --json B", "list run_001 A B --json"]
)
def test_options_stand_before_between_and_behind_arguments(line: str) -> None:
    options = parser().parse_args(line.split())
    assert (options.run, options.patterns, options.json) == ("run_001", ["A", "B"], True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("list", "required: RUN"),
        ("list run_001 --colour", "unrecognized arguments: --colour"),
        ("status run_001", "unrecognized arguments: run_001"),
        ("list run_001 --json --sha256sum", "not allowed with argument --json"),
        ("restore run_001", "required: --to"),
        ("verify --all --older-than 1d", "not allowed with argument --all"),
        ("verify --older-than soon", "soon"),
    ],
)
def test_what_is_wrong_is_named(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(line.split())
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
