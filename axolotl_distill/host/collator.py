"""Pads a batch as Axolotl does, then looks up the teacher's record of every supervised token and
its weight."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from axolotl_distill.errors import StoreError, TrajectoryError
from axolotl_distill.signal.batch import LOSS_WEIGHT, TEACHER_POS
from axolotl_distill.store import TeacherStore, pointer_record, pointer_tag

IGNORE = -100
PAD = np.uint32(0xFFFFFFFF)

Feature = dict[str, Any]


class TeacherCollator:
    """Wraps one of Axolotl's collators and adds the teacher's records to its batch.

    Beside what the wrapped collator gives ([B, S] each), a batch holds

        teacher_entries  int32 [B, S, K]   bits of the store's uint32 entries, -1 = none
        teacher_tail     int16 [B, S]      tail log-odds at `temperature`; absent when not stored
        teacher_entropy  int16 [B, S]      only for stores of draws
        loss_weight      fp32 [B, S]       only when `weighted`: of a token as a label; 0 where it
                                           is none, 1 in rows that bring no weights

    and none of the teacher's without a store.

    Everything keeps the batch dimension first, so that accelerate can slice a batch over ranks.
    The first token of a document is never a label: no position of its own document predicts it.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        base_cls: type,
        packed: bool,
        stores: Sequence[TeacherStore],
        temperature: float,
        weighted: bool = False,
        **base_kwargs: Any,
    ):
        self.tokenizer = tokenizer
        self.base = base_cls(tokenizer, **base_kwargs)
        self.packed = packed
        self.weighted = weighted
        self.pad_left = tokenizer.padding_side == "left"
        self.stores = {int(pointer_tag(np.int64(s.manifest.pointer_base))): s for s in stores}
        self.tail_column = {
            tag: list(store.manifest.temperatures).index(temperature)
            for tag, store in self.stores.items()
            if temperature in store.manifest.temperatures
        }
        self.sampled = any("entropy" in s.manifest.method.columns for s in stores)

    def __call__(self, features: list[Any]) -> dict[str, torch.Tensor]:
        nested = isinstance(features[0], list)
        documents = [[self._document(f) for f in (fs if nested else [fs])] for fs in features]
        if self.packed and not nested:
            documents = [[document for group in documents for document in group]]
        positions = [
            np.concatenate([self._pop_positions(document) for document in group])
            for group in documents
        ]
        weights = [
            np.concatenate([self._pop_weights(document) for document in group])
            for group in documents
        ]
        batch = self.base(documents if self.packed else [group[0] for group in documents])
        if "position_ids" in batch:
            batch["labels"][batch["position_ids"] == 0] = IGNORE

        batch = dict(batch)
        shape = tuple(batch["input_ids"].shape)
        if self.weighted:
            weights_BS = torch.from_numpy(self._padded(weights, np.zeros(shape, np.float32)))
            batch[LOSS_WEIGHT] = weights_BS.masked_fill(batch["labels"] == IGNORE, 0.0)
        if self.stores:
            batch |= self._records(self._padded(positions, np.full(shape, -1, dtype=np.int64)))
        return batch

    def _padded(self, rows: list[np.ndarray], out_BS: np.ndarray) -> np.ndarray:
        for row, values in zip(out_BS, rows, strict=True):
            row[slice(-values.size, None) if self.pad_left else slice(values.size)] = values
        return out_BS

    def _document(self, feature: Feature) -> Feature:
        """A copy whose first label is masked."""
        feature = dict(feature)
        labels = np.array(feature["labels"], dtype=np.int64)
        labels[:1] = IGNORE
        feature["labels"] = labels.tolist()
        return feature

    def _pop_positions(self, document: Feature) -> np.ndarray:
        """Pointers int64 [S] of one document; its last token predicts none of its own."""
        positions = self._pop(document, TEACHER_POS, -1, np.int64)
        positions[-1:] = -1
        return positions

    def _pop_weights(self, document: Feature) -> np.ndarray:
        """Weights fp32 [S] of one document. Raises TrajectoryError for what is no weight."""
        weights = self._pop(document, LOSS_WEIGHT, 1.0, np.float32)
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
        if wrong.size:
            begin = self.tokenizer.decode(document["input_ids"][:24])
            raise TrajectoryError(
                f"`{LOSS_WEIGHT}` of the row that begins {begin!r} holds {wrong[0]:g} "
                f"({wrong.size} of its {weights.size} tokens); expected finite numbers from 0. "
                "Correct the row, or remove the column."
            )
        return weights

    def _pop(self, document: Feature, name: str, missing: float, dtype: type) -> np.ndarray:
        """A column of one document, [S], as long as its tokens.

        Axolotl truncates the columns it knows and leaves ours long, and its streaming packer pads
        the columns it knows and leaves ours short. A column that a merged dataset does not have
        arrives as None.
        """
        size = len(document["input_ids"])
        given = document.pop(name, None)
        values = np.full(size, missing, dtype=dtype)
        if given is not None:
            given = np.asarray(given, dtype=dtype)[:size]
            values[slice(size - given.size, None) if self.pad_left else slice(given.size)] = given
        return values

    def _records(self, pointers_BS: np.ndarray) -> dict[str, torch.Tensor]:
        pointers = pointers_BS.reshape(-1)
        supervised = np.flatnonzero(pointers >= 0)
        tags = pointer_tag(pointers[supervised])
        found = {}
        for tag in np.unique(tags).tolist():
            if tag not in self.stores:
                raise StoreError(
                    "The prepared dataset points into a teacher store that this config does not "
                    f"name (open stores: {[str(s.path) for s in self.stores.values()]}). The "
                    "cache is stale: delete the folder `dataset_prepared_path` "
                    "(default last_run_prepared) and run again."
                )
            at = supervised[tags == tag]
            found[tag] = (at, self.stores[tag].read(pointer_record(pointers[at])))

        width = max((records.entries.shape[1] for _, records in found.values()), default=1)
        entries = np.full((pointers.size, width), PAD, dtype=np.uint32)
        tail = np.zeros(pointers.size, dtype=np.int16)
        entropy = np.zeros(pointers.size, dtype=np.int16)
        for tag, (at, records) in found.items():
            entries[at, : records.entries.shape[1]] = records.entries
            if tag in self.tail_column:
                tail[at] = records.tail[:, self.tail_column[tag]]
            if records.entropy is not None:
                entropy[at] = records.entropy

        batch = {"teacher_entries": entries.view(np.int32).reshape(*pointers_BS.shape, width)}
        if len(self.tail_column) == len(self.stores):
            batch["teacher_tail"] = tail.reshape(pointers_BS.shape)
        if self.sampled:
            batch["teacher_entropy"] = entropy.reshape(pointers_BS.shape)
        return {name: torch.from_numpy(array) for name, array in batch.items()}
