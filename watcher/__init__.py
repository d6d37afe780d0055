"""Watches sequencing runs complete, encrypts each, proves the archive, and records it.

Words, one a thing, in code, log, documents and README:

- run: one run directory, `sequencing_path/<sequencer>/<run>`; its name is its document's `_id`
- sentinel: `.metadata_rsync_exitcode` in the run directory; says that the run is complete
- observer, rescan: the inotify side; a full listing that needs no events
- run document, status database: the run's record; CouchDB, or SQLite for one machine
- source: a run directory that is held open while it is archived; listing: what is in it at one moment
- settled, quiet: nothing has changed since tar began; nothing has changed within `quiet_period`
- changed: an archived run whose source is not what was archived any more
- claim, claim token: the right to work on a run; the random token of this one acquisition
- worker: a process of ours; `worker_id` is its host's name unless configured
- lease: a claim kept alive by renewal; it can be lost
- attempt, `failure_count`: counted only when the run itself failed
- file key: one archive's secret, 32 random bytes as a line of text; in memory only
- recipient: the public key that may unwrap file keys
- archive, encrypt, validate, wrap, publish, record: the steps, in this order
- adopt: to complete a proven archive of an interrupted attempt, instead of making it again

A run document is `pending`, `processing`, `encrypted` or `failed`: that says what may happen next.
`watcher.model.TRANSITIONS` is the whole table.

Where the code left the design it was built to, and why:

- Publishing takes no lock. Whoever takes a run over adopts what was announced, or removes its staged
  files; from then on the former holder has nothing left to publish. A lock held by a suspended process
  would have kept the rescuer waiting for as long as that sleeps. (`watcher.archive`)
- What has a final name is never removed, not even by the one who adopts: a half-published archive whose other
  half has rotted ends `failed`, for people to look at. (`watcher.archive`)
- gpg that fails to wrap a file key is nobody's fault: what it wraps is 64 characters, the same for every run.
  The proven archive waits for it. (`watcher.errors`)
- No byte moved for `stall_limit`: if we wait in our own read or write, it is the disk that hangs, and the attempt
  does not count. A job that was cancelled is not kept alive: its thread may hang in the kernel, and whoever has a
  disk that answers must get the run. (`watcher.job`, `watcher.lease`)
- gpg encrypts and validates without an agent and without a keyring, which a full or read-only home would not let it
  have. (`watcher.crypto`)
- A finished archive has a manifest beside it while it is staged, so that it can be adopted even if the
  database was away from before it was announced until its maker died. (`watcher.archive`)
- An archive names the version of the sentinel that had made its run ready. Until it has a final name it is adopted
  only while that is still the one: a transfer that came again may have brought more. (`watcher.worker`)
- Who could not look at the others' claims for half a lease begins anew to count: after an outage of
  the database nobody takes a run from a holder that could not renew either. (`watcher.lease`)
- gpg's output comes through a pipe and is written here, so that a full or failing disk is an errno and
  not gpg's words, and the `fsync` is on the descriptor that wrote. (`watcher.archive.writing`)
- `job` is a room of its own below the adapters: what tar, gpg, the leases and the main thread share.
- `tar` is a room beside `archive`: the stream of a run, and the files that it ends in, are two jobs.
- `mounts` is a room beside `sentinels`: where rescans have to stand in for events, and when that changes.
- `inotify` and `observer` are rooms of their own beside `sentinels`: watches, what events lead to, and what
  a sentinel says are three jobs.
- `debris` is a room beside the worker: what no claim will ever remove is found once a day.
- `lock` and `notifier` are rooms of their own: one process a worker id, and what systemd is told.
- Rescans have a thread of their own: whoever feeds the watchdog, keeps leases, hears of events or of the database
  waits for no run's disk. (`watcher.service`)
- `intake` and `dispatcher` are rooms of their own beside the service: registering in bulk, and handing
  runs to free threads.
- A run that changes while it is archived costs no attempt until `settle_limit`. Three listings of the held directory
  must be equal: before tar, after the proof, before the archive gets its name. (`watcher.source`, `watcher.worker`)
- tar starts in the held directory, and `--transform` gives its members the run's name: a path could lead elsewhere by
  then. (`watcher.tar`)
- Each member of tar's stream is compared with the listing. The file system says which files may have holes or are
  linked, the content decides: `--sparse` and hard links are used only if all of them are real.
  (`watcher.completeness`, `watcher.source`)
- Documents become checked values at one door; what is unreadable is set aside there. (`watcher.statusdb.door`)
- `restore` walks an archive's headers before tar gets a byte of them. (`watcher.unpacking`, `watcher.members`)
"""

__version__ = "0.1.0"
