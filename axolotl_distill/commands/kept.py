"""What a folder of a store holds, told to whoever stopped its making."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axolotl_distill.capture.journal import journalled_rows
from axolotl_distill.errors import CaptureError, DistillError, StoreMissingError
from axolotl_distill.store import Manifest
from axolotl_distill.store.folder import refuse_strangers

GO_ON = "The same command goes on."
BEFORE = "Nothing was written yet. The same command begins again."


def stored_rows(output: str) -> int:
    """Rows of a store, in shards and in the journal."""
    try:
        manifest = Manifest.load(Path(output))
    except StoreMissingError:
        return 0
    first = manifest.shards[-1].source_stop if manifest.shards else 0
    return manifest.num_rows + journalled_rows(Path(output), first)


def kept(output: str) -> str:
    rows = stored_rows(output)
    return f"{output}: {rows} rows with their records are kept. {GO_ON}" if rows else BEFORE


@contextmanager
def keeps_what_is_written(output: str) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a disk that takes no more leave word of what is in `output`.

    Raises StoreError for a folder of something else, and CaptureError where a file cannot be
    written.
    """
    try:
        refuse_strangers(Path(output))
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(kept(output))
        raise
    except DistillError:
        raise
    except OSError as error:
        raise CaptureError(
            f"`{output}` (`distill.capture.output`, --output) cannot be written: {error}. Make "
            f"room, or choose another folder. {kept(output)}"
        ) from error
