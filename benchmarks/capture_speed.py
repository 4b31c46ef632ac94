"""What capturing costs beside the teacher's bare forward pass over the same batches.

python benchmarks/capture_speed.py
"""

import json
import tempfile
from pathlib import Path

import torch
from common import alternate, keep
from transformers import AutoTokenizer

from axolotl_distill.capture import Capture
from axolotl_distill.capture.graded import GradedSource, length_batches
from axolotl_distill.capture.source import summarise
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.store import new_manifest
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.teachers.hf import HFTeacher

ROOT = Path(__file__).resolve().parent.parent
ROWS, BATCH_TOKENS = 24, 2048


def chats(tokenizer) -> list[dict]:
    """Rows whose every token but the first is supervised: the most a capture can have to do."""
    lines = (ROOT / ".cache/pydoc-chat/train.jsonl").read_text().splitlines()
    rows = []
    for line in lines[:ROWS]:
        ids = tokenizer.apply_chat_template(json.loads(line)["messages"], return_dict=False)
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return rows


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / ".cache/smollm2")
    teacher = HFTeacher(TeacherArgs(model=str(ROOT / ".cache/smollm2")), vocab_size=len(tokenizer))
    rows = chats(tokenizer)
    by_index = dict(enumerate(rows))
    read = summarise(rows, len(rows))

    @torch.inference_mode()
    def bare() -> None:
        for batch in length_batches(by_index, BATCH_TOKENS):
            longest = max(len(rows[i]["input_ids"]) for i in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for place, index in enumerate(batch):
                row = rows[index]["input_ids"]
                ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
            teacher.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def capturing(method: str):
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                args = CaptureArgs(
                    teacher="-", output=folder, method=method, batch_tokens=BATCH_TOKENS
                )
                manifest = new_manifest(
                    vocab_size=len(tokenizer),
                    payloads=[distribution_of(args)],
                    temperatures=args.temperatures,
                    sequence_len=512,
                    tokenizer={"fingerprint": "-", "name": "-"},
                    teacher={"name": "-"},
                    source=read.described(),
                )
                with Capture(
                    folder, manifest, rows, tokenizer.decode, shard_records=args.shard_records
                ) as capture:
                    capture(GradedSource(teacher, args, BATCH_TOKENS))

        return run

    contenders = {"bare_forward": bare}
    contenders |= {method: capturing(method) for method in ("topk", "nucleus", "sampled")}
    seconds = alternate(contenders, repeats=3)
    tokens = sum(len(row["input_ids"]) for row in rows)
    results = {
        "tokens": tokens,
        "tokens_per_second": {name: tokens / taken for name, taken in seconds.items()},
        "time_over_bare_forward": {
            name: taken / seconds["bare_forward"] for name, taken in seconds.items()
        },
    }
    print(json.dumps(results, indent=1))
    keep("capture_speed", results)


if __name__ == "__main__":
    main()
