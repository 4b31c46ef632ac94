"""Writes what a pipeline left and what it dropped."""

import json
from collections.abc import Callable, Collection
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.output.formats import columns, formatter
from axolotl_distill.filter.output.lengths import Lengths
from axolotl_distill.filter.output.shards import Shards
from axolotl_distill.filter.pipeline import Pipeline
from axolotl_distill.filter.rows import as_written

TEXTS = ("id", "prompt_id", "step", "reason", "detail")
REJECTED = pa.schema(
    [pa.field(name, pa.string()) for name in TEXTS]
    + [pa.field("score", pa.float64()), pa.field("row", pa.string())]
)


class Written(TypedDict):
    """uid: a hash of the rows kept. rows: of each split, and "rejected". tokens: as
    Lengths.summary, or None where none were counted."""

    uid: str
    rows: dict[str, int]
    tokens: dict[str, Any] | None


def write_dataset(
    pipeline: Pipeline,
    args: FilterArgs,
    folder: Path,
    is_eval: np.ndarray,
    used: Collection[str] = (),
    lengths: Lengths | None = None,
    seen: Callable[[], Any] = lambda: None,
) -> Written:
    """data/ and rejected/ in `folder`, and tokens.png where tokens are counted.

    is_eval  bool, one a row of the source
    used     keys of messages, and "tools", that some row has (`keys_of`)
    lengths  counts the tokens of what is kept
    seen     is called after every row

    The uid is part of the data files' names: `datasets` keys its cache by the folder's name and
    the card's patterns (seen with 4.8), and would give the rows of another dataset, or of an
    earlier filter, for this one.
    """
    scored, make = pipeline.scored, formatter(args)
    scores = {"scores": pa.struct([(name, pa.float64()) for name in scored])} if scored else {}
    schema = pa.schema(
        {"id": pa.string(), "prompt_id": pa.string(), **columns(args, used), **scores}
    )
    splits = {
        name: Shards(folder / "data", schema, args.file, args.shard_rows)
        for name in ("train", "eval")
    }
    rejected = Shards(folder / "rejected", REJECTED, args.file, args.shard_rows)
    digest = sha256()
    for place, (row, dropped) in enumerate(pipeline.results()):
        if dropped is not None:
            about = {"id": row["id"], "prompt_id": row["prompt_id"], **dropped._asdict()}
            rejected.write({**about, "row": json.dumps(as_written(row), ensure_ascii=False)})
        else:
            split = "eval" if is_eval[place] else "train"
            made = {"id": row["id"], "prompt_id": row["prompt_id"], **make(row)}
            if scored:
                made["scores"] = {name: row["scores"].get(name) for name in scored}
            digest.update(json.dumps([split, made], sort_keys=True).encode())
            splits[split].write(made)
            if lengths is not None:
                lengths.add(row)
        seen()
    uid = digest.hexdigest()[:12]
    for name, shards in splits.items():
        shards.close(f"{name}-{uid}")
    rejected.close("rejected")
    rows = {name: shards.rows for name, shards in splits.items()}
    tokens = None
    if lengths is not None and rejected.rows < pipeline.count:
        tokens = lengths.summary()
        lengths.plot(folder / "tokens.png")
    return {"uid": uid, "rows": {**rows, "rejected": rejected.rows}, "tokens": tokens}
