"""What a checkpoint that was made here says of itself: its model card, and a note for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from axolotl_distill.checkpoint.folder import CARD, Checkpoint
from axolotl_distill.checkpoint.tensors import Stored
from axolotl_distill.disk.atomic import write_atomically
from axolotl_distill.show import as_markdown

HOME = "[axolotl-distill](https://pypi.org/project/axolotl-distill/)"


@dataclass(frozen=True)
class PruneNote:
    """What was cut.

    teacher_weights  as teachers/fingerprint.py names them
    config           the keys of config.json that changed: before and after
    left_out         tensors that belong to no layer of the model and were left out with the layers
    parameters       numbers stored, of teacher and student
    """

    teacher: str
    teacher_weights: str
    layers: int
    kept: list[int]
    dropped: list[int]
    config: dict[str, dict[str, Any]]
    left_out: list[str]
    parameters: dict[str, int]

    @classmethod
    def of(
        cls,
        teacher: Checkpoint,
        kept: Sequence[int],
        cut: Mapping[str, Any],
        tensors: Stored,
        weights: str,
        left_out: Sequence[str],
    ) -> "PruneNote":
        number = teacher.config.num_hidden_layers
        before = teacher.written
        return cls(
            teacher=str(teacher.folder),
            teacher_weights=weights,
            layers=number,
            kept=list(kept),
            dropped=[layer for layer in range(number) if layer not in set(kept)],
            config={
                key: {"before": before.get(key), "after": value}
                for key, value in cut.items()
                if before.get(key) != value
            },
            left_out=list(left_out),
            parameters={"teacher": _numbers(teacher.tensors), "student": _numbers(tensors)},
        )

    def as_json(self) -> dict[str, Any]:
        return {"generator": _generator(), **asdict(self)}


def write_prune_card(folder: Path, note: PruneNote, teacher: Path) -> None:
    """README.md of a pruned student."""
    rows = {
        "teacher": note.teacher,
        "its weights": note.teacher_weights,
        "layers kept": f"{_ranges(note.kept)} of {note.layers}",
        "layers dropped": _ranges(note.dropped) or "none",
        "parameters stored": f"{note.parameters['student']:,} of {note.parameters['teacher']:,}",
        "keys of config.json that changed": ", ".join(note.config) or "none",
    }
    _write(
        folder,
        teacher,
        "# A pruned student\n\n"
        f"Some layers of a teacher, cut out by {HOME}, and not trained since: it is where a "
        "distillation begins, and worse than its teacher at everything until then. Embeddings, "
        f"final norm and head are the teacher's.\n\n{_table(rows)}",
    )


@dataclass(frozen=True)
class TemperNote:
    """What was changed, and what was measured of it.

    original_weights  as teachers/fingerprint.py names them
    error             of the logits, relative to the largest: |T z' - z|, without the rounding of
                      weights
    dtype             that the model is loaded in where nobody asks for another; in it
    error_in_dtype    the same, and
    kl_in_dtype       KL(softmax(z / T) || softmax(z')), nats a position
    """

    original: str
    original_weights: str
    temperature: float
    changed: list[str]
    error: float
    dtype: str
    error_in_dtype: float
    kl_in_dtype: float

    def as_json(self) -> dict[str, Any]:
        return {"generator": _generator(), **asdict(self)}

    @property
    def rounds(self) -> bool:
        """Whether loading it in its type rounds what makes it exact."""
        return self.error_in_dtype != self.error


def write_temper_card(folder: Path, note: TemperNote, original: Path) -> None:
    """README.md of a tempered copy."""
    rows: dict[str, object] = {
        "original": note.original,
        "its weights": note.original_weights,
        "temperature": f"{note.temperature:g}",
        "changed": ", ".join(note.changed),
        "largest difference of T z' from z, relative": f"{note.error:.2g}",
    }
    if note.rounds:
        rows[f"the same, loaded in {note.dtype}"] = f"{note.error_in_dtype:.2g}"
        rows[f"KL from softmax(z/T), loaded in {note.dtype}"] = f"{note.kl_in_dtype:.2g} nats"
    _write(
        folder,
        original,
        f"# At temperature {note.temperature:g}\n\n"
        f"A copy of a model, made by {HOME}, whose distribution of the next token at T = 1 is the "
        f"original's at T = {note.temperature:g}: a server that grades text at T = 1 serves a "
        "tempered teacher with it. To write text with it is to sample at that temperature.\n\n"
        f"{_table(rows)}",
    )


def _write(folder: Path, original: Path, text: str) -> None:
    about = ModelCardData(library_name="transformers", tags=["axolotl-distill"])
    licence = _licence(original / CARD)
    for key, value in licence.items():
        setattr(about, key, value)
    card = ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")
    write_atomically(folder / CARD, str(card).encode())


def _licence(card: Path) -> dict[str, Any]:
    """What the original's card says of its licence; nothing where that cannot be read."""
    try:
        found = ModelCard.load(card).data.to_dict()
    except (OSError, ValueError):
        return {}
    return {key: found[key] for key in ("license", "license_name", "license_link") if key in found}


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {as_markdown(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2, 5"""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if part[1:] else str(part[0]) for part in parts)


def _numbers(tensors: Stored) -> int:
    return sum(prod(tensor.shape) for tensor in tensors.values())


def _generator() -> str:
    try:
        return f"axolotl-distill {version('axolotl-distill')}"
    except PackageNotFoundError:
        return "axolotl-distill"
