"""The README.md of a store: a dataset card that makes the folder a Hugging Face dataset."""

from axolotl_distill.store.manifest import Manifest


def dataset_card(manifest: Manifest) -> str:
    """Markdown. The front matter tells `datasets.load_dataset` that the rows are data/*.parquet."""
    method = ", ".join(f"{key} {value}" for key, value in manifest.method.items())
    teacher_bytes = sum(
        about["bytes"]
        for shard in manifest.shards
        for name, about in shard.files.items()
        if name.startswith("teacher/")
    )
    per_token = teacher_bytes / max(1, manifest.num_records)
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- knowledge-distillation
- axolotl-distill
---

# Teacher store

What a teacher model thinks of every supervised token of a dataset, for knowledge distillation
with [axolotl-distill](https://pypi.org/project/axolotl-distill/).

| | |
|---|---|
| teacher | {manifest.teacher.get("name", "unknown")} |
| rows | {manifest.num_rows} |
| records (supervised tokens) | {manifest.num_records} |
| method | {method} |
| temperatures | {", ".join(f"{temperature:g}" for temperature in manifest.temperatures)} |
| bytes a record | {per_token:.1f} |
| vocabulary | {manifest.vocab_size} |
| captured | {manifest.created} by {manifest.generator} |

`data/` holds the rows, `teacher/` the records, `manifest.json` their hashes. The licence of the
text and the teacher's terms apply to this data; they are not stated here because the capture
does not know them.
"""
