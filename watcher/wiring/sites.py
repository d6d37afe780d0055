"""The status database and the sequencing path."""

from __future__ import annotations

from collections.abc import Callable

from watcher.config import Config
from watcher.errors import ConfigError
from watcher.overview import Place
from watcher.source import NETWORK_FILE_SYSTEMS, Policy, Walk, file_system_type
from watcher.statusdb import DocumentStore, Login, SQLiteStore, StatusDB


def walk(config: Config) -> Walk:
    """Return what looks at the runs in the sequencing path."""
    return Walk(config.sequencing_path, config.ignore, Policy(config.sentinel_policy))


def statusdb(config: Config, wait: Callable[[float], bool]) -> StatusDB:
    """Return the status database that the configuration names. Raises ConfigError for SQLite on a network."""
    return StatusDB(_store(config, wait), wait)


def place(config: Config, database: StatusDB) -> Place:
    """Return where to look for what is known of runs."""
    return Place(walk(config), database, config.destination_path, config.worker_id, config.lease_seconds)


def _store(config: Config, wait: Callable[[float], bool]) -> DocumentStore:
    path = config.statusdb.sqlite_path
    if path is None:
        secret = config.statusdb.password
        from watcher.statusdb import CouchDBStore  # noqa: PLC0415  # for its libraries: see there

        return CouchDBStore(
            Login(
                config.statusdb.server_url,
                config.statusdb.database,
                config.statusdb.username,
                secret.reveal() if secret else None,
                str(config.statusdb.ca_file) if config.statusdb.ca_file else None,
            )
        )
    if path.parent.is_dir() and (kind := file_system_type(path.parent)) in NETWORK_FILE_SYSTEMS:
        raise ConfigError(
            f"statusdb.url: '{path}' lies on a network file system ({kind}), where SQLite's locks do not hold; "
            "use a local disk, or CouchDB for several hosts"
        )
    return SQLiteStore(path, wait)
