"""`distill.teacher.ema` within Axolotl: it moves with every step, and lies in checkpoints."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from axolotl_distill.errors import ConfigError
from axolotl_distill.teachers.average import Average

FILE = "distill_teacher_average.safetensors"


class Averages(TrainerCallback):
    """Begins with training, and moves after every optimizer step."""

    def __init__(self, average: Average):
        self.average = average

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Raises what `Average.begin` does."""
        self.average.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.average.update()


def save_average(average: Average | None, folder: str) -> None:
    """Into a checkpoint, and into nothing else: what is exported is the student."""
    if average is not None and Path(folder).name.startswith(PREFIX_CHECKPOINT_DIR):
        tensors = {name: weight.cpu() for name, weight in average.weights.items()}
        save_file(tensors, Path(folder) / FILE)


def load_average(average: Average | None, folder: str) -> None:
    """Takes it up where a checkpoint left it. Raises ConfigError where it is not there, or is of
    another student."""
    if average is None:
        return
    path = Path(folder) / FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no {FILE}: it was trained without `distill.teacher.ema`. Begin anew, or "
            "remove `ema`."
        )
    average.load(load_file(path))
