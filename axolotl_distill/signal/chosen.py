"""Several teachers that answer while the student trains, each for the rows that name it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from axolotl_distill.config.distill import Support
from axolotl_distill.errors import ConfigError
from axolotl_distill.signal.batch import CHOICES, IGNORE, TARGETS
from axolotl_distill.signal.live import LiveSignal
from axolotl_distill.signal.signal import Part
from axolotl_distill.teachers.tokenizer import SharedVocabulary, shared_by


@dataclass(frozen=True)
class ChosenSignal:
    """A SignalSource: a part of the batch for each of the sources, which are those of the choices
    by name, in the order of their numbers.

    Each is asked in every batch, though it be of nothing: what a teacher is to do in all processes
    together, it does in all of them equally often, and every batch has the same parts.
    """

    sources: Mapping[str, LiveSignal]

    @property
    def support(self) -> Support:
        """See SignalSource; the config sees to it that it is the same of all."""
        return next(iter(self.sources.values())).support

    @cached_property
    def vocabulary(self) -> SharedVocabulary:
        """What all of them share with the student."""
        return shared_by([source.vocabulary for source in self.sources.values()])

    @property
    def seconds(self) -> float:
        """That all calls of all of them took so far."""
        return sum(source.seconds for source in self.sources.values())

    @torch.compiler.disable
    def signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> tuple[Part, ...]:
        """See SignalSource; the first row must be one that predicts nothing. Raises ConfigError
        where a position that does has no teacher, and what LiveSignal does."""
        targets, choices = columns[TARGETS.name], columns[CHOICES.name]
        chosen = choices.flatten()[rows]
        parts, found = [], 1
        for number, (name, source) in enumerate(self.sources.items()):
            own = chosen == number
            own[0] = True
            at = own.nonzero().squeeze(1)
            theirs = torch.where(choices == number, targets, IGNORE)
            said = source.signal({**columns, TARGETS.name: theirs}, rows[at], inputs)
            parts.append(Part(name, at, said))
            found += at.numel() - 1
        if found != rows.numel():
            raise ConfigError(
                f"{rows.numel() - found} tokens of a batch are to be learnt and name none of the "
                f"teachers ({', '.join(self.sources)}): their rows were not made for "
                "`distill.teacher.choices`. Delete the folder `dataset_prepared_path`, and run "
                "again."
            )
        return tuple(parts)
