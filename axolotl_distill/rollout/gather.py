"""Kept rollouts as a teacher store, and held against what was written."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axolotl_distill.errors import TrajectoryError
from axolotl_distill.rollout.kept import Graded, graded_rows, parts, read_header
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.store import Manifest, StoreWriter, new_manifest

SHARD_RECORDS = 262_144


def gather(
    folder: Path,
    output: Path,
    decode: Callable[[Sequence[int]], str],
    only: Collection[str] | None = None,
    key: str = "`--output`",
) -> Manifest:
    """One teacher store of the rows of a folder that nobody writes, part after part.

    decode  token ids to text, for the store's readable column
    only    the ids of the rows to take; None = all

    Raises TrajectoryError where the folder is damaged or has none of the rows, and what StoreWriter
    does.
    """
    digest, rows, supervised = hashlib.sha256(), 0, 0
    for row in _rows(folder, only):
        digest.update(f"{row.trajectory['id']}\n".encode())
        rows, supervised = rows + 1, supervised + len(row.records)
    if not rows:
        among = "" if only is None else f" with one of the {len(only)} ids that are asked for"
        raise TrajectoryError(f"{folder} has no row{among}: there is nothing to make a store of.")
    source = {"fingerprint": digest.hexdigest(), "num_rows": rows, "supervised": supervised}
    header = read_header(folder)["store"]
    manifest = new_manifest(**header, source={**source, "datasets": [str(folder)]})
    with StoreWriter.create_or_resume(output, manifest, key) as writer:
        if writer.manifest.complete:
            return writer.manifest
        for number, row in enumerate(_rows(folder, only)):
            if number < writer.next_source_row:
                continue
            is_prompt = np.arange(len(row.ids)) < row.prompt_tokens
            labels = np.where(is_prompt, IGNORE, row.ids)
            writer.append(
                source_row=number,
                row_id=row.trajectory["id"],
                input_ids=row.ids.tolist(),
                labels=labels.tolist(),
                text=decode(row.ids.tolist()),
                records=row.records,
            )
            if writer.open_records >= SHARD_RECORDS:
                writer.commit()
    return writer.manifest


def gather_inside(folder: Path, decode: Callable[[Sequence[int]], str]) -> Path | None:
    """The store of all rows as `store` in the folder itself, in place of an older one; None where
    no row is there. Raises what `gather` does."""
    if not any(part.stat().st_size for part in parts(folder)):
        return None
    new, store = folder / "store.new", folder / "store"
    shutil.rmtree(new, ignore_errors=True)
    gather(folder, new, decode, key="`distill.on_policy.keep`")
    shutil.rmtree(store, ignore_errors=True)
    new.rename(store)
    return store


def survey(folder: Path) -> dict[str, Any]:
    """Reads every row and record: numbers of what is there.

    Raises TrajectoryError for the first line or frame that is not as it was written, an id that is
    there twice, or a row that has not a record for every token of its completion.
    """
    seen: set[str] = set()
    steps, finished, tokens = set(), 0, 0
    forms: Counter[str] = Counter()
    for row in _rows(folder, None):
        about, name = row.trajectory, row.trajectory["id"]
        written = len(row.ids) - row.prompt_tokens
        if name in seen:
            raise TrajectoryError(f"{folder} has the row {name} twice. Take one of them out.")
        if len(row.records) != written or about["usage"]["completion_tokens"] != written:
            raise TrajectoryError(
                f"{folder}: row {name} has {about['usage']['completion_tokens']} tokens, and "
                f"{written} with {len(row.records)} records in records/. It is damaged; delete it."
            )
        seen.add(name)
        steps.add(about["meta"]["step"])
        finished += about["finish_reason"] == "stop"
        tokens += written
        forms["text" if about["meta"].get("prompt") == "text" else "messages"] += 1
    return {
        "rows": len(seen),
        "parts": len(parts(folder)),
        "steps": len(steps),
        "finished": finished,
        "records": tokens,
        "tokens a row": round(tokens / max(1, len(seen)), 1),
        "prompts that are messages": forms["messages"],
        "prompts that are text": forms["text"],
    }


def _rows(folder: Path, only: Collection[str] | None) -> Iterator[Graded]:
    for part in parts(folder):
        for row in graded_rows(part):
            if only is None or row.trajectory["id"] in only:
                yield row
