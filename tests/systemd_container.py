"""Debian trees made by debootstrap, and containers booted from them with a systemd of their own.

    tree = debian_tree("forky")                                # built once, then taken from the cache
    mine = tree.copy(tmp_path / "tree")                        # to change it for good
    mine.run("python3", "-m", "venv", "/opt/app")              # not booted, on the host's network
    with Container(mine, hostname="worker-a") as machine:      # booted; what it writes is lost at its end
        machine.run("systemctl", "start", "my.service")
        machine.journal("-u", "my.service")

From a shell, for `.ci/forky`:

    python3 tests/systemd_container.py copy forky DIRECTORY
    python3 tests/systemd_container.py run DIRECTORY COMMAND...

Needs root, and Debian's packages `debootstrap` and `systemd-container`.
"""

import configparser
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PYTHON_3_14 = "forky"
PYTHON_3_13 = "trixie"
PYTHON_3_11 = "bookworm"

BARE = ("systemd", "systemd-sysv", "dbus", "ca-certificates")
PACKAGES = (*BARE, "gnupg", "tar", "python3", "python3-venv", "procps")

BUILD_SECONDS = 1800  # 50 to 90 s on two idle cores with a mirror nearby
BOOT_SECONDS = 120  # 0.5 s when idle
COMMAND_SECONDS = 120
STOP_SECONDS = 30

PROPAGATED = Path("/run/systemd/nspawn/propagate")  # nspawn leaves a directory of each machine here
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FUSE = "/dev/fuse"
CERTIFICATES = "usr/local/share/ca-certificates"
CARRIED_VARIABLES = re.compile(r"PIP_.*|(https?|no|all)_proxy", re.IGNORECASE)
DROPPED_VARIABLES = {"PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_CONFIG_FILE"}

ENTER = ("-m", "-u", "-i", "-n", "-p", "-C", "env", "-i")  # nsenter's options, then a clean environment

_numbers = itertools.count()


class Unavailable(Exception):
    """Containers cannot be had on this machine; the text says why."""


class CommandFailed(AssertionError):
    """A command ended with another exit code than 0; the text has all that it printed."""


def cache_directory() -> Path:
    """Return where trees are kept between test runs: below `$XDG_CACHE_HOME`, or `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dataflow_archive-tests"


def debian_tree(suite: str = PYTHON_3_14, cache: Path | None = None, packages: Sequence[str] = PACKAGES) -> "Tree":
    """Return a Debian of this suite with these packages, from `cache` or built into it.

    The tree is shared: `copy` it before changing it. The host's apt mirror, proxy settings, certificates and
    pip configuration are carried over. Raises `Unavailable`.
    """
    _require_tools()
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()
    tree = Tree(cache / f"{suite}-{digest[:8]}")
    with open(cache / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.path.exists():
            _build(suite, tree.path, packages)
        _carry_over(tree)
    return tree


@dataclass(frozen=True)
class Tree:
    """The root directory of a Debian, not booted."""

    path: Path

    def copy(self, path: Path) -> "Tree":
        """Return a copy at `path`, which must not exist; about 2 s and 350 MB."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _run(["cp", "-a", "--reflink=auto", str(self.path), str(path)])
        return Tree(path)

    def copy_in(self, source: Path, destination: str, exclude: Sequence[str] = ()) -> None:
        """Copy a file, or a directory's content, to the path `destination` inside; `exclude` as tar's."""
        _copy_in(source, destination, exclude, self.run)

    def run(
        self,
        *command: str,
        input: str | bytes | None = None,
        check: bool = True,
        binds: Mapping[str, Path] | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, on the host's network; what it writes stays.

        `binds` shows host paths at paths inside, read-only. Raises `CommandFailed` unless `check` is false.
        """
        with self._inside(binds or {}) as inside:
            return _run([*inside, *command], input, check, timeout)

    def execute(self, *command: str) -> int:
        """Run a command inside on this process's own standard streams; return its exit code.

        As `run`, but with what tests that need root take from a machine: FUSE, and limits below /proc/sys.
        """
        with self._inside({}, f"--bind={FUSE}") as inside:
            environment = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
            return subprocess.run([*inside, *command], env=environment, check=False).returncode

    @contextlib.contextmanager
    def _inside(self, binds: Mapping[str, Path], *options: str) -> Iterator[list[str]]:
        """Give the words before a command that run it inside."""
        name = _name()
        with _control_group(name) as group:
            nspawn = _nspawn(self, name, ["--quiet", "--pipe", "--as-pid2", *_read_only(binds), *options])
            yield [*group, *nspawn, *(f"--setenv={name}={value}" for name, value in _environment().items())]


@dataclass
class Container:
    """A tree booted with systemd; a context manager, entered when the boot has finished.

    What it writes is kept in memory and lost. `binds` shows host paths at paths inside, writable; without
    `network` it has only a loopback of its own. A container ends with the thread that entered it.
    """

    tree: Tree
    hostname: str = "machine"
    network: bool = False
    binds: Mapping[str, Path] = field(default_factory=dict)
    leader: int = 0
    """The host's process id of the container's init."""
    _process: "subprocess.Popen[bytes] | None" = None
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Boot; return when systemd has reached its default target. Raises `Unavailable` when it does not."""
        with contextlib.ExitStack() as resources:
            home = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="container-")))
            name = _name()
            group = resources.enter_context(_control_group(name))
            output = resources.enter_context(open(home / "console", "w+b"))
            resources.callback(self._end)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
                notices.bind(str(home / "notify"))
                variables = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "NOTIFY_SOCKET": str(home / "notify")}
                self._process = subprocess.Popen(
                    [*group, *self._boot_command(name)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={"PATH": PATH, **variables},
                )
                self.leader = _leader_when_ready(notices, self._process, home / "console")
            self._resources = resources.pop_all()

    def stop(self) -> None:
        """Power off in good order, and be sure that it has ended."""
        if self._process and self._process.poll() is None:
            self.run("systemctl", "poweroff", "--no-block", check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._resources.close()

    def command(self, *command: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Return what the host executes to run `command` inside; for a Popen of the test's own."""
        variables = {**_environment(), **(env or {})}
        assignments = [f"{name}={value}" for name, value in variables.items()]
        return [
            "nsenter",
            "-t",
            str(self.leader),
            *ENTER,
            *assignments,
            *command,
        ]

    def run(
        self,
        *command: str,
        input: str | bytes | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root. Raises `CommandFailed` unless `check` is false."""
        return _run(self.command(*command, env=env), input, check, timeout)

    def copy_in(self, source: Path, destination: str, exclude: Sequence[str] = ()) -> None:
        """Copy a file, or a directory's content, to the path `destination` inside; `exclude` as tar's."""
        _copy_in(source, destination, exclude, self.run)

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file inside; missing directories are made."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, input=text)

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the journal's entries that journalctl's `arguments` select, with all their fields."""
        self.run("journalctl", "--sync")
        shown = self.run("journalctl", "--output=json", "--all", "--no-pager", *arguments)
        return [json.loads(line) for line in shown.stdout.splitlines()]

    def _boot_command(self, name: str) -> list[str]:
        """When this process dies nspawn gets SIGTERM and powers off; SIGKILL would leave the container."""
        options = ["--boot", "--console=pipe", "--volatile=overlay", "--notify-ready=yes"]
        options += [f"--hostname={self.hostname}"]
        options += [f"--bind={host}:{inside}" for inside, host in self.binds.items()]
        options += _read_only({}) if self.network else ["--private-network"]
        return ["setpriv", "--pdeathsig", "TERM", *_nspawn(self.tree, name, options)]

    def _end(self) -> None:
        """Make sure that it has ended; only then may its control group and directory go.

        The init is ended too: it would outlive nspawn.
        """
        process, leader, self._process, self.leader = self._process, self.leader, None, 0
        if process and process.poll() is None:
            if leader:
                os.kill(leader, signal.SIGKILL)
            process.kill()
        if process:
            process.wait()


def _require_tools() -> None:
    if os.geteuid() != 0:
        raise Unavailable("containers need root")
    missing = [tool for tool in ("debootstrap", "systemd-nspawn", "nsenter") if not shutil.which(tool)]
    if missing:
        packages = "debootstrap systemd-container util-linux"
        raise Unavailable(f"there is no {' and no '.join(missing)}; apt-get install {packages}")


def _build(suite: str, path: Path, packages: Sequence[str]) -> None:
    """debootstrap beside the final name, which appears when all is done."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--variant=minbase", f"--include={','.join(packages)}"]
    script = "sid"  # one script serves all suites, also those that this debootstrap does not know yet
    command = ["debootstrap", *options, suite, str(partial), _mirror(), script]
    try:
        _run(command, timeout=BUILD_SECONDS, env=dict(os.environ))
    except (CommandFailed, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"debootstrap of {suite} failed: {error}") from error
    (partial / "etc/hostname").unlink(missing_ok=True)  # the host's; systemd would prefer it to --hostname
    partial.rename(path)


def _mirror() -> str:
    """Return the Debian archive that the host's apt uses; empty, for debootstrap's own choice, if none."""
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
    with contextlib.suppress(FileNotFoundError, CommandFailed):
        return next(iter(_run(listing).stdout.split()), "")
    return ""


def _carry_over(tree: Tree) -> None:
    """Bring the tree's certificates, apt options and pip configuration up to the host's."""
    root, host = tree.path, Path("/")
    _carry_apt_options(host / "etc/apt", root / "etc/apt")
    _carry_pip_configuration(root / "etc/pip.conf")
    wanted = {path.name: path.read_bytes() for path in (host / CERTIFICATES).glob("*.crt")}
    present = {path.name: path.read_bytes() for path in (root / CERTIFICATES).glob("*.crt")}
    if wanted != present:
        shutil.rmtree(root / CERTIFICATES)
        shutil.copytree(host / CERTIFICATES, root / CERTIFICATES)
        tree.run("update-ca-certificates")


def _carry_apt_options(host: Path, inside: Path) -> None:
    """Only what says how to fetch (proxies, certificates, passwords), not what to install or to keep."""
    options = [host / "apt.conf", *sorted((host / "apt.conf.d").glob("*"))]
    carried = [path for path in options if path.is_file() and "Acquire::" in path.read_text()]
    for path in [*carried, *(host / "auth.conf.d").glob("*.conf")]:
        shutil.copy(path, inside / path.relative_to(host))


def _carry_pip_configuration(inside: Path) -> None:
    merged = configparser.RawConfigParser()
    merged.read(_pip_configuration_files())
    with open(inside, "w") as output:
        merged.write(output)


def _pip_configuration_files() -> list[Path]:
    """From the weakest to the strongest, as pip reads them."""
    places = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
    places += [Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"]
    named = os.environ.get("PIP_CONFIG_FILE", os.devnull)
    return [place for place in [*places, Path(named)] if place.is_file()]


def _pip_paths() -> set[Path]:
    """Local directories that pip's configuration names as sources, and its constraints, without which it gives up.

    An index's files lie beside `simple`. Certificates are carried over as the tree's own.
    """
    texts = [place.read_text() for place in _pip_configuration_files()]
    texts += [value for name, value in os.environ.items() if name.startswith("PIP_")]
    words = [word.removeprefix("file://") for text in texts for word in text.split()]
    named = {Path(word) for word in words if word.startswith("/")}
    directories = {path.parent if path.name == "simple" else path for path in named if path.is_dir()}
    return directories | {path for path in named if path.is_file() and path.suffix == ".txt"}


def _environment() -> dict[str, str]:
    """What a command inside gets: a plain system's variables, and the host's for proxies and pip."""
    carried = {
        name: value
        for name, value in os.environ.items()
        if CARRIED_VARIABLES.fullmatch(name) and name not in DROPPED_VARIABLES
    }
    return {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **carried}


def _name() -> str:
    return f"test-{os.getpid()}-{next(_numbers)}"


def _nspawn(tree: Tree, name: str, options: Sequence[str]) -> list[str]:
    """`--register=no --keep-unit`: without a systemd on the host, too. /tmp lies on the disk: memory is too small."""
    always = [f"--directory={tree.path}", f"--machine={name}", "--register=no", "--keep-unit"]
    return ["env", "SYSTEMD_NSPAWN_TMPFS_TMP=0", "systemd-nspawn", *always, *options]


def _read_only(binds: Mapping[str, Path]) -> list[str]:
    """Options that show `binds`, and what pip on the host's network may want to read."""
    shown = {**{str(path): path for path in sorted(_pip_paths())}, **binds}
    return [f"--bind-ro={host}:{inside}" for inside, host in shown.items()]


@contextlib.contextmanager
def _control_group(name: str) -> Iterator[list[str]]:
    """Make a control group; give the words before a command that put it there. Two containers need two."""
    mounts = _control_group_mounts()
    group = mounts["cgroup2"][0] / name
    group.mkdir()
    try:
        yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        for place in [*mounts["cgroup2"], *mounts["cgroup"], PROPAGATED]:
            _remove_directories(place / name)


def _control_group_mounts() -> dict[str, list[Path]]:
    """Return this process's own group in each hierarchy, by the kind of the hierarchy."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    mounts: dict[str, list[Path]] = {"cgroup2": [], "cgroup": []}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounts[kind].append(Path(place) / own[""])
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounts[kind].append(Path(place) / own.get("name=systemd", ""))
    if not mounts["cgroup2"]:
        raise Unavailable("there is no cgroup2 file system")
    return mounts


def _remove_directories(top: Path) -> None:
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _leader_when_ready(notices: socket.socket, process: "subprocess.Popen[bytes]", console: Path) -> int:
    """Return the process id of the container's init, when that has said READY=1 (`--notify-ready`)."""
    leader = 0
    for notice in _notices_until_ended(notices, process):
        if found := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", notice, re.MULTILINE):
            leader = int(found[1])
        if re.search(r"^READY=1$", notice, re.MULTILINE):
            return leader
    raise Unavailable(f"the container did not boot: {console.read_text(errors='replace')[-2000:]}")


def _notices_until_ended(notices: socket.socket, process: "subprocess.Popen[bytes]") -> Iterator[str]:
    """Give what is sent to the notification socket, until the process ends or BOOT_SECONDS have passed.

    The socket must not stay open unread: when its queue is full, nspawn stops in the middle of what it does.
    """
    give_up_at = time.monotonic() + BOOT_SECONDS
    ended = os.pidfd_open(process.pid)
    try:
        while (seconds := give_up_at - time.monotonic()) > 0:
            readable, _, _ = select.select([notices.fileno(), ended], [], [], seconds)
            if notices.fileno() not in readable:
                return
            yield notices.recv(65536).decode()
    finally:
        os.close(ended)


def _copy_in(source: Path, destination: str, exclude: Sequence[str], run: Callable[..., object]) -> None:
    if not source.is_dir():
        mode = f"{source.stat().st_mode & 0o7777:o}"
        run("install", "-D", "-m", mode, "/dev/stdin", destination, input=source.read_bytes())
        return
    patterns = [f"--exclude={pattern}" for pattern in exclude]
    packed = subprocess.run(
        ["tar", "-c", *patterns, "-C", str(source), "."],
        check=True,
        stdout=subprocess.PIPE,
        timeout=COMMAND_SECONDS,
    )
    run("mkdir", "-p", destination)
    run("tar", "-x", "--no-same-owner", "-C", destination, input=packed.stdout)


def _run(
    command: Sequence[str],
    input: str | bytes | None = None,
    check: bool = True,
    timeout: float = COMMAND_SECONDS,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the host. Raises `CommandFailed`."""
    done = subprocess.run(
        command,
        input=input.encode() if isinstance(input, str) else input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        timeout=timeout,
        env=env,
        check=False,
    )
    output, errors = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if check and done.returncode:
        words = " ".join(command)
        raise CommandFailed(f"{words}\nexit code {done.returncode}\n{output[-4000:]}\n{errors[-4000:]}")
    return subprocess.CompletedProcess(command, done.returncode, output, errors)


def main(action: str, *words: str) -> int:
    """Do what the module's head says; return the exit code."""
    if action == "copy":
        suite, directory = words
        debian_tree(suite).copy(Path(directory))
        return 0
    directory, *command = words
    return Tree(Path(directory)).execute(*command)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
