"""Sees that sequencing runs are complete, encrypts each, proves the archive, and records it.

The road of a run, folder by folder:

- `discovery` sees that a run's sentinel is ready, and registers the run.
- `daemon` lets it wait for a free thread.
- `archiving` claims it, holds its directory (`source`), packs and encrypts it (`tar`, `openpgp`), proves the archive,
  and publishes it.
- `statusdb` keeps the run's document, and the claim. `model` says what may happen to a run.
- `stored` opens an archived run's files again, `verifying` compares them, and `restoring` brings the run back.
  `overview` says how a run stands, and why. `commands` are what an operator types.

Imports point down, folder by folder. Each folder's `__init__` says what it promises, and exports what others use.

What we promise:

- A run whose sentinel is ready ends `encrypted` or `failed`, whatever events were lost.
- `encrypted` means: the archive and the wrapped key are on the disk under their final names, belong together, and were
  proven. The stored file was decrypted, and gave what tar gave; that is what the run held; the run stood still.
- The file key is never on a disk, in a command line, in an environment, in a log or in the database.
- One worker's result counts for a run, though workers stall, die, and wake up late.
- A final name never shows a partial file. Nothing is removed but staged files of ours. A run is only read.
- A failure that is not the run's own costs it no attempt.
- Each archive can be restored with gpg and tar alone.

The words are in `docs/glossary.md`, the picture in `docs/architecture.md`, the reasons in `docs/decisions.md`.
"""

__version__ = "0.1.0"
