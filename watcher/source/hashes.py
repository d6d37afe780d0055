"""Hashes of entries and files, eight bytes each: what a listing of a million files can afford to keep."""

from __future__ import annotations

import itertools
import os
from array import array
from bisect import bisect_left
from hashlib import blake2b

from watcher.model import Kind

_BUCKETS = 1024


class Hashes:
    """Numbers of 64 bits, eight bytes each. `find` returns the place of one."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(_BUCKETS)]
        self._starts: list[int] = []

    def add(self, number: int) -> None:
        """Take a number in."""
        self._buckets[number % _BUCKETS].append(number)

    def close(self) -> None:
        """Sort: nothing is added any more. Bucket by bucket, since a list takes five times the room of an array."""
        start = 0
        for index, bucket in enumerate(self._buckets):
            self._buckets[index] = array("Q", sorted(bucket))
            self._starts.append(start)
            start += len(bucket)

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def find(self, number: int) -> int | None:
        """Return the place of a number in the order of all, once they are sorted; None if it is not there."""
        index = number % _BUCKETS
        bucket = self._buckets[index]
        place = bisect_left(bucket, number)
        return self._starts[index] + place if place < len(bucket) and bucket[place] == number else None

    def repeated(self) -> set[int]:
        """Return the numbers that were taken in more than once. Sorts."""
        self.close()
        return {
            number for bucket in self._buckets for number, following in itertools.pairwise(bucket)
            if number == following
        }  # fmt: skip


_SALT = os.urandom(16)  # random, so that nobody can choose names with equal hashes


def entry_hash(path: bytes, kind: Kind, size: int) -> int:
    """Return what stands for an entry of this path and kind, and for a file of this size."""
    words = b"%s\0%s\0%d" % (path, kind.encode(), size if kind is Kind.FILE else 0)
    return int.from_bytes(blake2b(words, digest_size=8, key=_SALT).digest(), "big")


def file_number(status: os.stat_result) -> int:
    """Return what stands for a file: two names of one file have the same."""
    return int.from_bytes(blake2b(b"%d %d" % identity_of(status), digest_size=8, key=_SALT).digest(), "big")


def numbered_name(status: os.stat_result, path: bytes) -> int:
    """Return what stands for a name together with the file that it leads to."""
    words = b"%d %d %s" % (*identity_of(status), path)
    return int.from_bytes(blake2b(words, digest_size=8, key=_SALT).digest(), "big")


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """Return a file's device and inode number."""
    return status.st_dev, status.st_ino
