"""`type: axolotl_distill.store`: train straight from a teacher store.

The store holds the tokens its records were captured on, so there is no chat template to apply
again and nothing to align: each row brings its token ids, its labels and the index of its first
record.
"""

from pathlib import Path
from typing import Any

import numpy as np
from axolotl.prompt_tokenizers import PromptTokenizingStrategy

from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.host.datasets.types import STORE_TYPE
from axolotl_distill.signal.batch import POINTERS, pointers, supervised_positions
from axolotl_distill.store import Manifest
from axolotl_distill.unplugged import needs_plugin


class StoreStrategy(PromptTokenizingStrategy):
    """Turns rows of a store into what Axolotl trains on, with the pointer column added."""

    def __init__(self, tokenizer: Any, path: str, max_len: int | None, overlong: str):
        super().__init__(prompter=None, tokenizer=tokenizer)
        self.path = path
        self.max_len = max_len
        self.overlong = overlong
        self._pointers: range | None = None

    @property
    def supports_batched(self) -> bool:
        return True

    def tokenize_prompt(self, prompt: dict[str, list]) -> dict[str, list]:
        """A batch of store rows -> input_ids, labels, attention_mask and teacher_pos.

        Raises StoreCorruptError when a row supervises more or fewer tokens than it has records,
        has not as many labels as tokens, or leads out of the store.
        """
        rows: dict[str, list] = {
            "input_ids": [],
            "labels": [],
            "attention_mask": [],
            POINTERS.name: [],
        }
        for row_id, input_ids, labels, start, num_records in zip(
            prompt["id"],
            prompt["input_ids"],
            prompt["labels"],
            prompt["teacher_start"],
            prompt["num_records"],
            strict=True,
        ):
            if self.max_len and len(input_ids) > self.max_len:
                if self.overlong == "drop":
                    continue
                if self.overlong == "raise":
                    raise StoreError(
                        f"{self.path}: row {row_id} has {len(input_ids)} tokens, more than "
                        f"`sequence_len: {self.max_len}`. Raise it, or set "
                        "`excess_length_strategy` to drop or truncate."
                    )
            labels_S = np.asarray(labels, dtype=np.int64)
            supervised = supervised_positions(labels_S).size
            if supervised != num_records or labels_S.size != len(input_ids):
                raise StoreCorruptError(
                    f"{self.path}: row {row_id} has {len(input_ids)} tokens, {labels_S.size} "
                    f"labels and {supervised} supervised tokens but the store knows {num_records} "
                    "records for it. Its data/*.parquet was changed after "
                    "the capture; capture the store again."
                )
            self._hold_pointer(row_id, start, num_records)
            keep = slice(None, self.max_len)
            rows["input_ids"].append(list(input_ids)[keep])
            rows["labels"].append(list(labels)[keep])
            rows["attention_mask"].append([1] * len(rows["input_ids"][-1]))
            rows[POINTERS.name].append(pointers(labels_S, start)[keep].tolist())
        return rows

    def _hold_pointer(self, row_id: str, start: int, num_records: int) -> None:
        if self._pointers is None:
            manifest = Manifest.load(Path(self.path))
            first = manifest.pointer_base
            self._pointers = range(first, first + manifest.num_records)
        inside = self._pointers.start <= start and start + num_records <= self._pointers.stop
        if not inside:
            raise StoreCorruptError(
                f"{self.path}: row {row_id} leads to records that this store does not hold: the "
                "row is another store's, or was changed. Delete the folder `dataset_prepared_path` "
                "and run again; if it persists, copy or capture the store again."
            )


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> StoreStrategy:
    """Axolotl's entry point for a dataset type.

    Axolotl handles overlong rows itself, except when streaming: there the strategy does. Raises
    ConfigError without a `distill:` block that the plugin has read: nothing would use the records.
    """
    if cfg.distill is None:
        needs_plugin(STORE_TYPE)(tokenizer, cfg)
    return StoreStrategy(
        tokenizer,
        path=str(ds_cfg["path"]),
        max_len=cfg.sequence_len if cfg.streaming else None,
        overlong=(cfg.excess_length_strategy or "drop").lower(),
    )
