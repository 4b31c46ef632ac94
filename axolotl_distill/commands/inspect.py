"""`axolotl distill inspect`."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from axolotl_distill.commands.say import say
from axolotl_distill.rollout.kept import is_rollouts
from axolotl_distill.show import printable
from axolotl_distill.signal.batch import supervised_positions
from axolotl_distill.store import Manifest, TeacherStore, open_store
from axolotl_distill.store.check import check_lines

SAMPLE = 65_536
SAMPLE_BYTES = 1 << 28
SHOWN_ENTRIES = 8


def run(path: str, *, records: int, tokenizer: str | None) -> dict[str, Any]:
    """Numbers of a store, which are returned too, then a few of its records as text."""
    if is_rollouts(path):
        from axolotl_distill.commands.rollouts import shown

        return shown(path)
    store = open_store(path, allow_incomplete=True)
    numbers = statistics(store)
    for name, value in numbers.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {part:.4g}" for key, part in value.items())
        elif isinstance(value, list):
            value = "  ".join(value)
        say(f"{name:<24}{value}")
    if records and store.num_records:
        for line in shown_records(store, records, tokenizer or store.manifest.tokenizer["name"]):
            say(line)
    return numbers


def statistics(store: TeacherStore) -> dict[str, Any]:
    """What a store weighs and holds; means over at most 65,536 evenly spaced
    records, and fewer where those take much memory."""
    manifest = store.manifest
    numbers: dict[str, Any] = {
        "teacher": printable(manifest.teacher["name"]),
        "its weights": printable(manifest.teacher.get("weights", "not known")),
        **({} if manifest.tempered == 1.0 else {"tempered: T = 1 is its": manifest.tempered}),
        **_cross(manifest),
        "a record holds": [
            f"{payload.kind} {payload.model_dump(exclude={'kind'})}"
            for payload in manifest.payloads.each
        ],
        "complete": manifest.complete,
        "shards": len(manifest.shards),
        "rows": manifest.num_rows,
        "records": manifest.num_records,
        "vocabulary": manifest.vocab_size,
        "bytes a record": round(manifest.bytes_a_record, 2),
        "MB of records": round(manifest.bytes_of_records / 1e6, 2),
        "MB of rows": round(manifest.bytes_of_rows / 1e6, 2),
    }
    if manifest.tail_estimated:
        numbers["tail estimated at T"] = [f"{T:g}" for T in manifest.tail_estimated]
    if not manifest.num_records:
        return numbers
    most = min(SAMPLE, max(1, int(SAMPLE_BYTES // manifest.bytes_a_record)))
    step = max(1, manifest.num_records // most)
    found = store.read(np.arange(0, manifest.num_records, step))
    return numbers | manifest.payloads.summary(found, manifest.temperatures)


def _cross(manifest: Manifest) -> dict[str, Any]:
    """Of a teacher with another tokenizer: how its records were made, and of which two."""
    teacher, student = manifest.teacher, manifest.tokenizer
    if "cross_tokenizer" not in teacher:
        return {}
    names = teacher.get("tokenizer", "?"), student.get("name", "?")
    prints = teacher.get("tokenizer_fingerprint", "?"), student["fingerprint"]
    its, students = (
        f"{printable(n)} {printable(p)[:12]}" for n, p in zip(names, prints, strict=True)
    )
    return {
        "cross_tokenizer": printable(teacher["cross_tokenizer"]),
        "its tokenizer": its,
        "the student's": students,
        **({"checked": [*check_lines(teacher["check"])]} if "check" in teacher else {}),
    }


def shown_records(store: TeacherStore, count: int, tokenizer_name: str) -> list[str]:
    """Text lines for `count` records of the first row: context, true token, likeliest entries."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except OSError:
        return [f"(no text: tokenizer {tokenizer_name!r} cannot be loaded; give --tokenizer)"]
    first = pq.ParquetFile(store.parquet_files[0])
    row = next(first.iter_batches(1)).to_pylist()[0]
    positions = supervised_positions(row["labels"])[:count]
    found = store.read(np.arange(positions.size))
    ids, values = store.manifest.payloads.distribution.decode(found, store.manifest.vocab_size)
    lines = []
    for place, row_ids, row_values in zip(positions, ids, values, strict=True):
        context = tokenizer.decode(row["input_ids"][max(0, place - 11) : place + 1])
        likeliest = np.argsort(-row_values, kind="stable")[:SHOWN_ENTRIES]
        entries = "  ".join(
            f"{tokenizer.decode([row_ids[at]])!r} {row_values[at]:.3g}"
            for at in likeliest
            if row_ids[at] >= 0
        )
        truth = tokenizer.decode([row["input_ids"][place + 1]])
        lines.append(f"\n…{context!r} -> {truth!r}\n    {entries}")
    return lines
