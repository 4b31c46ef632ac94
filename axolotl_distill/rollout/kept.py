"""`on_policy.keep`: a folder of what the student wrote and what the teacher said of it.

    rollouts.json            who writes and who grades, and how: what must stay; the store's header
    part-00000.jsonl         trajectories of the first process, in the order in which they came
    records/00000.journal    their tokens and records, frame by frame in the same order
    aside/later.jsonl        rows of steps that were taken again
    store/                   a teacher store of all rows, made when training ends (gather.py)

A step's rows are written when all of them are graded: frames first, then lines, each with fsync.
So a line has its frame, and what a kill left of frames without lines is cut away.
"""

import json
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from filelock import FileLock

from axolotl_distill.capture.journal import FRAME, frame_of, frames
from axolotl_distill.disk.atomic import sync_folder, write_atomically
from axolotl_distill.disk.journal import Journal
from axolotl_distill.disk.lock import lock_folder
from axolotl_distill.disk.refused import refusals
from axolotl_distill.disk.rows import json_lines
from axolotl_distill.errors import TrajectoryError
from axolotl_distill.store import RecordBatch
from axolotl_distill.trajectories.journal import Journal as Rows

FILE = "rollouts.json"
FORMAT = "axolotl-distill rollouts"
KEY = "`distill.on_policy.keep`"
IDS, PROMPT = "input_ids", "prompt_tokens"


class Graded(NamedTuple):
    """One row: its trajectory, prompt and completion as int64 [S], how many of these are the
    prompt's, and a record for every token of the completion."""

    trajectory: Mapping[str, Any]
    ids: np.ndarray
    prompt_tokens: int
    records: RecordBatch


def begin(folder: Path, settings: dict[str, Any], store: dict[str, Any], step: int) -> int:
    """Make the folder, or go on with it after optimizer step `step`: rows of later steps, which
    are taken again, are put aside. One process does, before any opens its part. Returns how many
    rows were put aside.

    settings  what decides how a completion reads and is graded
    store     the header of the teacher store that is made of all: see `new_manifest`

    Raises TrajectoryError where the folder holds something else, or rows of another run.
    """
    with refusals(folder, TrajectoryError, KEY):
        file = folder / FILE
        if folder.exists() and not file.exists() and any(folder.iterdir()):
            raise TrajectoryError(
                f"{folder} ({KEY}) holds something else, and no {FILE}. Name another folder."
            )
        header = read_header(folder) if file.exists() else None
        if header is None:
            (folder / "records").mkdir(parents=True, exist_ok=True)
            header = {
                "format": FORMAT,
                "version": 1,
                "uid": secrets.token_hex(16),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": settings,
                "store": store,
            }
            write_atomically(file, (json.dumps(header, indent=1) + "\n").encode())
            sync_folder(folder.parent)
            return 0
        _refuse_others(folder, header, settings, store, step)
        return sum(_cut(folder, part, step) for part in parts(folder))


def parts(folder: Path) -> list[Path]:
    """The files of trajectories."""
    return sorted(folder.glob("part-*.jsonl"))


def records_file(part: Path) -> Path:
    """Where the tokens and records of a part are."""
    return part.parent / "records" / f"{part.stem.removeprefix('part-')}.journal"


def is_rollouts(path: str | Path) -> bool:
    """Whether `path` is a folder that `on_policy.keep` made."""
    return (Path(path) / FILE).is_file()


def read_header(folder: Path) -> dict[str, Any]:
    """rollouts.json. Raises TrajectoryError for one that this release did not write."""
    try:
        header = json.loads((folder / FILE).read_bytes())
        if header["format"] != FORMAT or header["version"] != 1:
            raise ValueError(f"it is {header['format']!r}, version {header['version']}")
        header["uid"], header["settings"], header["store"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrajectoryError(
            f"{folder / FILE} is not what this release writes ({error!r}). Put it back, or name "
            f"another folder ({KEY})."
        ) from error
    return header


class Part:
    """What one process writes, from `begin` to the end of the training."""

    def __init__(self, folder: Path, rank: int):
        """Raises TrajectoryError where another process writes this part."""
        self.path = folder / f"part-{rank:05d}.jsonl"
        with refusals(folder, TrajectoryError, KEY):
            at = folder / f".lock-{rank:05d}"
            self._lock: FileLock = lock_folder(folder, TrajectoryError, KEY, at)
            self._frames = Journal(records_file(self.path), is_whole=None)
            self._rows = Rows(self.path)

    def append(self, rows: Sequence[Graded]) -> None:
        """Returns when they would survive a power cut. Raises TrajectoryError when the disk takes
        them not; then no line of them is there."""
        with refusals(self.path, TrajectoryError, KEY):
            self._frames.append(b"".join(map(_frame, rows)))
            self._rows.append(row.trajectory for row in rows)

    def close(self) -> None:
        self._frames.close()
        self._rows.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def graded_rows(part: Path) -> Iterator[Graded]:
    """The rows of a part that is not being written, with their records.

    Raises TrajectoryError for a line that is not as it was written, or has not its frame.
    """
    from axolotl_distill.trajectories import read_trajectories

    with records_file(part).open("rb") as file:
        found = frames(file)
        for number, row in enumerate(read_trajectories(part)):
            index, records = next(found, (-1, None))
            if records is None or index != _number(row):
                raise TrajectoryError(
                    f"{records_file(part)} has not the records of {part.name}, line {number + 1} "
                    f"(row {row.get('id')}): it is damaged, or another run's. Put the right file "
                    f"back, or delete both and name another folder ({KEY}) from now on."
                )
            columns = dict(records.columns)
            ids, prompt = columns.pop(IDS), int(columns.pop(PROMPT)[0])
            yield Graded(row, ids, prompt, RecordBatch(columns, records.lengths))


def _frame(row: Graded) -> bytes:
    own = {IDS: np.asarray(row.ids, np.int64), PROMPT: np.array([row.prompt_tokens], np.int64)}
    records = RecordBatch({**row.records.columns, **own}, row.records.lengths)
    return frame_of(_number(row.trajectory), records)


def _number(trajectory: Mapping[str, Any]) -> int:
    """Tells a frame that belongs to another row; of what the row's id is."""
    return zlib.crc32(str(trajectory.get("id")).encode(errors="replace"))


def _cut(folder: Path, part: Path, step: int) -> int:
    """Rows of steps after `step` to aside/, and what lies beyond the last row's frame away."""
    Rows(part).close()  # mends a last line that was torn
    keep, size = 0, 0
    later: list[dict[str, Any]] = []
    with part.open("rb") as file:
        for line in json_lines(file):
            if line.row is None:
                raise TrajectoryError(
                    f"{part}, line {line.number} is not a JSON object: {line.fault}. Mend it."
                )
            if later or line.row["meta"]["step"] > step:
                later.append(line.row)
            else:
                keep, size = keep + 1, line.start + len(line.data)
    if later:
        with Rows(folder / "aside" / "later.jsonl") as aside:
            aside.append(later)
    with records_file(part).open("r+b") as file:
        stop = _stop_of(file, keep)
        if stop is None:
            raise TrajectoryError(
                f"{records_file(part)} has fewer frames than {part.name} has rows: it is damaged. "
                f"Put it back, or name another folder ({KEY})."
            )
        # Lines go first: a frame without a line is cut away the next time.
        os.truncate(part, size)
        file.truncate(stop)
    return len(later)


def _stop_of(file: BinaryIO, count: int) -> int | None:
    """Where the first `count` frames end; None where there are fewer."""
    size, at = os.fstat(file.fileno()).st_size, 0
    for _ in range(count):
        head = file.read(FRAME.size)
        if len(head) < FRAME.size:
            return None
        at += FRAME.size + FRAME.unpack(head)[0]
        if at > size:
            return None
        file.seek(at)
    return at


def _refuse_others(
    folder: Path, header: dict[str, Any], settings: dict[str, Any], store: dict[str, Any], step: int
) -> None:
    before = {**header["settings"], **header["store"]}
    now = json.loads(json.dumps({**settings, **store}))
    changed = [
        f"  {key}: {before.get(key)!r:.200} before, {now.get(key)!r:.200} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    has_rows = any(part.stat().st_size for part in parts(folder))
    if changed and has_rows:
        lines = "\n".join(changed)
        raise TrajectoryError(
            f"{folder} ({KEY}) has rollouts of another run:\n{lines}\nName another folder."
        )
    if changed:
        header |= {"settings": settings, "store": store}
        write_atomically(folder / FILE, (json.dumps(header, indent=1) + "\n").encode())
    if has_rows and not step:
        raise TrajectoryError(
            f"{folder} ({KEY}) has rollouts of an earlier run, and this training begins anew. Set "
            "`resume_from_checkpoint` to go on with it, name another folder, or delete this one."
        )
