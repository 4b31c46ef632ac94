"""A store at an address, read through a cache that is shared by all processes of the machine.

The manifest and the rows are fetched when it is opened, into a folder of the cache, its mirror:

    stores/HASH OF THE MANIFEST/manifest.json, data/…, origin.json     where it lies

A shard's records are fetched when a record of it is asked for, or before, where it is known that it
will be (`expect`), into the cache's bounded part (disk/cache.py). All that comes is held against
the manifest first, and nothing is read otherwise.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from axolotl_distill.disk.atomic import atomically, write_atomically
from axolotl_distill.disk.cache import KEY, FileCache, Wanted
from axolotl_distill.disk.lock import file_lock
from axolotl_distill.disk.refused import refusals
from axolotl_distill.disk.remote import RemoteFolder
from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store import journal
from axolotl_distill.store.checked import SHOWN_AFTER, check_files, check_records
from axolotl_distill.store.manifest import FILE, MAX_BYTES, Manifest
from axolotl_distill.store.payloads import Arrays
from axolotl_distill.store.reader import TeacherStore
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.tensors import Places, map_tensors

ORIGIN = "origin.json"
STORES = "stores"
THREADS = 8
AHEAD_THREADS = 2


@dataclass(frozen=True)
class CachePlace:
    """Where stores at an address are kept, and how much of them.

    folder  None: `axolotl-distill` in Hugging Face's cache home
    size    bytes of all records there; None: half of what the disk has free
    """

    folder: Path | None = None
    size: int | None = None

    def opened(self) -> FileCache:
        """Raises StoreError where the folder cannot be written."""
        if self.folder is not None:
            return FileCache(self.folder, self.size)
        from huggingface_hub.constants import HF_HOME

        return FileCache(Path(HF_HOME) / "axolotl-distill", self.size)


class RemoteStore(TeacherStore):
    """A store at an address. `path` is its mirror. Safe to fork and to pickle; a shard is mapped
    only while it is read, so that the cache can make room."""

    def __init__(self, path: Path, manifest: Manifest, remote: RemoteFolder, cache: FileCache):
        super().__init__(path, manifest)
        self.remote, self.cache = remote, cache
        self._seen: Places = {}
        self._asked: dict[int, Wanted] = {}
        self._ahead: _Ahead | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_ahead": None, "_asked": {}}

    def __str__(self) -> str:
        return str(self.remote)

    @contextmanager
    def held(self, number: int) -> Iterator[Arrays]:
        """See TeacherStore; fetches the shard where it is not there. Raises what FileCache.held
        does."""
        with self.cache.held(self._wanted(number)) as path:
            yield map_tensors(path, self.manifest, self.manifest.shards[number], self._seen)

    def expect(self, number: int) -> None:
        """A record of this shard will be asked for soon, after those that were told of before: it
        is fetched beside what this process does. What fails is left to who asks for it."""
        if self._ahead is None:
            self._ahead = _Ahead(self)
        self._ahead.add(number)

    def passed(self, number: int) -> None:
        """No record of this shard is known to be asked for any more: where its fetching has not
        begun, it does not begin."""
        if self._ahead is not None:
            self._ahead.drop(number)

    def fetch(self, number: int) -> None:
        """Have a shard in the cache. Raises what FileCache.held does."""
        self.cache.fetch(self._wanted(number))

    def _wanted(self, number: int) -> Wanted:
        if number not in self._asked:
            self._asked[number] = self._file(self.manifest.shards[number])
        return self._asked[number]

    def _file(self, shard: Shard) -> Wanted:
        name, about = shard.records_file, shard.files[shard.records_file]
        where = self.remote.where(name)

        def blocks() -> Iterator[bytes]:
            _check_size(self.remote, name, about["bytes"])
            return self.remote.blocks(name, about["bytes"])

        def check(path: Path) -> None:
            try:
                check_records(path, self.manifest, shard)
            except StoreCorruptError as error:
                raise StoreCorruptError(str(error).replace(str(path), where)) from error

        return Wanted(where, about["bytes"], about["sha256"], blocks, check)


class _Ahead:
    """Threads that fetch shards in the order in which they were told of."""

    def __init__(self, store: RemoteStore):
        self._store = store
        self._todo: dict[int, None] = {}
        self._told = threading.Condition()
        for _ in range(AHEAD_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, number: int) -> None:
        with self._told:
            self._todo[number] = None
            self._told.notify()

    def drop(self, number: int) -> None:
        with self._told:
            self._todo.pop(number, None)

    def _work(self) -> None:
        while True:
            with self._told:
                self._told.wait_for(lambda: self._todo)
                number = next(iter(self._todo))
                del self._todo[number]
            try:
                self._store.fetch(number)
            except (StoreError, OSError):
                continue


def is_mirror(path: Path) -> bool:
    """Whether a folder is what a store at an address left in a cache."""
    return (path / ORIGIN).is_file()


def open_remote(
    url: str, place: CachePlace, *, allow_incomplete: bool = False, check_again: bool = False
) -> RemoteStore:
    """Open the store at an address; see above.

    allow_incomplete  one that is being captured there, as far as it is known to be there

    Raises StoreMissingError where there is none, StoreCorruptError for what is not as it was
    written, RemoteError for what is refused or does not come, StoreError for a cache that cannot
    be written.
    """
    remote, cache = RemoteFolder(url), place.opened()
    try:
        data = remote.read(FILE, MAX_BYTES)
    except StoreMissingError as error:
        raise StoreMissingError(
            f"{remote} is not a teacher store: it has no {FILE}, which is written last. Check the "
            "address; where `axolotl distill store push` was stopped, run it again. "
            f"({error})"
        ) from error
    lines = b""
    if allow_incomplete:
        with suppress(StoreMissingError):
            lines = remote.read(journal.FILE, journal.MAX_BYTES)
    mirror = cache.folder / STORES / hashlib.sha256(data + lines).hexdigest()[:32]
    with refusals(cache.folder, StoreError, KEY):
        mirror.mkdir(parents=True, exist_ok=True)
        with file_lock(mirror / ".lock"):
            if not (mirror / FILE).exists():
                if lines:
                    write_atomically(mirror / journal.FILE, lines)
                write_atomically(mirror / FILE, data)
            manifest = _loaded(mirror, remote, allow_incomplete)
            _fetch_rows(remote, mirror, manifest)
            write_atomically(mirror / ORIGIN, json.dumps({"url": url}).encode())
            check_files(mirror, manifest, again=check_again, rows_alone=True)
    return RemoteStore(mirror, manifest, remote, cache)


def open_mirror(path: Path, place: CachePlace, *, check_again: bool = False) -> RemoteStore:
    """The store of which `path` is the mirror; nothing is asked of its address."""
    url = json.loads((path / ORIGIN).read_bytes())["url"]
    manifest = Manifest.load(path)
    check_files(path, manifest, again=check_again, rows_alone=True)
    # Where the mirror is, whatever is said of another place by now.
    cache = FileCache(path.parent.parent, place.size)
    return RemoteStore(path, manifest, RemoteFolder(url), cache)


def _loaded(mirror: Path, remote: RemoteFolder, allow_incomplete: bool) -> Manifest:
    try:
        manifest = Manifest.load(mirror)
    except StoreError as error:
        (mirror / FILE).unlink()
        raise type(error)(str(error).replace(str(mirror), str(remote))) from error
    if not manifest.complete and not allow_incomplete:
        raise StoreError(
            f"{remote} is not complete: it is being captured, or its capture was stopped. The same "
            "`axolotl distill capture` command goes on; `axolotl distill inspect` shows what is "
            "there. If it was copied, end the capture and use `axolotl distill store push`."
        )
    return manifest


def _fetch_rows(remote: RemoteFolder, mirror: Path, manifest: Manifest) -> None:
    missing = [shard for shard in manifest.shards if not (mirror / shard.rows_file).exists()]
    if not missing:
        return
    (mirror / "data").mkdir(exist_ok=True)
    total = sum(shard.files[shard.rows_file]["bytes"] for shard in missing)
    with (
        tqdm(
            total=total, unit="B", unit_scale=True, desc=f"rows of {remote}", delay=SHOWN_AFTER,
            leave=False,
        ) as progress,
        ThreadPoolExecutor(min(THREADS, 4 * (os.cpu_count() or 1))) as pool,
    ):  # fmt: skip
        done = [
            pool.submit(fetch_file, remote, shard, shard.rows_file, mirror) for shard in missing
        ]
        try:
            for fetched in done:
                progress.update(fetched.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch_file(remote: RemoteFolder, shard: Shard, name: str, folder: Path) -> int:
    """Copy a file of a store into `folder`, whole or not at all. Returns its bytes.

    Raises StoreCorruptError for one that is not what the manifest says, and OSError.
    """
    about = shard.files[name]
    _check_size(remote, name, about["bytes"])
    digest = hashlib.sha256()
    with atomically(folder / name) as file:
        for block in remote.blocks(name, about["bytes"]):
            file.write(block)
            digest.update(block)
        if digest.hexdigest() != about["sha256"]:
            raise StoreCorruptError(
                f"{remote.where(name)} has sha256 {digest.hexdigest()[:16]}…, the manifest says "
                f"{about['sha256'][:16]}…: its bytes were changed. Push or copy the store again "
                "from where it was captured."
            )
    return about["bytes"]


def _check_size(remote: RemoteFolder, name: str, size: int) -> None:
    seen = remote.size(name)
    if seen != size:
        raise StoreCorruptError(
            f"{remote.where(name)} has {seen} bytes, the manifest says {size}: it was cut off, or "
            "is another store's. Push or copy the store again from where it was captured."
        )
