"""Holding a store against its own manifest: hashes, and what the numbers must satisfy."""

from pathlib import Path

from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.store.manifest import AGAIN
from axolotl_distill.store.opening import open_store
from axolotl_distill.store.reader import TeacherStore
from axolotl_distill.store.rows import check_rows


def verify_store(path: str | Path) -> TeacherStore:
    """Read every byte of a store. Returns it opened.

    Raises StoreCorruptError naming the first file whose hash differs from the manifest's, or
    whose content contradicts it or is no distribution.
    """
    store = open_store(path, check_again=True)
    manifest = store.manifest
    for number, shard in enumerate(manifest.shards):
        try:
            with store.held(number) as arrays:
                manifest.payloads.check(arrays, manifest.shape_of(shard))
        except ValueError as error:
            if isinstance(error, StoreError):
                raise
            file = f"{store}/{shard.records_file}"
            raise StoreCorruptError(f"{file}: {error}. {AGAIN}") from error
        check_rows(store.path / shard.rows_file, manifest, shard)
    return store
