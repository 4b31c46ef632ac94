"""`axolotl distill prune`."""

from typing import Any

from axolotl_distill.checkpoint.folder import open_checkpoint
from axolotl_distill.checkpoint.layers import chosen_layers, evenly
from axolotl_distill.checkpoint.prune import prune, refuse_uncuttable
from axolotl_distill.commands.say import say, warn


def run(teacher: str, out: str, *, layers: str | None, keep: int | None) -> dict[str, Any]:
    """Cuts `layers`, or `keep` evenly spread ones, out of the checkpoint `teacher`; one of the two
    is given. Returns what --json prints: the note that lies in prune.json.
    """
    original = open_checkpoint(teacher)
    refuse_uncuttable(original)
    number = original.config.num_hidden_layers
    if layers is not None:
        kept = chosen_layers(layers, number)
    else:
        assert keep is not None
        kept = evenly(keep, number)
    note = prune(original, kept, out)
    parameters = note.parameters
    say(
        f"{out}: layers {', '.join(map(str, kept))} of {number}; {parameters['student']:,} of "
        f"{parameters['teacher']:,} parameters stored. Not trained yet: distil it."
    )
    if note.left_out:
        warn(
            f"{len(note.left_out)} tensors behind the last layer, as {note.left_out[0]}, were left "
            "out: layers that predict further tokens belong to the teacher as it was."
        )
    return note.as_json()
