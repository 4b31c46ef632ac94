"""A folder for what a run needs only while it runs, beside what it makes."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from axolotl_distill.disk.lock import file_lock

LOCK = "in-use"


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder below `parent`, which is removed with all it holds; those that killed runs left
    there are removed first. Not below the system's temporary folder, which may be small and is
    nobody's to clean up. Raises OSError where `parent` cannot be written."""
    is_new = not parent.exists()
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    # A signal may end the run at any moment, so the name is known before the folder is there.
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{prefix}*"):
            _remove_unless_used(left)
        folder.mkdir()
        with file_lock(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                parent.rmdir()


def _remove_unless_used(folder: Path) -> None:
    # Without its lock it is a moment old, or was left by a kill at that moment.
    with suppress(Timeout), file_lock(folder / LOCK).acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
