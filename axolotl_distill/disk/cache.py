"""A bounded folder of files that lie elsewhere, shared by all processes of a machine.

    objects/SHA256        a whole file, by its hash, so that several owners share it
    objects/SHA256.part   one that is on its way; as long from the start as it will be
    locks/                one process fetches a file, the others wait for it

All files together are never larger than the bound. Who reads a file holds a shared lock on it; the
one that was read longest ago, and that nobody reads, makes room. A reader holds one file at a time,
and none while it waits, so that readers cannot wait for each other.

A whole file was held against its hash. Its time stamp is then set to a number out of the hash:
whoever changes the file changes that too, and it is fetched again.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from axolotl_distill.disk.lock import file_lock, let_go, try_hold
from axolotl_distill.disk.refused import refusals
from axolotl_distill.errors import RemoteError, StoreCorruptError, StoreError

LOG = logging.getLogger(__name__)
KEY = "`distill.cache.folder`"
PART = ".part"
STRIPES = 256
POLL = 0.01
# Seconds after which a wait for room is told, and given up.
SAID_AFTER, GIVEN_UP_AFTER = 10, 900


@dataclass(frozen=True)
class Wanted:
    """A file that lies elsewhere.

    where   its address, for messages        size, sha256   what it must have, bytes and hash
    blocks  its bytes, in order              check           raises for content that is damaged
    """

    where: str
    size: int
    sha256: str
    blocks: Callable[[], Iterator[bytes]]
    check: Callable[[Path], None]


@dataclass
class Stalls:
    """How often this process had to wait for a file, and how many seconds in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, where: str, seconds: float) -> None:
        """Said for the first, the second, the fourth, the eighth … time."""
        self.count += 1
        self.seconds += seconds
        if self.count & (self.count - 1) == 0:
            LOG.warning(
                f"axolotl-distill: waited {seconds:.2f} s for {where} (wait {self.count} of this "
                f"process, {self.seconds:.1f} s in all)"
            )


class FileCache:
    """See above. Safe to fork and to pickle.

    size  bytes; None: half of what the disk has free, with what the cache already has
    """

    def __init__(self, folder: Path, size: int | None):
        self.folder = folder
        self.stalls = Stalls()
        with refusals(folder, StoreError, KEY):
            for name in ("objects", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self.size = size or (shutil.disk_usage(folder).free + self.used()) // 2

    @contextmanager
    def held(self, wanted: Wanted) -> Iterator[Path]:
        """A whole file, which stays until the context ends; fetched first where it is not there.

        Raises StoreCorruptError for one that is not what it must be, StoreError for one that the
        cache has no room for, and what `blocks` and `check` do.
        """
        start = time.monotonic()
        file = self._open(wanted)
        if file is None:
            file = self._fetched(wanted)
            self.stalls.add(wanted.where, time.monotonic() - start)
        try:
            yield self._place(wanted)
        finally:
            let_go(file)

    def fetch(self, wanted: Wanted) -> None:
        """Have it there, for a reader that is to come. Raises what `held` does."""
        let_go(self._open(wanted) or self._fetched(wanted))

    def used(self) -> int:
        """Bytes of all files, those on their way included."""
        return sum(size for _, size, _ in self._files())

    def _place(self, wanted: Wanted) -> Path:
        return self.folder / "objects" / wanted.sha256

    def _open(self, wanted: Wanted) -> IO[bytes] | None:
        """The file, locked against removal; None where it is not there as it was made."""
        path = self._place(wanted)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        # It may be on its way out, or be gone since.
        if try_hold(file, shared=True):
            about = os.fstat(file.fileno())
            with suppress(FileNotFoundError):
                if path.stat().st_ino == about.st_ino:
                    if (about.st_size, about.st_mtime) == (wanted.size, _stamp(wanted.sha256)):
                        os.utime(path, (time.time(), about.st_mtime))
                        return file
                    LOG.warning(f"axolotl-distill: {path} was changed, and is fetched again")
                    path.unlink()
        let_go(file)
        return None

    def _fetched(self, wanted: Wanted) -> IO[bytes]:
        """The file, locked against removal, when it is there."""
        if wanted.size > self.size:
            raise StoreError(
                f"{wanted.where} has {wanted.size:,} bytes, and the cache {self.folder} may hold "
                f"{self.size:,}. Raise `distill.cache.size`, or make smaller shards: `axolotl "
                "distill store reshard`."
            )
        stripe = int(wanted.sha256[:8], 16) % STRIPES
        lock = file_lock(self.folder / "locks" / f"{stripe:02x}")
        with refusals(self.folder, StoreError, KEY), lock:
            # Another process may have brought it while this one waited.
            return self._open(wanted) or self._fetch(wanted)

    def _fetch(self, wanted: Wanted) -> IO[bytes]:
        path = self._place(wanted)
        part = path.with_name(path.name + PART)
        file = self._reserve(part, wanted)
        try:
            digest = hashlib.sha256()
            for block in wanted.blocks():
                file.write(block)
                digest.update(block)
            file.flush()
            if digest.hexdigest() != wanted.sha256:
                raise StoreCorruptError(
                    f"{wanted.where} has sha256 {digest.hexdigest()[:16]}…, the manifest says "
                    f"{wanted.sha256[:16]}…: its bytes were changed. Push or copy the store again "
                    "from where it was captured."
                )
            wanted.check(part)
            os.fsync(file.fileno())
            os.utime(part, (time.time(), _stamp(wanted.sha256)))
            # Who makes room holds the ledger too, so nobody does between the two locks.
            with self._ledger():
                os.replace(part, path)
                try_hold(file, shared=True)
            return file
        except BaseException:
            part.unlink(missing_ok=True)
            let_go(file)
            raise

    def _reserve(self, part: Path, wanted: Wanted) -> IO[bytes]:
        """An empty file that counts as what it will be; waits until there is room."""
        start, said = time.monotonic(), False
        while True:
            with self._ledger():
                if self._make_room(wanted.size):
                    file = part.open("w+b")
                    try_hold(file, shared=False)
                    try:
                        os.posix_fallocate(file.fileno(), 0, wanted.size)
                    except BaseException:
                        part.unlink(missing_ok=True)
                        let_go(file)
                        raise
                    return file
            waited = time.monotonic() - start
            if waited > SAID_AFTER and not said:
                said = True
                LOG.warning(
                    f"axolotl-distill: {self.folder} has no room for {wanted.where}: all of it is "
                    "being read or fetched. Waiting. A larger `distill.cache.size` helps."
                )
            if waited > GIVEN_UP_AFTER:
                raise RemoteError(
                    f"{self.folder} had no room for {wanted.where} in {waited:.0f} s. Raise "
                    "`distill.cache.size`."
                )
            time.sleep(POLL)

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes more may be there; removes, longest unread first, what nobody reads
        and what killed processes left. Under the ledger's lock."""
        files = sorted(self._files())
        used = sum(held for _, held, _ in files)
        # What was left half is of no use to anybody.
        for _, held, path in sorted(files, key=lambda found: found[2].suffix != PART):
            if used + size <= self.size and path.suffix != PART:
                break
            if _removed(path):
                used -= held
        return used + size <= self.size

    def _files(self) -> list[tuple[float, int, Path]]:
        """(when last read, bytes, path)"""
        found = []
        for entry in os.scandir(self.folder / "objects"):
            with suppress(FileNotFoundError):
                about = entry.stat()
                found.append((about.st_atime, about.st_size, Path(entry.path)))
        return found

    @contextmanager
    def _ledger(self) -> Iterator[None]:
        with file_lock(self.folder / "locks" / "ledger"):
            yield


def _removed(path: Path) -> bool:
    """Whether a file that nobody holds was removed."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True
    try:
        if not try_hold(file, shared=False):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        let_go(file)


def _stamp(sha256: str) -> float:
    """Seconds: even, for file systems that keep no others, and long ago."""
    return float(int(sha256[:7], 16) & ~1)
