"""Every file of a store is held against its hash once, when it is first opened.

What was found whole is remembered in the user's cache folder by uid, hash, size, inode and time
stamps, so that a later open, another rank or tomorrow's run reads no file for it. The first
process checks; others that open the store meanwhile wait for it. Where nothing can be remembered,
every process checks for itself.
"""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout
from tqdm import tqdm

from axolotl_distill.disk.atomic import write_atomically
from axolotl_distill.disk.lock import file_lock
from axolotl_distill.errors import StoreCorruptError, StoreMissingError
from axolotl_distill.store.manifest import AGAIN, Manifest
from axolotl_distill.store.rows import open_rows
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.tensors import map_tensors

CACHE = "axolotl-distill"
# A file changed within one tick of its file system's clock keeps its time stamp.
SETTLED_NS = 2 * 10**9
THREADS = 8
SHOWN_AFTER = 1.5
# Records of a shard that are held against what a record must be; `verify` looks at all.
SAMPLE = 4096

Stamp = list[int | str]
CHANGED = 2
_here: dict[str, dict[str, Stamp]] = {}


def check_files(
    store: Path, manifest: Manifest, *, again: bool = False, rows_alone: bool = False
) -> None:
    """Raises StoreMissingError or StoreCorruptError unless every file that the manifest names is
    there and as it was written: size, hash, the header of its tensors, the footer of its rows.

    again       read them all, whatever is remembered
    rows_alone  those of the rows; the records lie elsewhere

    Costs one stat a file when all are remembered, else reads those that are not, several at once
    (progress is shown when it takes over a second).
    """
    stamps = check_sizes(store, manifest, rows_alone)
    memory = _Memory(store, manifest.uid)
    if not again and not _unknown(stamps, memory.read()):
        return
    with memory.locked(store):
        # Another process may have checked it while this one waited.
        known = {} if again else memory.read()
        todo = _unknown(stamps, known)
        found = {name: stamp for name, stamp in stamps.items() if name not in todo}
        try:
            _check(store, manifest, stamps, todo, found)
        finally:
            if found != known:
                memory.write(found)


def check_sizes(
    store: Path, manifest: Manifest, rows_alone: bool = False, elsewhere: Set[str] = frozenset()
) -> dict[str, Stamp]:
    """By what every file of a store is known again. One stat a file; none of those `elsewhere`.

    Raises StoreMissingError or StoreCorruptError for a file that is missing or cut."""
    return {
        name: _stamp(f"{store}/{name}", about["bytes"], about["sha256"])
        for shard in manifest.shards
        for name, about in shard.files.items()
        if (name == shard.rows_file or not rows_alone) and name not in elsewhere
    }


def _check(
    store: Path,
    manifest: Manifest,
    stamps: dict[str, Stamp],
    todo: set[str],
    found: dict[str, Stamp],
) -> None:
    """Checks the files in `todo`; those that are whole, and not too fresh to be told from a later
    version by their time stamps, go into `found`."""
    work = [(shard, name) for shard in manifest.shards for name in shard.files if name in todo]
    total = sum(shard.files[name]["bytes"] for shard, name in work)
    with (
        tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc=f"checking {store} (once)",
            delay=SHOWN_AFTER,
            leave=False,
        ) as progress,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):
        start = time.time_ns()
        done = [(*item, pool.submit(_check_file, store, manifest, *item)) for item in work]
        try:
            for shard, name, checked in done:
                checked.result()
                about = shard.files[name]
                progress.update(about["bytes"])
                stamp = _stamp(f"{store}/{name}", about["bytes"], about["sha256"])
                if stamp == stamps[name] and start - int(stamp[CHANGED]) > SETTLED_NS:
                    found[name] = stamp
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_file(store: Path, manifest: Manifest, shard: Shard, name: str) -> None:
    path, said = store / name, shard.files[name]["sha256"]
    try:
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreMissingError(f"{path} cannot be read: {error.strerror}. {AGAIN}") from error
    if seen != said:
        raise StoreCorruptError(
            f"{path} has sha256 {seen[:16]}…, the manifest says {said[:16]}…: its bytes were "
            f"changed. {AGAIN}"
        )
    if name == shard.rows_file:
        open_rows(path, manifest, shard).close()
    else:
        check_records(path, manifest, shard)


def check_records(path: Path, manifest: Manifest, shard: Shard) -> None:
    """Raises StoreCorruptError unless a file of records, whose hash is right, has the header that
    it must, and some of its records are what a record must be."""
    arrays = map_tensors(path, manifest, shard)
    try:
        manifest.payloads.check(arrays, manifest.shape_of(shard), most=SAMPLE)
    except ValueError as error:
        raise StoreCorruptError(f"{path}: {error}. {AGAIN}") from error


def _stamp(path: str, size: int, sha256: str) -> Stamp:
    """By which a file that was checked is known again. Raises where it is missing or cut."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise StoreMissingError(
            f"{path} is missing, though the manifest names it ({error.strerror}). {AGAIN}"
        ) from error
    if not stat.S_ISREG(about.st_mode) or about.st_size != size:
        raise StoreCorruptError(
            f"{path} has {about.st_size} bytes, the manifest says {size}. {AGAIN}"
        )
    changed = max(about.st_mtime_ns, about.st_ctime_ns)
    return [size, about.st_mtime_ns, changed, about.st_ino, sha256]


def _unknown(stamps: dict[str, Stamp], known: dict[str, Stamp]) -> set[str]:
    return {name for name, stamp in stamps.items() if known.get(name) != stamp}


class _Memory:
    """What is remembered of one store: a file in the user's cache folder, or this process."""

    def __init__(self, store: Path, uid: str):
        place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.key = hashlib.sha256(f"{store.resolve()}\n{uid}".encode(errors="replace")).hexdigest()
        self.path = Path(place) / CACHE / "checked" / f"{self.key[:32]}.json"

    def read(self) -> dict[str, Stamp]:
        with suppress(OSError, ValueError):
            values = json.loads(self.path.read_bytes())
            if isinstance(values, dict):
                return values
        return _here.get(self.key, {})

    def write(self, found: dict[str, Stamp]) -> None:
        _here[self.key] = found
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(found).encode())

    @contextmanager
    def locked(self, store: Path) -> Iterator[None]:
        """One process at a time; everybody at once where there is no place for a lock."""
        lock = file_lock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tqdm.write(f"{store} is being checked by another process; waiting", sys.stderr)
                lock.acquire()
        except (OSError, NotImplementedError):
            yield
            return
        with lock:
            yield
