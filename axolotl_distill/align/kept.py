"""What two vocabularies say of each other, kept on disk: it takes seconds to find out, and every
process of every run asks for it.

One file a pair and kind, named by a hash of all that decides what is in it, in
$XDG_CACHE_HOME/axolotl-distill/maps (default ~/.cache). A file appears by a rename, so that who
reads while others write has one or the other, whole. One that cannot be read, or whose arrays are
not what was asked for, is said to be so and made anew. Deleting the folder costs seconds.
"""

import hashlib
import io
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from axolotl_distill.align.pieces import Pieces
from axolotl_distill.disk.atomic import write_atomically

log = logging.getLogger(__name__)

VERSION = 1
# Of vocabularies that are smaller nothing is kept.
LEAST = 4096
Arrays = tuple[np.ndarray, ...]


def kept(
    kind: str,
    teacher: Pieces,
    student: Pieces,
    make: Callable[[], Arrays],
    fits: Callable[[Arrays], bool],
) -> Arrays:
    """What `make` returns, integer arrays, from the disk where it is there and `fits`."""
    keys = teacher.digest, student.digest
    if min(len(teacher), len(student)) < LEAST or not all(keys):
        return make()
    name = hashlib.sha256("\n".join([str(VERSION), kind, *map(str, keys)]).encode()).hexdigest()
    path = folder() / f"{kind}-{name[:40]}.npz"
    try:
        found = _read(path)
        if not fits(found):
            raise ValueError("its arrays are of other vocabularies")
        return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s cannot be read (%s) and is made anew.", path, error)
    made = make()
    try:
        _write(path, made)
    except OSError as error:
        log.warning("What two vocabularies say of each other is not kept: %s.", error)
    return made


def folder() -> Path:
    place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place) / "axolotl-distill" / "maps"


def _read(path: Path) -> Arrays:
    # A zip file has a checksum of each array, which is held against it in reading.
    with np.load(path, allow_pickle=False) as file:
        return tuple(file[f"arr_{number}"].astype(np.int64) for number in range(len(file.files)))


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    np.savez(data, *(array.astype(np.int32) for array in arrays))
    # Under a name of its own first, for others may write the same.
    own = path.with_name(f"{path.stem}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_atomically(own, data.getvalue())
        os.replace(own, path)
    except OSError:
        with suppress(OSError):
            own.unlink()
        raise
