"""What shells and man(1) get is made from the parser, and is understood by them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from sites import Site

from watcher import __version__
from watcher.commands.parser import COMMANDS

BASH = """
COMP_WORDS=({words}) COMP_CWORD={index}
_shtab_dataflow_archive dataflow_archive '{last}' '{before}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed_by_bash(site: Site, *words: str) -> set[str]:
    """Return what bash offers for the last of the words."""
    source = site.command("completion", "bash").stdout
    asked = BASH.format(words=" ".join(words), index=len(words) - 1, last=words[-1], before=words[-2])
    return set(subprocess.check_output(["bash", "-c", source + asked], text=True).split())


def test_bash_completes_commands_and_options(site: Site) -> None:
    assert completed_by_bash(site, "dataflow_archive", "re") == {"rearchive", "release", "restore", "retry"}
    assert {"--yes", "--all-failed"} <= completed_by_bash(site, "dataflow_archive", "retry", "--")
    assert completed_by_bash(site, "dataflow_archive", "completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.slow
def test_fish_completes_commands_and_options(site: Site, unavailable: Callable[[str], NoReturn]) -> None:
    fish = shutil.which("fish") or unavailable("no fish here")
    source = site.command("completion", "fish").stdout
    for line, offered in (("re", {"rearchive", "release", "restore", "retry"}), ("retry --a", {"--all-failed"})):
        script = f"{source}\ncomplete -C 'dataflow_archive {line}'"
        told = subprocess.check_output([fish, "--no-config", "-c", script], text=True)
        assert {each.split("\t")[0] for each in told.splitlines()} == offered


@pytest.mark.slow
def test_zsh_reads_its_completion(site: Site, tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> None:
    zsh = shutil.which("zsh") or unavailable("no zsh here")
    (tmp_path / "_dataflow_archive").write_text(site.command("completion", "zsh").stdout, encoding="utf-8")
    script = f"fpath=('{tmp_path}' $fpath); autoload -Uz compinit; compinit -u -D; print ${{_comps[dataflow_archive]}}"
    done = subprocess.run([zsh, "-f", "-c", script], text=True, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == ("_dataflow_archive\n", "")
    subprocess.run([zsh, "-n", tmp_path / "_dataflow_archive"], check=True)


def test_a_shell_that_is_not_known_is_refused(site: Site) -> None:
    assert site.command("completion", "csh").returncode == 2


def test_the_manual_page_has_each_command_and_the_version(site: Site) -> None:
    page = site.command("manpage").stdout
    assert page.startswith(".TH DATAFLOW_ARCHIVE")
    assert __version__ in page.splitlines()[0]
    for command in COMMANDS:
        assert f"dataflow_archive {command.name}" in page.replace("\\", "").replace("fB", "").replace("fR", "")
