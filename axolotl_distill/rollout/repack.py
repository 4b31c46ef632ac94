"""Prompts out of a step's micro-batches, and micro-batches out of prompts with completions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from axolotl_distill.rollout.writer import Completion
from axolotl_distill.signal.batch import CHOICES, CONTEXTS, IGNORE, TARGETS, WEIGHTS
from axolotl_distill.signal.documents import contexts, documents

Batch = dict[str, torch.Tensor]
Collate = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class Prompt:
    """The tokens of a document up to its last stretch of learnt ones.

    batch    which of the step's micro-batches it is in
    choice   the number of the teacher whom its row names, where there are several
    context  what only the teacher reads of its row; None where the teacher reads no more of any
    """

    batch: int
    ids: list[int]
    choice: int = int(CHOICES.fill)
    context: list[int] | None = None


def prompts_of(batches: Sequence[Batch]) -> list[Prompt]:
    """One a document that has learnt tokens; the others have nothing to be answered."""
    found = []
    for number, batch in enumerate(batches):
        ids = batch["input_ids"].cpu().numpy().reshape(-1)
        learnt = batch[TARGETS.name].cpu().numpy().reshape(-1) != IGNORE
        choices = batch.get(CHOICES.name)
        chosen = None if choices is None else choices.cpu().numpy().reshape(-1)
        shown = contexts(batch) if CONTEXTS.name in batch else None
        for document in documents(batch):
            at = np.flatnonzero(learnt[document])
            if at.size:
                breaks = np.flatnonzero(np.diff(at) > 1)
                first = at[breaks[-1] + 1] if breaks.size else at[0]
                stop = document.start + int(first) + 1
                prompt = Prompt(number, ids[document.start : stop].tolist())
                if chosen is not None:
                    prompt = replace(prompt, choice=int(chosen[document.start + int(at[0])]))
                if shown is not None:
                    prompt = replace(prompt, context=shown(document))
                found.append(prompt)
    return found


def feature(prompt: Prompt, completion: Completion, like: Batch) -> dict[str, Any]:
    """A row as a dataset type makes it: the completion is learnt, with the stop token, from the
    teacher of the prompt's row, which reads what it would have read of the row.

    It has a mask and positions where the batch `like` has them: with `sdpa` a packed run has
    positions alone, and a mask beside them would let its documents attend to each other.
    """
    ids = [*prompt.ids, *completion.ids]
    row = {"input_ids": ids, "labels": [IGNORE] * len(prompt.ids) + completion.ids}
    row[CHOICES.name] = [prompt.choice] * len(ids)
    if prompt.context is not None:
        row[CONTEXTS.name] = prompt.context
    also = {"attention_mask": [1] * len(ids), "position_ids": list(range(len(ids)))}
    return row | {name: values for name, values in also.items() if name in like}


def repacked(
    batches: Sequence[Batch],
    written: Sequence[tuple[Prompt, Completion]],
    collate: Collate,
    *,
    packed: bool,
    sequence_len: int,
) -> tuple[list[Batch], list[tuple[Prompt, Completion]]]:
    """(as many micro-batches as there were, the completions that found room in them).

    Packed: into the rows of all of them, the longest first, each into the emptiest. Else each goes
    back into the micro-batch of its prompt. A micro-batch without one supervises nothing.
    """
    rows: list[list[list[dict[str, Any]]]] = [[] for _ in batches]
    placed = []
    if packed:
        capacity = [max(sequence_len, batch["input_ids"].shape[1]) for batch in batches]
        rows = [[[] for _ in range(batch["input_ids"].shape[0])] for batch in batches]
        loads = {(i, j): 0 for i, of_batch in enumerate(rows) for j in range(len(of_batch))}
        for prompt, completion in sorted(written, key=lambda pair: -_size(*pair)):
            size = _size(prompt, completion)
            fitting = [bin for bin in loads if loads[bin] + size <= capacity[bin[0]]]
            if not fitting:
                continue
            number, place = min(fitting, key=lambda bin: loads[bin])
            rows[number][place].append(feature(prompt, completion, batches[0]))
            loads[number, place] += size
            placed.append((prompt, completion))
    else:
        placed = list(written)
        for prompt, completion in written:
            rows[prompt.batch].append([feature(prompt, completion, batches[0])])
    made = []
    for batch, of_batch in zip(batches, rows, strict=True):
        filled = [row for row in of_batch if row]
        if not filled:
            made.append(silenced(batch))
            continue
        new = collate(filled if packed else [row[0] for row in filled])
        device = batch["input_ids"].device
        made.append({name: _moved(value, device) for name, value in new.items()})
    return made, placed


def _size(prompt: Prompt, completion: Completion) -> int:
    return len(prompt.ids) + len(completion.ids)


def silenced(batch: Batch) -> Batch:
    """The micro-batch with nothing learnt."""
    nothing: Batch = {}
    ours = {column.name: column.fill for column in (TARGETS, WEIGHTS, CHOICES)}
    fills = {"labels": IGNORE, **ours}
    for name, fill in fills.items():
        if name in batch:
            nothing[name] = torch.full_like(batch[name], fill)
    return {**batch, **nothing}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
