"""Opening a store, wherever it lies: O(shards)."""

from pathlib import Path

from axolotl_distill.address import is_address
from axolotl_distill.errors import StoreError
from axolotl_distill.store.checked import check_files
from axolotl_distill.store.manifest import Manifest
from axolotl_distill.store.reader import TeacherStore
from axolotl_distill.store.remote import CachePlace, is_mirror, open_mirror, open_remote


def open_store(
    path: str | Path,
    *,
    allow_incomplete: bool = False,
    check_again: bool = False,
    cache: CachePlace | None = None,
) -> TeacherStore:
    """Open a store for reading: a folder, an address, or what an address left in the cache.

    A folder's files are all held against the manifest; see `check_files`, which reads each once
    and then remembers, unless `check_again`. At an address that is done with each when it comes.

    cache  where those of an address are kept

    Raises StoreMissingError, StoreCorruptError, or StoreError for a capture that has not ended.
    """
    if is_address(path):
        return open_remote(
            str(path),
            cache or CachePlace(),
            allow_incomplete=allow_incomplete,
            check_again=check_again,
        )
    path = Path(path)
    if is_mirror(path):
        return open_mirror(path, cache or CachePlace(), check_again=check_again)
    manifest = Manifest.load(path)
    if not manifest.complete and not allow_incomplete:
        raise StoreError(
            f"{path} is not complete: its capture stopped after {manifest.num_rows} rows. Run the "
            "same `axolotl distill capture` command again; it goes on where it stopped."
        )
    check_files(path, manifest, again=check_again)
    return TeacherStore(path, manifest)
