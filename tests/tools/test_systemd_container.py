"""The containers that other tests use: a systemd boots, runs units, and keeps a journal."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from systemd_container import PYTHON_3_14, STOP_SECONDS, CommandFailed, Container, Tree, Unavailable, debian_tree

pytestmark = pytest.mark.systemd

UNIT = """
[Service]
Type=notify
ExecStart=/usr/bin/python3 /opt/tiny.py
"""

PROGRAM = """
import os, signal, socket
def send(path, text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(text.encode(), path)
send("/run/systemd/journal/socket", "MESSAGE=packing run_001\\nPRIORITY=4\\nRUN_ID=run_001\\n")
send(os.environ["NOTIFY_SOCKET"], "READY=1\\nSTATUS=packing run_001")
signal.pause()
"""


@pytest.fixture(scope="module")
def tree(unavailable: Callable[[str], NoReturn]) -> Tree:
    suite = os.environ.get("SYSTEMD_TEST_SUITE", PYTHON_3_14)
    try:
        return debian_tree(suite)
    except Unavailable as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def machine(tree: Tree) -> Iterator[Container]:
    with Container(tree, hostname="worker-a") as booted:
        yield booted


@pytest.fixture(scope="module")
def tiny(machine: Container) -> str:
    """A started unit of Type=notify."""
    machine.write("/opt/tiny.py", PROGRAM)
    machine.write("/etc/systemd/system/tiny.service", UNIT)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "tiny")
    return "tiny"


def test_the_system_is_running(machine: Container) -> None:
    state = machine.run("systemctl", "is-system-running", "--wait", check=False)
    assert state.stdout.strip() in ("running", "degraded")
    assert machine.run("hostname").stdout == "worker-a\n"


def test_a_unit_says_that_it_is_ready_and_what_it_does(machine: Container, tiny: str) -> None:
    shown = machine.run("systemctl", "show", "-p", "ActiveState,StatusText", tiny).stdout
    assert sorted(shown.splitlines()) == ["ActiveState=active", "StatusText=packing run_001"]


def test_the_journal_keeps_native_fields(machine: Container, tiny: str) -> None:
    [entry] = machine.journal("-u", tiny, "RUN_ID=run_001")
    assert (entry["MESSAGE"], entry["PRIORITY"]) == ("packing run_001", "4")


def test_there_is_no_network_but_its_own_loopback(machine: Container) -> None:
    interfaces = machine.run("cat", "/proc/net/dev").stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def test_a_directory_is_copied_in_without_what_is_excluded(machine: Container, tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/big").touch()
    (tmp_path / "kept").write_text("text")
    machine.copy_in(tmp_path, "/srv/checkout", exclude=["node_modules"])
    machine.copy_in(tmp_path / "kept", "/srv/one/file")
    found = machine.run("find", "/srv", "-type", "f").stdout.split()
    assert sorted(found) == ["/srv/checkout/kept", "/srv/one/file"]
    assert machine.run("cat", "/srv/one/file").stdout == "text"


def test_a_failing_command_shows_what_it_printed(machine: Container) -> None:
    with pytest.raises(CommandFailed, match="it was this"):
        machine.run("sh", "-c", "echo it was this >&2; exit 3")
    assert machine.run("sh", "-c", "exit 3", check=False).returncode == 3


def test_what_a_container_writes_does_not_reach_the_tree(machine: Container, tree: Tree) -> None:
    machine.write("/etc/written", "text")
    assert not (tree.path / "etc/written").exists()


def test_a_bound_directory_is_shared_with_the_host(tree: Tree, tmp_path: Path) -> None:
    with Container(tree, binds={"/data": tmp_path}) as second:
        second.run("touch", "/data/from-inside")
    assert (tmp_path / "from-inside").exists()


def test_a_container_that_has_said_much_to_its_notification_socket_still_ends(tree: Tree) -> None:
    """A datagram queue holds about ten; systemd reports each reload to nspawn, which passes it on."""
    with Container(tree) as talkative:
        for _ in range(12):
            talkative.run("systemctl", "daemon-reload")
        started = time.monotonic()
    assert time.monotonic() - started < STOP_SECONDS


def test_two_containers_run_at_once_and_leave_no_control_group(machine: Container, tree: Tree) -> None:
    with Container(tree, hostname="worker-b") as second:
        assert second.run("hostname").stdout == "worker-b\n"
        assert machine.run("hostname").stdout == "worker-a\n"
        groups = Path(f"/proc/{second.leader}/cgroup").read_text()
    name = groups.rpartition("::/")[2].split("/payload")[0]
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{name}"))
