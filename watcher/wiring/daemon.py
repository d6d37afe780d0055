"""The daemon, and what must be right before it runs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from watcher import archiving, openpgp
from watcher.archiving import ArchiveStore, LeaseKeeper
from watcher.config import Config, check_paths, prepare_run_keys_path
from watcher.daemon import Notifier, Parts, Service, Settings, lock_file, mark, watchdog_seconds
from watcher.discovery import Observer, Places, network_places
from watcher.errors import CannotRun, ConfigError, RecipientUnusable, WrapFailed
from watcher.figures import FiguresServer
from watcher.metrics import Metrics
from watcher.model import Encryption, ManifestMode, ValidationMode
from watcher.process import low_limits
from watcher.source import Policy, Rules
from watcher.tar import tar_version
from watcher.wiring.archives import find_recipient
from watcher.wiring.sites import statusdb, walk

logger = logging.getLogger(__name__)


def remote_places(config: Config) -> dict[Path, str]:
    """Return which of the sequencing path and its sequencers cause no events for other hosts' writes, with types."""
    return network_places(config.sequencing_path, config.ignore)


def refuse_unusable(config: Config) -> None:
    """Raise ConfigError with everything that keeps this machine from archiving by this configuration."""
    if problems := list(low_limits(config.max_concurrent_jobs)):
        raise ConfigError(problems)  # at such a limit the looks below fail with other words
    problems = list(check_paths(config))
    looks: tuple[Callable[[], object], ...] = (
        tar_version,
        lambda: openpgp.require(Encryption(config.encryption), config.gnupg_home),
        lambda: find_recipient(config),
    )
    for look in looks:
        try:
            look()
        except (RecipientUnusable, CannotRun) as error:
            problems.append(str(error))
        except WrapFailed as error:  # it may pass, and a finished archive waits for that
            logger.warning("%s", error)
    if problems:
        raise ConfigError(problems)
    prepare_run_keys_path(config.run_keys_path)


def service(config: Config, metrics: Metrics) -> Service:
    """Return the daemon, ready to run."""
    abort = threading.Event()
    database = statusdb(config, abort.wait)
    leases = LeaseKeeper(database, config.lease_seconds)
    marks = (lock_file(config.destination_path, config.worker_id), mark(config.run_keys_path, config.worker_id))
    place = ArchiveStore(config.destination_path, config.run_keys_path, marks)
    return Service(
        Settings(
            worker_id=config.worker_id,
            sequencing_path=config.sequencing_path,
            rescan_interval=config.rescan_interval,
            network_rescan_interval=config.network_rescan_interval,
            stall_limit=config.stall_limit,
            lease_seconds=config.lease_seconds,
            jobs=config.max_concurrent_jobs,
            rules=_rules(config),
            watchdog_seconds=watchdog_seconds(os.environ),
        ),
        Parts(
            database,
            place,
            archiving.Worker(_worker_settings(config), database, place, leases),
            leases,
            FiguresServer(marks[0], leases.jobs),
            Places(config.sequencing_path, config.ignore),
            partial(Observer, walk(config)),
            metrics,
        ),
        abort,
        Notifier(os.environ.get("NOTIFY_SOCKET")),
    )


def _worker_settings(config: Config) -> archiving.Settings:
    return archiving.Settings(
        worker_id=config.worker_id,
        receiver=config.gpg_receiver,
        gnupg_home=config.gnupg_home,
        rules=_rules(config),
        policy=Policy(config.sentinel_policy),
        encryption=Encryption(config.encryption),
        manifest=ManifestMode(config.manifest),
        validation=ValidationMode(config.validation),
        minimum_free_space=config.minimum_free_space,
        retry_delay=config.retry_delay,
        settle_limit=config.settle_limit,
        quiet_period=config.quiet_period,
        bandwidth_limit=config.bandwidth_limit,
        prefix=_priority(config),
    )


def _priority(config: Config) -> tuple[str, ...]:
    """Return the words before a command that start it with the configured priorities: nice(1), ionice(1)."""
    nice = ("nice", "-n", str(config.nice)) if config.nice else ()
    io_class = ("ionice", "-c", config.io_class) if config.io_class else ()
    return (*nice, *io_class)


def _rules(config: Config) -> Rules:
    return Rules(config.tar_exclusions, config.tolerated_changes, config.transfer_names)
