"""What only a teacher sees: tokens before a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Context:
    """Tokens put before a text of S tokens, so that the teacher reads C + S of them.

    ids  C token ids
    bos  the id that begins a text, if there is one: it stays the first, and `ids` come after it

    The teacher's answer at position t of the text is what it says at t + C of what it reads,

        p(x_{t+1} | ids, x_1 … x_t),

    whether a `bos` stands before `ids` or not.
    """

    ids: tuple[int, ...] = ()
    bos: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def before(self, text: Sequence[int]) -> list[int]:
        """What the teacher reads of a text, [C + S]."""
        first = 1 if len(text) and text[0] == self.bos else 0
        return [*text[:first], *self.ids, *text[first:]]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Positions int64 [R] of a text, in what the teacher reads of it."""
        return positions + len(self.ids)


NO_CONTEXT = Context()
