"""What a store holds, told to people and scripts, and to whoever stopped its making."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from axolotl_distill.address import is_address
from axolotl_distill.capture import Capture
from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.config.capture import CaptureArgs, SpoolArgs
from axolotl_distill.errors import CaptureError, DistillError, StoreError
from axolotl_distill.show import redact
from axolotl_distill.store import Manifest
from axolotl_distill.store.folder import refuse_strangers
from axolotl_distill.store.outlet import Outlet
from axolotl_distill.store.writer import KEY

SPOOL = "`distill.capture.spool.folder`"
GO_ON = "The same command goes on."
BEFORE = "Nothing was written yet. The same command begins again."


def shown_bytes(count: int) -> str:
    """12.3 GB, for people."""
    size = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"


def store_line(manifest: Manifest) -> str:
    """One line: rows, records, bytes."""
    return (
        f"{manifest.num_rows} rows, {manifest.num_records:,} records, "
        f"{manifest.bytes_of_records / 1e6:.1f} MB of records, {manifest.bytes_a_record:.1f} bytes "
        "a supervised token"
    )


def store_numbers(capture: Capture) -> dict[str, Any]:
    """A store and what a run added to it, for --json."""
    manifest = capture.manifest
    return {
        "output": redact(capture.output),
        "complete": manifest.complete,
        "rows": manifest.num_rows,
        "records": manifest.num_records,
        "bytes_of_records": manifest.bytes_of_records,
        "bytes_a_record": manifest.bytes_a_record,
        "this_run": None if capture.was_complete else asdict(capture.report),
        **({"check": manifest.teacher["check"]} if "check" in manifest.teacher else {}),
    }


def outlet_of(args: CaptureArgs) -> Outlet | None:
    """What sends a capture to its address; None for one to a folder. Raises RemoteError."""
    if not is_address(args.output):
        return None
    spool = args.spool or SpoolArgs.model_validate({})
    if spool.folder is None:
        from huggingface_hub.constants import HF_HOME

        folder = Path(HF_HOME) / "axolotl-distill" / "captures"
    else:
        folder = Path(spool.folder)
    place = hashlib.sha256(args.output.rstrip("/").encode()).hexdigest()[:16]
    return Outlet(args.output, folder / place, spool.shards)


def finished(output: str, outlet: Outlet | None) -> Manifest | None:
    """The store that a capture has written already, if it is complete."""
    if outlet is not None:
        return outlet.finished()
    try:
        manifest = Manifest.load(Path(output))
    except StoreError:
        return None
    return manifest if manifest.complete else None


def kept(output: str, folder: Path | None = None) -> str:
    rows = stored_rows(folder or Path(output))
    return f"{output}: {rows} rows with their records are kept. {GO_ON}" if rows else BEFORE


@contextmanager
def keeps_what_is_written(output: str, outlet: Outlet | None = None) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a disk that takes no more leave word of what is in `output`.

    Raises StoreError for a folder of something else, and CaptureError where a file cannot be
    written.
    """
    if outlet is None and is_address(output):
        raise CaptureError(
            f"--output is {redact(output)}, and an import writes to a local folder. Name one, "
            "and copy it with `axolotl distill store push FOLDER ADDRESS`."
        )
    folder = outlet.spool if outlet else Path(output)
    output = redact(output)
    try:
        if outlet is None:
            refuse_strangers(folder, KEY)
        else:
            outlet.look()
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(kept(output, folder))
        raise
    except DistillError:
        raise
    except OSError as error:
        raise CaptureError(
            f"`{folder}` ({SPOOL if outlet else KEY}) cannot be written: {error}. Make "
            f"room, or choose another folder. {kept(output, folder)}"
        ) from error
