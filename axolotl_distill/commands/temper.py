"""`axolotl distill temper`."""

from typing import Any

from axolotl_distill.checkpoint.folder import open_checkpoint
from axolotl_distill.checkpoint.temper import temper
from axolotl_distill.commands.say import say, warn


def run(model: str, out: str, *, temperature: float, device: str, link: bool) -> dict[str, Any]:
    """Writes the copy and compares it. Returns what --json prints: the note of temper.json."""
    note = temper(open_checkpoint(model), temperature, out, device=device, link=link)
    changed = ", ".join(note.changed)
    say(
        f"{out}: at T = 1 what {model} is at T = {temperature:g}; changed {changed}. "
        f"Its logits times {temperature:g} are the original's to {note.error:.2g} of the largest."
    )
    if note.rounds:
        warn(
            f"Loaded in {note.dtype}, as its config says, that weight is rounded: the logits "
            f"differ by {note.error_in_dtype:.2g} of the largest, the distributions by "
            f"{note.kl_in_dtype:.2g} nats a position. Serve it in float32, or use a temperature "
            "that is a power of 2 where the model's norm multiplies by its weight alone."
        )
    return note.as_json()
