"""A file at an address, held against the one it was made of."""

import base64
import hashlib
from pathlib import Path

from axolotl_distill.disk.remote import RemoteFolder, hash_of, mark_of
from axolotl_distill.errors import RemoteError
from axolotl_distill.store.schema import File


def put_once(
    remote: RemoteFolder, folder: Path, name: str, about: File, *, again: bool = False
) -> str:
    """Send a file of a store, and see that it arrived whole. Returns by what it is known again.

    again  something may be there: where it is this file, nothing is sent

    Raises RemoteError, also for what arrived otherwise.
    """
    if again and (mark := _whole(remote, folder / name, name, about)) is not None:
        return mark
    remote.put(folder / name, name)
    mark = _whole(remote, folder / name, name, about)
    if mark is None:
        raise RemoteError(
            f"{remote.where(name)} has another content than what was written. The file is kept "
            "here; run the same command again."
        )
    return mark


def _whole(remote: RemoteFolder, file: Path, name: str, about: File) -> str | None:
    """The mark of an object that has the file's bytes: by the md5 that the other side tells of
    it, or else it is read back."""
    there = remote.about(name)
    if there.get("size") != about["bytes"]:
        return None
    with file.open("rb") as opened:
        md5 = hashlib.file_digest(opened, "md5").digest()
    told = {str(there.get(key, "")).strip('"') for key in ("ETag", "etag", "md5Hash")}
    if told & {md5.hex(), base64.b64encode(md5).decode()}:
        return mark_of(there)
    back = hash_of(remote.blocks(name, about["bytes"]))
    return mark_of(there) if back == about["sha256"] else None
