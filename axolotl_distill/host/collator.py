"""Pads a batch as Axolotl does, and puts beside every token what it is to predict: the target, its
weight, the teacher's record of it."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from axolotl_distill.errors import StoreError, TrajectoryError
from axolotl_distill.signal.batch import (
    CHOICES,
    CONTEXT_NUMBERS,
    CONTEXTS,
    IGNORE,
    LOSS_WEIGHTS,
    NUMBERS,
    OTHER_IDS,
    OTHER_LABELS,
    OTHER_NUMBERS,
    OTHERS,
    POINTERS,
    TARGETS,
    WEIGHTS,
    Column,
    of_next,
    targets,
)
from axolotl_distill.store import TeacherStore, pointer_record, pointer_tag

Feature = dict[str, Any]
Columns = dict[Column, np.ndarray]


class TeacherCollator:
    """Wraps one of Axolotl's collators and adds the columns of signal/batch.py to its batch.

    stores       whose records `teacher_pos` leads to; without one there are no teacher's columns
    temperature  of the run: what a batch has of a record may depend on it
    weighted     whether a token's loss is weighed: every batch then has `target_weight`
    paired       whether rows were written for a teacher with another tokenizer too
    chosen       whether rows name one of several teachers
    shown        whether rows bring what only their teacher reads
    without      kinds of payloads that the run does not read
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
        paired: bool = False,
        chosen: bool = False,
        shown: bool = False,
        without: Collection[str] = (),
        **base_kwargs: Any,
    ):
        self.tokenizer = tokenizer
        self.base = base_cls(tokenizer, **base_kwargs)
        self.packed = packed
        self.weighted, self.paired, self.chosen, self.shown = weighted, paired, chosen, shown
        self.pad_left = tokenizer.padding_side == "left"
        self.stores = {int(pointer_tag(np.asarray(s.manifest.pointer_base))): s for s in stores}
        self.temperature, self.without = temperature, without

    def __call__(self, features: list[Any]) -> dict[str, torch.Tensor]:
        nested = isinstance(features[0], list)
        rows = [[self._document(f) for f in (fs if nested else [fs])] for fs in features]
        if self.packed and not nested:
            rows = [[document for group in rows for document in group]]
        texts = [[text for text, _ in documents] for documents in rows]
        batch = dict(self.base(texts if self.packed else [documents[0] for documents in texts]))

        shape = tuple(batch["input_ids"].shape)
        columns = [[columns for _, columns in documents] for documents in rows]
        batch[TARGETS.name] = torch.from_numpy(self._padded(TARGETS, columns, shape))
        if self.weighted:
            batch[WEIGHTS.name] = torch.from_numpy(self._padded(WEIGHTS, columns, shape))
        if self.chosen:
            batch[CHOICES.name] = torch.from_numpy(self._padded(CHOICES, columns, shape))
        if self.paired:
            batch |= self._beside(columns, shape, OTHERS, OTHER_NUMBERS)
        if self.shown:
            batch |= self._beside(columns, shape, (CONTEXTS, CONTEXT_NUMBERS), CONTEXT_NUMBERS)
        if self.stores:
            batch |= self._records(self._padded(POINTERS, columns, shape))
        return batch

    def _padded(
        self, column: Column, rows: list[list[Columns]], shape: tuple[int, ...]
    ) -> np.ndarray:
        """One column of all rows, [B, S], padded on the side on which the tokenizer pads."""
        out_BS = column.filled(*shape)
        for out_S, documents in zip(out_BS, rows, strict=True):
            values = np.concatenate([columns[column] for columns in documents])
            first = out_S.size - values.size if self.pad_left else 0
            out_S[first : first + values.size] = values
        return out_BS

    def _beside(
        self,
        rows: list[list[Columns]],
        shape: tuple[int, ...],
        columns: tuple[Column, ...],
        numbers: Column,
    ) -> dict[str, torch.Tensor]:
        """What a batch has of every document that is not as long as the document: `columns`, the
        last of which, `numbers`, and NUMBERS say which of the batch's documents each value and each
        token is of."""
        number = 0
        for documents in rows:
            for own in documents:
                own[NUMBERS] = np.full(own[TARGETS].size, number)
                own[numbers] = np.full(own[columns[0]].size, number)
                number += 1
        longest = max(sum(own[numbers].size for own in documents) for documents in rows)
        batch = {NUMBERS.name: torch.from_numpy(self._padded(NUMBERS, rows, shape))}
        for column in columns:
            found = self._padded(column, rows, (len(rows), max(longest, 1)))
            batch[column.name] = torch.from_numpy(found)
        return batch

    def _document(self, feature: Feature) -> tuple[Feature, Columns]:
        """What the wrapped collator takes of one row, and the row's columns, [S] each.

        A row may be several documents that a streaming packer joined; their `position_ids` tell.
        """
        text = dict(feature)
        labels = np.asarray(text["labels"], dtype=np.int64)
        pointers = self._pop(text, POINTERS)
        weights = self._pop_weights(text)
        positions = text.get("position_ids")
        starts = () if positions is None else np.flatnonzero(np.asarray(positions) == 0)
        columns = {
            TARGETS: targets(labels, starts),
            WEIGHTS: of_next(weights, WEIGHTS, starts),
            POINTERS: pointers,
            CHOICES: of_next(self._pop(text, CHOICES), CHOICES, starts),
        }
        also = ((OTHER_IDS, OTHER_LABELS) if self.paired else ()) + ((CONTEXTS,) * self.shown)
        for column in also:
            columns[column] = np.asarray(text.pop(column.name), dtype=column.dtype)
        nothing = columns[TARGETS] == IGNORE
        for column in (WEIGHTS, POINTERS, CHOICES):
            columns[column][nothing] = column.fill
        return text, columns

    def _pop_weights(self, document: Feature) -> np.ndarray:
        """Weights fp32 [S] of one document. Raises TrajectoryError for what is no weight."""
        weights = self._pop(document, LOSS_WEIGHTS)
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
        if wrong.size:
            begin = self.tokenizer.decode(document["input_ids"][:24])
            raise TrajectoryError(
                f"`{LOSS_WEIGHTS.name}` of the row that begins {begin!r} holds {wrong[0]:g} "
                f"({wrong.size} of its {weights.size} tokens); expected finite numbers from 0. "
                "Correct the row, or remove the column."
            )
        return weights

    def _pop(self, document: Feature, column: Column) -> np.ndarray:
        """A column of one document, [S], as long as its tokens.

        Axolotl truncates the columns it knows and leaves ours long, and its streaming packer pads
        the columns it knows and leaves ours short. A column that a merged dataset does not have
        arrives as None.
        """
        size = len(document["input_ids"])
        given = document.pop(column.name, None)
        values = column.filled(size)
        if given is not None:
            given = np.asarray(given, dtype=column.dtype)[:size]
            values[slice(size - given.size, None) if self.pad_left else slice(given.size)] = given
        return values

    def _records(self, pointers_BS: np.ndarray) -> dict[str, torch.Tensor]:
        """What the payloads of all stores have in common for a batch, as wide as the longest of
        its records. A store to which nothing leads is asked too: every batch has the same columns.
        """
        pointers = pointers_BS.reshape(-1)
        supervised = np.flatnonzero(pointers >= 0)
        tags = pointer_tag(pointers[supervised])
        if np.setdiff1d(tags, list(self.stores)).size:
            raise StoreError(
                "The prepared dataset points into a teacher store that this config does not "
                f"name (open stores: {[str(s) for s in self.stores.values()]}). The "
                "cache is stale: delete the folder `dataset_prepared_path` "
                "(default last_run_prepared) and run again."
            )
        found: list[tuple[np.ndarray, Columns]] = []
        for tag, store in self.stores.items():
            at = supervised[tags == tag]
            manifest, payloads = store.manifest, store.manifest.payloads.without(self.without)
            records = store.read(pointer_record(pointers[at]), self.without)
            own = self.temperature / manifest.tempered
            columns = payloads.collate(records, manifest.temperatures, own)
            found.append((at, columns))
        batch = {}
        # In one order on all ranks.
        for column in found[0][1]:
            if not all(column in columns for _, columns in found):
                continue
            inner = np.max([columns[column].shape[1:] for _, columns in found], axis=0).astype(int)
            out = column.filled(pointers.size, *inner)
            for at, columns in found:
                inside: tuple[Any, ...] = tuple(map(slice, columns[column].shape[1:]))
                out[(at, *inside)] = columns[column]
            batch[column.name] = torch.from_numpy(out.reshape(*pointers_BS.shape, *inner))
        return batch
