"""Each safeguard, taken out of a copy of the code, makes the test fail that is named beside it.

`pytest -m slow tests/test_safeguards.py`. The protocol's model has the same list: `tests/protocol`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from machine import IS_SHARED

ROOT = Path(__file__).parent.parent
SECONDS = 300


class Safeguard(NamedTuple):
    """A line of `file` and what stands there without it; `test` is the one that must notice, of many cases one."""

    file: str
    line: str
    without: str
    test: str


SAFEGUARDS = {
    "a write compares revisions (SQLite)": Safeguard(
        "statusdb/sqlite/store.py",
        'if (str(current[0]) if current else None) != document.get("_rev"):',
        "if False:",
        "statusdb/test_contract.py::test_a_write_over_an_old_revision_is_a_conflict_and_changes_nothing[sqlite]",
    ),
    "a write compares tokens": Safeguard(
        "statusdb/saving.py",
        "if found is None or not (has_ended or model.is_held(found, self._token)):",
        "if found is None:",
        "archiving/test_worker.py::test_whoever_loses_the_claim_changes_nothing_of_what_the_other_published[before-refuse_foreign]",
    ),
    "a lost claim's answer compares tokens": Safeguard(
        "statusdb/claiming.py",
        'return found if found is not None and model.is_held(found, wanted["claim"]["token"]) else None',
        "return found",
        "statusdb/test_claims.py::test_a_claim_that_another_worker_has_is_none_and_stays_theirs[sqlite]",
    ),
    "202 is no claim": Safeguard(
        "statusdb/claiming.py",
        'if not written.confirmed:\n        logger.warning("the claim',
        'if False:\n        logger.warning("the claim',
        "statusdb/test_claims.py::test_a_claim_that_too_few_nodes_confirm_is_none",
    ),
    "a takeover is of the revision that stood still": Safeguard(
        "statusdb/claiming.py",
        'return stale_rev is not None and bool(document["_rev"] == stale_rev)',
        "return stale_rev is not None",
        "statusdb/test_claims.py::test_a_stale_claim_is_taken_over_only_over_the_revision_that_was_found_stale[sqlite]",
    ),
    "a document is checked before it is used": Safeguard(
        "statusdb/door.py",
        "return Unreadable(_text(name), reason) if reason else found",
        "return found",
        "statusdb/test_door.py::test_one_unreadable_document_keeps_no_other_from_being_read[couchdb-<infinite>]",
    ),
    "a holder stops trusting its lease": Safeguard(
        "archiving/story.py",
        'if lease.document.get("archive") is None or not lease.is_trusted:',
        'if lease.document.get("archive") is None:',
        "archiving/test_worker.py::test_a_holder_that_may_not_trust_its_lease_any_more_asks_before_it_publishes",
    ),
    "an archive is announced before it is named": Safeguard(
        "archiving/story.py",
        '        if lease.document.get("archive") is None or not lease.is_trusted:\n'
        "            lease.write(attempt.parts.statusdb.announce, archive)\n",
        "",
        "archiving/test_worker.py::test_a_finished_archive_is_adopted_after_a_crash[before the announcement arrives]",
    ),
    "the worker's lock": Safeguard(
        "daemon/lock.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "daemon/test_lock.py::test_the_lock_is_free_again_when_its_holder_has_ended",
    ),
    "what is not adopted is removed: the run's fence": Safeguard(
        "archiving/adoption.py",
        "    for token in attempt.claim.earlier_tokens:\n        archive_store.drop(attempt.name, token)\n",
        "",
        "archiving/test_worker.py::test_what_a_crash_left_unfinished_is_swept_and_made_again[validated]",
    ),
    "what came after our claim is spared": Safeguard(
        "archiving/adoption.py",
        "    for token in attempt.claim.earlier_tokens:\n        archive_store.drop(attempt.name, token)\n",
        "    for token in archive_store.staged_tokens(attempt.name):\n"
        "        archive_store.drop(attempt.name, token)\n",
        "archiving/test_worker.py::test_a_late_waker_leaves_the_files_of_its_successor_alone",
    ),
    "a file is on the disk before it is announced": Safeguard(
        "archiving/files.py",
        "                os.fsync(self._descriptor)",
        "                pass",
        "archiving/test_publication.py::test_every_file_is_on_the_disk_before_it_has_its_name_and_the_names_before_the_record",
    ),
    "a staged name is on the disk before it is announced": Safeguard(
        "archiving/publication.py",
        "            file.write(json.dumps(archive.to_document()).encode())\n        self.sync()\n",
        "            file.write(json.dumps(archive.to_document()).encode())\n",
        "archiving/test_publication.py::test_every_file_is_on_the_disk_before_it_has_its_name_and_the_names_before_the_record",
    ),
    "a final name is on the disk before the record": Safeguard(
        "archiving/publication.py",
        "        self.sync()\n        for token",
        "        for token",
        "archiving/test_publication.py::test_every_file_is_on_the_disk_before_it_has_its_name_and_the_names_before_the_record",
    ),
    "another's final name is on the disk before a staged one goes": Safeguard(
        "archiving/publication.py",
        "            self.sync()\n        self._remove_staged(run_name, token)",
        "            pass\n        self._remove_staged(run_name, token)",
        "archiving/test_publication.py::test_names_that_another_has_given_are_on_the_disk_before_the_staged_ones_go",
    ),
    "the claim of a worker that hangs becomes stale": Safeguard(
        "archiving/lease.py",
        "if self._ended or self.job.cancelled.is_set():",
        "if self._ended:",
        "archiving/test_lease.py::test_a_job_that_was_cancelled_and_does_not_end_is_not_kept_alive_and_its_claim_becomes_stale",
    ),
    "the key has its name before the archive": Safeguard(
        "archiving/publication.py",
        "for staged, final, sha256 in self._moves(run_name, archive):\n            if not given_name",
        "for staged, final, sha256 in reversed(self._moves(run_name, archive)):\n            if not given_name",
        "archiving/test_publication.py::test_an_archive_has_no_name_without_its_key",
    ),
    "what was not adopted is not announced any more": Safeguard(
        "archiving/adoption.py",
        '    if "archive" in attempt.lease.document:\n'
        "        attempt.lease.write(attempt.parts.statusdb.announce, None)\n",
        "",
        "archiving/test_worker.py::test_an_archive_that_is_not_adopted_is_not_announced_any_more",
    ),
    "what is adopted is no older than the sentinel": Safeguard(
        "archiving/adoption.py",
        "if not _is_wanted(attempt, archive):",
        "if False:",
        "archiving/test_worker.py::test_a_finished_archive_is_made_again_when_the_transfer_came_again_meanwhile"
        "[before it publishes]",
    ),
    "a job that waits for its next try does not hang": Safeguard(
        "job.py",
        "if self._is_waiting or now - self._looked_at > LOOK_SECONDS:",
        "if now - self._looked_at > LOOK_SECONDS:",
        "test_job.py::test_a_job_without_a_child_has_none_that_hangs_but_not_for_ever[archiving]",
    ),
    "what came after our claim is spared even by one who sleeps at it": Safeguard(
        "archiving/worker.py",
        "earlier = self._parts.archive_store.staged_tokens(run.name)\n        asked_at = self._leases.now()\n"
        "        claim = statusdb.claim(run, self._parts.settings.worker_id, document)\n",
        "asked_at = self._leases.now()\n"
        "        claim = statusdb.claim(run, self._parts.settings.worker_id, document)\n"
        "        earlier = self._parts.archive_store.staged_tokens(run.name)\n",
        "archiving/test_worker.py::test_a_worker_that_falls_asleep_at_its_claim_leaves_the_files_of_its_successor_alone",
    ),
    "a receipt goes first": Safeguard(
        "archiving/publication.py",
        "return receipt, self.staged_key(run_name, token), *manifests, self.staged_archive(run_name, token)",
        "return self.staged_key(run_name, token), *manifests, self.staged_archive(run_name, token), receipt",
        "archiving/test_publication.py::test_a_receipt_goes_before_the_files_that_it_speaks_of",
    ),
    "a record is on the disk (SQLite)": Safeguard(
        "statusdb/sqlite/connections.py",
        "pragma synchronous = full",
        "pragma synchronous = off",
        "archiving/test_publication.py::test_every_file_is_on_the_disk_before_it_has_its_name_and_the_names_before_the_record",
    ),
    "a final name is never taken from another file": Safeguard(
        "archiving/files.py",
        "os.link(staged, final)",
        "os.rename(staged, final)",
        "archiving/test_publication.py::test_a_foreign_file_under_a_final_name_is_named_and_never_overwritten",
    ),
    "what is adopted has the announced digests": Safeguard(
        "archiving/publication.py",
        "if sha256_of(staged, moved) != sha256 and sha256_of(final, moved) != sha256:",
        "if not staged.exists() and not final.exists():",
        "archiving/test_worker.py::test_a_staged_file_that_is_not_the_announced_one_is_not_adopted"
        "[before it publishes-staged_archive]",
    ),
    "adopting looks at staged names first": Safeguard(
        "archiving/publication.py",
        "if sha256_of(staged, moved) != sha256 and sha256_of(final, moved) != sha256:",
        "if sha256_of(final, moved) != sha256 and sha256_of(staged, moved) != sha256:",
        "archiving/test_publication.py::test_an_archive_that_its_maker_names_between_two_looks_at_it_is_adopted",
    ),
    "a finished archive has a receipt": Safeguard(
        "archiving/completion.py",
        'attempt.wait_out(lambda: archive_store.stage_receipt(name, archive), "stage the receipt")',
        "pass",
        "archiving/test_worker.py::test_a_finished_archive_survives_a_stop_while_the_database_is_away",
    ),
    "what is validated has left the page cache": Safeguard(
        "archiving/readback.py",
        "            self._job.on_storage(self._drop, self._path)(start)\n"
        "            if not is_cached(self._descriptor, start + self._file.window_bytes // 2):\n"
        "                return start + self._file.window_bytes\n",
        "            return start + self._file.window_bytes\n",
        "archiving/test_validation.py::test_each_window_has_left_the_page_cache_before_it_is_read",
    ),
    "the rest of an archive has left the page cache": Safeguard(
        "archiving/readback.py",
        "os.posix_fadvise(self._descriptor, start, 0, os.POSIX_FADV_DONTNEED)",
        "pass",
        "archiving/test_validation.py::test_what_is_left_at_the_end_has_left_the_page_cache_too",
    ),
    "a file that somebody has written to is read once more": Safeguard(
        "archiving/story.py",
        "if version_of(encrypted.staged) != encrypted.version:",
        "if False:",
        "archiving/test_worker.py::test_a_bit_that_is_flipped_after_the_validation_is_found_before_the_archive_has_its_name"
        "[follow-stage_key]",
    ),
    "a second pass that stands still is seen": Safeguard(
        "job.py",
        "reason = self._stall(limit_seconds) or (second._stall(limit_seconds) if second else None)",
        "reason = self._stall(limit_seconds)",
        "archiving/test_validation.py::test_a_second_pass_that_stands_still_ends_the_job_though_the_first_one_goes_on",
    ),
    "the stored file decrypts to what tar gave": Safeguard(
        "archiving/story.py",
        "if plain != report.stream:",
        "if False:",
        "archiving/test_worker.py::test_the_runs_own_failure_counts_to_three_and_leaves_no_partial_file"
        "[ValidateFailed, since gpg lost the end of what tar gave]",
    ),
    "tar ended clean": Safeguard(
        "tar/stream.py",
        "        self._messages.judge(code)\n",
        "",
        "archiving/test_publication.py::test_a_tar_that_is_killed_has_failed_though_its_stream_ended",
    ),
    "what tar left out is missed": Safeguard(
        "archiving/members.py",
        "        self._completeness.require()\n",
        "",
        "tar/test_completeness.py::test_a_tar_that_excludes_more_than_the_patterns_is_refused",
    ),
    "the run is listed again before its archive has its name": Safeguard(
        "archiving/story.py",
        "            still.require()  # at each try",
        "            pass  # at each try",
        "archiving/test_settled.py::test_whatever_changes_before_the_archive_has_its_name_means_not_settled"
        "[a late file-once it has its receipt]",
    ),
    "files are read to their end": Safeguard(
        "archiving/story.py",
        "still.require(with_ends=True)",
        "still.require()",
        "source/test_lying_disk.py::test_a_file_with_more_content_than_its_size_says_is_refused",
    ),
    "a run is quiet before its archive has its name": Safeguard(
        "archiving/story.py",
        "        attempt.await_quiet(still)\n        _publish",
        "        _publish",
        "archiving/test_settled.py::test_a_run_that_has_just_come_is_recorded_when_it_has_been_quiet",
    ),
    "a hole is one by its content": Safeguard(
        "source/contents.py",
        "holes = listing.has_holes and not any(self.has_data(path, moved) for path in self._without_blocks())",
        "holes = listing.has_holes",
        "source/test_lying_disk.py::test_a_file_whose_blocks_are_not_counted_is_no_hole[0-a hole]",
    ),
    "a hard link is one by its content": Safeguard(
        "source/contents.py",
        "links = listing.has_links and self._are_links_real(moved)",
        "links = listing.has_links",
        "source/test_lying_disk.py::test_files_of_different_lengths_with_one_inode_number_both_keep_their_content",
    ),
    "tar starts in the held directory": Safeguard(
        "tar/stream.py",
        "cwd=still.source.directory,",
        "cwd=still.source.run.path,",
        "source/test_directory.py::test_tar_reads_the_held_directory_though_another_has_its_name_when_tar_is_started",
    ),
    "a wrapped key is for the recipient alone": Safeguard(
        "openpgp/keyring.py",
        "        recipient.require(wrapped)\n",
        "",
        "openpgp/test_recipient.py::test_a_subkey_named_without_the_mark_that_gpg_does_not_choose_is_refused",
    ),
    "a child's exit status is ours": Safeguard(
        "process.py",
        "    _reset_signals()\n    os.umask",
        "    os.umask",
        "test_process.py::test_a_tar_that_failed_has_failed_though_the_parent_ignores_its_children",
    ),
    "a restored member passes through no link": Safeguard(
        "restoring/guard.py",
        "if parent is not Kind.DIRECTORY:",
        "if parent is None:",
        "restoring/test_restore.py::test_an_unsafe_archive_is_refused_and_leaves_nothing"
        "[a file in a link to the inside]",
    ),
    "a restored member lies in the run": Safeguard(
        "restoring/guard.py",
        'if start != b"." or parts[:1] != [self._run] or not {b"", b".", b".."}.isdisjoint(parts):',
        "if False:",
        "restoring/test_guard.py::test_no_byte_of_an_unsafe_member_reaches_tar[1048576-..]",
    ),
    "a sparse member's map does not reach into the next header": Safeguard(
        "tar/sparse.py",
        "                self._check()\n",
        "",
        "tar/test_members.py::test_a_member_that_only_tar_would_see_makes_the_stream_malformed[a greedy map]",
    ),
    "a stored file is not read through a link": Safeguard(
        "stored/files.py",
        "flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC",
        "flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC",
        "restoring/test_restore.py::test_only_a_regular_file_is_read[key-put_a_link]",
    ),
    "a restored file has no set-uid bit": Safeguard(
        "restoring/guard.py",
        "return member.mode & ~SET_ID",
        "return member.mode",
        "restoring/test_restore.py::test_set_id_bits_are_not_restored_unless_asked_for",
    ),
    "a stale claim has stood still for a lease": Safeguard(
        "archiving/lease.py",
        "if now - since >= self._seconds:",
        "if now >= since:",
        "archiving/test_lease.py::test_a_claim_whose_revision_moves_is_never_stale",
    ),
}


PLUGIN = """
import watcher


def pytest_report_header():
    return f"watcher is {watcher.__file__}"
"""


def copy_of_the_code(directory: Path) -> Path:
    """Copy the package into a directory, with a plugin of pytest's beside it that tells whose is imported."""
    shutil.copytree(ROOT / "watcher", directory / "watcher", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "whose.py").write_text(PLUGIN, encoding="ascii")
    return directory / "watcher"


def run_tests(tests: Iterable[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run tests against the copy in a directory, up to the first that fails."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "whose",
            "-o", f"pythonpath={directory}", *(f"tests/{test}" for test in tests),
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(directory), IS_SHARED: "1"},
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert f"watcher is {directory / 'watcher' / '__init__.py'}\n" in done.stdout, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_tests_that_miss_a_safeguard_pass_where_none_is_taken_out(tmp_path: Path) -> None:
    tests = {safeguard.test for safeguard in SAFEGUARDS.values()}
    copy_of_the_code(tmp_path)
    done = run_tests(tests, tmp_path)
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert re.search(r"= \d+ passed in ", done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SAFEGUARDS)
def test_a_safeguard_that_is_taken_out_is_missed(name: str, tmp_path: Path) -> None:
    safeguard = SAFEGUARDS[name]
    file = copy_of_the_code(tmp_path) / safeguard.file
    source = file.read_text()
    assert source.count(safeguard.line) == 1
    file.write_text(source.replace(safeguard.line, safeguard.without))
    done = run_tests([safeguard.test], tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert " failed" in done.stdout.splitlines()[-1], done.stdout
