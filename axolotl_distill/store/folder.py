"""The folder of a store that is being written: what belongs there, and what a kill left."""

import re
from pathlib import Path

from axolotl_distill.disk.atomic import TEMPORARY
from axolotl_distill.disk.lock import LOCK
from axolotl_distill.errors import StoreError
from axolotl_distill.store import journal
from axolotl_distill.store.checked import check_sizes
from axolotl_distill.store.manifest import FILE, Manifest
from axolotl_distill.store.outlet import Outlet

# Rows that are in no shard yet (capture/journal.py), and folders of tokenised text: what a capture
# keeps beside the store while it runs.
JOURNAL = "open-rows.journal"
TOKENISED = ".tokenised-"
FOLDERS = {"data": "parquet", "teacher": "safetensors"}


def refuse_strangers(path: Path, key: str) -> None:
    """Raise StoreError for a folder that holds something, unless it is a store, or what a writer
    killed before its first manifest leaves: two empty folders. `key`: by what another is named."""
    if not path.exists() or (path / FILE).exists():
        return
    ours = {LOCK, FILE + TEMPORARY, *FOLDERS}
    names = {entry.name for entry in path.iterdir()} - ours
    strangers = {name for name in names if not name.startswith(TOKENISED)}
    for folder in FOLDERS:
        if (path / folder).is_dir():
            strangers |= {f"{folder}/{entry.name}" for entry in (path / folder).iterdir()}
    if strangers:
        raise StoreError(
            f"{path} is a folder with other files in it ({min(strangers)}) and no teacher store. "
            f"Choose another ({key}), or empty it."
        )


def resume(path: Path, manifest: Manifest, key: str, outlet: Outlet | None = None) -> Manifest:
    """The manifest of a store that was begun, to go on with; `manifest` in its place where nothing
    was captured. `outlet`: what of it lies elsewhere. Raises StoreError where it was captured
    otherwise, and what `check_sizes` does."""
    found = Manifest.load(path)
    if not found.shards and not found.complete and not has_open_rows(path):
        # Begun and given up, perhaps for a wrong key that has been mended since.
        (path / journal.FILE).unlink(missing_ok=True)
        manifest.save(path)
        return manifest
    if changed := found.differences(manifest):
        names = dict.fromkeys(key.partition(".")[0] for key, *_ in changed)
        another = " and another ".join(f"`{name}`" for name in names)
        details = "; ".join(f"{key} is {mine} there and {now} now" for key, mine, now in changed)
        weights = (
            f" The files of the teacher {found.teacher['name']} were changed since: put the old "
            "ones back to go on."
            if any(key == "teacher.weights" for key, *_ in changed)
            else ""
        )
        raise StoreError(
            f"{outlet or path} was captured with another {another}: {details}.{weights} Use "
            f"another folder ({key}), or delete this one to begin anew."
        )
    check_sizes(path, found, elsewhere=outlet.sent if outlet else frozenset())
    return found


def has_open_rows(path: Path) -> bool:
    """Whether a capture keeps rows that are in no shard."""
    file = path / JOURNAL
    return file.exists() and file.stat().st_size > 0


def remove_uncommitted(path: Path, manifest: Manifest) -> None:
    """Delete what a killed writer left behind: temporary files and shards without a commit."""
    named = {name for shard in manifest.shards for name in shard.files}
    for folder, kind in FOLDERS.items():
        ours = re.compile(rf"shard-[0-9]{{5,}}\.{kind}({re.escape(TEMPORARY)})?")
        for file in (path / folder).iterdir():
            if ours.fullmatch(file.name) and f"{folder}/{file.name}" not in named:
                file.unlink()
    if manifest.complete:
        (path / journal.FILE).unlink(missing_ok=True)
