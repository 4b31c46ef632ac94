"""A store copied to an address, and back: resumable, and whole or not there.

To an address the manifest goes last. What is there already, with the right hash, is not sent again:
a file whose sending was noted here, and that the other side says is the same object since, or else
one that is read back and has the hash. From an address the store comes into a folder beside the
one that is asked for, and is renamed when all of it is there.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from axolotl_distill.disk.atomic import sync_folder
from axolotl_distill.disk.journal import Journal
from axolotl_distill.disk.lock import lock_folder
from axolotl_distill.disk.refused import refusals
from axolotl_distill.disk.remote import RemoteFolder, hash_of, mark_of
from axolotl_distill.disk.rows import json_lines
from axolotl_distill.errors import StoreError, StoreMissingError
from axolotl_distill.store.checked import CACHE, check_files
from axolotl_distill.store.manifest import FILE, MAX_BYTES, Manifest
from axolotl_distill.store.reader import TeacherStore
from axolotl_distill.store.remote import fetch_file
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.sealed import uid_of

THREADS = 4
CARD = "README.md"
PULLING = ".pulling"
KEY = "LOCAL"


def push(store: TeacherStore, url: str) -> dict[str, Any]:
    """Copy a whole local store to an address. Returns how many files were `sent` and `found`.

    Raises StoreError where another store lies there, and what RemoteFolder does.
    """
    remote = RemoteFolder(url)
    data = (store.path / FILE).read_bytes()
    there = remote.listing()
    if FILE in there and (seen := remote.read(FILE, MAX_BYTES)) != data:
        raise StoreError(
            f"{remote} holds another store ({uid_of(seen)}, and {store.path} is "
            f"{store.manifest.uid[:8]}). Choose another address, or delete what is there."
        )
    files = [
        (name, about) for shard in store.manifest.shards for name, about in shard.files.items()
    ]
    with _Sent(store.manifest, url) as noted:

        def send(name: str, about: Any) -> bool:
            if noted.has(name, about, there.get(name)) or _has(remote, name, about, there):
                return False
            remote.put(store.path / name, name)
            noted.add(name, about, remote.about(name))
            return True

        sent = sum(_several(files, send, f"pushing to {remote}"))
        if (store.path / CARD).is_file():
            remote.put(store.path / CARD, CARD)
        remote.put(store.path / FILE, FILE)
        noted.forget()
    return {"sent": sent, "found": len(files) - sent}


def pull(url: str, output: Path) -> TeacherStore:
    """Copy the store at an address to a local folder, and open it.

    Raises StoreError where the folder holds something else, StoreCorruptError for what is not as
    the manifest says, and what RemoteFolder does.
    """
    remote = RemoteFolder(url)
    try:
        data = remote.read(FILE, MAX_BYTES)
    except StoreMissingError as error:
        raise StoreMissingError(
            f"{remote} is not a teacher store: it has no {FILE}, which is written last. ({error})"
        ) from error
    if output.exists() and not output.is_dir():
        raise StoreError(f"{output} is a file, and a store is a folder. Name a folder ({KEY}).")
    if output.exists() and any(output.iterdir()):
        if (output / FILE).is_file() and (output / FILE).read_bytes() == data:
            manifest = Manifest.load(output)
            check_files(output, manifest)
            return TeacherStore(output, manifest)
        raise StoreError(f"{output} holds something else. Name another folder ({KEY}).")
    folder = output.with_name(output.name + PULLING)
    with refusals(output, StoreError, KEY):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder, StoreError, KEY)
        try:
            manifest = _pulled(remote, data, folder)
            (folder / ".lock").unlink()
            with suppress(FileNotFoundError):
                output.rmdir()
            os.rename(folder, output)
            sync_folder(output.parent)
        finally:
            lock.release()
    return TeacherStore(output, manifest)


def _pulled(remote: RemoteFolder, data: bytes, folder: Path) -> Manifest:
    if not (folder / FILE).is_file() or (folder / FILE).read_bytes() != data:
        (folder / FILE).write_bytes(data)
    manifest = Manifest.load(folder)
    if not manifest.complete:
        raise StoreError(
            f"{remote} is not complete: it is being captured, or was copied while it was. The same "
            "`axolotl distill capture` command goes on with it."
        )
    for name in ("data", "teacher"):
        (folder / name).mkdir(exist_ok=True)
    work = [(shard, name) for shard in manifest.shards for name in shard.files]

    def fetch(shard: Shard, name: str) -> bool:
        if _is_whole(folder / name, shard.files[name]):
            return False
        fetch_file(remote, shard, name, folder)
        return True

    sum(_several(work, fetch, f"pulling {remote}"))
    with suppress(StoreMissingError):
        (folder / CARD).write_bytes(remote.read(CARD, MAX_BYTES))
    check_files(folder, manifest)
    return manifest


def _several(work: list[Any], act: Callable[..., bool], what: str) -> Iterator[bool]:
    """What `act` returns of each, some at once; the first that fails ends it."""
    with (
        tqdm(total=len(work), unit=" files", desc=what, leave=False) as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        done = [pool.submit(act, *item) for item in work]
        try:
            for acted in done:
                yield acted.result()
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _has(remote: RemoteFolder, name: str, about: Any, there: dict[str, Any]) -> bool:
    """Whether a file of the right size is there, and has the hash when it is read back."""
    if name not in there or there[name].get("size") != about["bytes"]:
        return False
    return hash_of(remote.blocks(name, about["bytes"])) == about["sha256"]


def _is_whole(file: Path, about: Any) -> bool:
    if not file.is_file() or file.stat().st_size != about["bytes"]:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == about["sha256"]


class _Sent:
    """What was sent, noted in the user's cache folder: a line a file, with the mark that the other
    side has put on it. Where nothing can be noted, files are read back."""

    def __init__(self, manifest: Manifest, url: str):
        place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        key = hashlib.sha256(f"{url}\n{manifest.seal}".encode()).hexdigest()[:32]
        self._path = Path(place) / CACHE / "pushed" / f"{key}.jsonl"
        self._noted: dict[str, tuple[str, str]] = {}
        self._journal: Journal | None = None

    def has(self, name: str, about: Any, there: dict[str, Any] | None) -> bool:
        mark = mark_of(there) if there else ""
        return bool(mark) and self._noted.get(name) == (about["sha256"], mark)

    def add(self, name: str, about: Any, there: dict[str, Any]) -> None:
        if self._journal is not None and (mark := mark_of(there)):
            line = {"name": name, "sha256": about["sha256"], "mark": mark}
            with suppress(OSError):
                self._journal.append(json.dumps(line).encode() + b"\n")

    def forget(self) -> None:
        """All of it is there, and the manifest says so."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "_Sent":
        with suppress(OSError):
            self._journal = Journal(self._path)
            with self._path.open("rb") as lines:
                for line in json_lines(lines):
                    row = line.row or {}
                    self._noted[row.get("name", "")] = (row.get("sha256", ""), row.get("mark", ""))
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
