"""What a disk refuses, in words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axolotl_distill.errors import DistillError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


@contextmanager
def refusals(path: Path, error: type[DistillError], key: str) -> Iterator[None]:
    """What the disk refuses while something at `path` is written, and can be gone on with, becomes
    an `error` that says what to do. `key`: by what another place is named."""
    try:
        yield
    except OSError as fault:
        if isinstance(fault, DistillError):
            raise
        kept = "what was committed is kept, and the same command goes on with it"
        if fault.errno in FULL:
            remedy = f"The disk, or a quota of it, is full. Make room; {kept}."
        elif fault.errno in FORBIDDEN:
            remedy = (
                f"Use another folder ({key}), or make this one a folder that may be written to; "
                f"{kept}."
            )
        else:
            remedy = f"Mend that; {kept}."
        raise error(
            f"{fault.filename or path}: it cannot be written: {fault.strerror or fault}. {remedy}"
        ) from fault
