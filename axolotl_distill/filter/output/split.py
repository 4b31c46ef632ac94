"""Which prompts are for evaluation."""

import numpy as np

from axolotl_distill.filter.parts import part, plain, text_hash
from axolotl_distill.trajectories.row import Trajectory

ALWAYS_FROM = 20


def prompt_key(row: Trajectory, seed: int) -> int:
    """64 bits of the prompt's text and the seed: system messages, case and white space aside.

    It is the text and not prompt_id, so that a prompt asked twice is never on both sides.
    """
    return text_hash(plain(part(row, "prompt")), salt=str(seed))


def evaluation(keys: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: the rows (by prompt_key, uint64 [n]) that are for evaluation.

    A prompt is for evaluation when its key is in the lowest `share` of all possible keys, so it
    stays on its side whatever else is in the dataset: a model trained on filtered rows can be
    evaluated on the prompts that one trained on unfiltered rows has not seen. From 20 prompts on,
    at least one is for evaluation; where there are two, at least one is for training.
    """
    prompts = np.unique(keys)
    chosen = prompts[prompts < np.uint64(int(share * 2.0**64))] if share else prompts[:0]
    if share and not chosen.size and prompts.size >= ALWAYS_FROM:
        chosen = prompts[:1]
    if prompts.size and chosen.size == prompts.size:
        chosen = chosen[: prompts.size // 2]
    return np.isin(keys, chosen)
