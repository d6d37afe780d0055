"""On which file systems things lie, by the kernel's own table, and what is mounted meanwhile."""

from pathlib import Path

import pytest
from machine import mounted, no_descriptors

from watcher.discovery import Places, network_places
from watcher.source import file_system_type

pytestmark = pytest.mark.unit


def test_the_type_of_a_file_system_comes_from_the_kernels_table() -> None:
    assert file_system_type(Path("/proc")) == "proc"
    assert file_system_type(Path("/proc/self")) == "proc"


@pytest.mark.children
@pytest.mark.root
def test_the_type_of_a_file_system_is_that_of_the_mount_a_path_lies_on(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    with mounted(tmp_path / "mount") as place:
        (place / "below").mkdir()
        assert file_system_type(place / "below") == "tmpfs"
    assert file_system_type(tmp_path / "mount") == file_system_type(tmp_path)


def test_on_a_local_disk_no_place_is_on_the_network_whatever_links_and_files_there_are(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("nowhere")
    (tmp_path / "proc").symlink_to("/proc")
    assert network_places(tmp_path) == {}


def test_nothing_has_changed_where_nothing_was_mounted(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    places = Places(tmp_path)
    places.look()
    assert places.remote == {}
    (tmp_path / "B").mkdir()
    assert not places.have_changed()


@pytest.mark.children
@pytest.mark.root
@pytest.mark.parametrize("where", ["", "A", "linked", "A/run", "a name\\040 with\n all"])
def test_a_mount_at_the_root_or_below_or_where_a_link_leads_is_noticed_once_when_it_comes_and_when_it_goes(
    tmp_path: Path, where: str
) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for directory in (root / "A" / "run", elsewhere):
        directory.mkdir(parents=True, exist_ok=True)
    (root / "linked").symlink_to(elsewhere)
    (root / where).mkdir(exist_ok=True)
    places = Places(root)
    places.look()
    with mounted((root / where).resolve()):
        assert places.have_changed()
        places.look()
        assert not places.have_changed()
    assert places.have_changed()


def test_with_no_descriptor_left_what_was_found_last_holds(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.look()
    with no_descriptors():
        assert not places.have_changed()
        places.look()
    assert not places.have_changed()


@pytest.mark.children
@pytest.mark.root
def test_a_mount_elsewhere_is_nothing_to_us_whatever_sequencers_came_and_went_meanwhile(tmp_path: Path) -> None:
    for name in ("root/A", "root_too", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    places = Places(tmp_path / "root")
    places.look()
    (tmp_path / "root" / "A").rmdir()
    (tmp_path / "root" / "B").mkdir()
    with mounted(tmp_path / "root_too"):
        assert not places.have_changed()
