"""What a store can hold of a position, one kind a file.

A kind is a Payload: it packs, reads, checks, collates and shows its own part of a record, and its
fields are its entry of a manifest's `payloads`. A module of this folder is found by being here, and
registers its kinds; nothing else has a list of them.
"""

from importlib import import_module
from pkgutil import iter_modules

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store.payloads.base import (
    KINDS,
    Arrays,
    Distribution,
    Layout,
    Payload,
    RecordBatch,
    Records,
    Shape,
    join_batches,
    registered,
)
from axolotl_distill.store.payloads.together import Payloads

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")


def distribution_of(capture: CaptureArgs) -> Distribution:
    """The payload that `distill.capture.method` asks for."""
    kind = KINDS[capture.method]
    assert issubclass(kind, Distribution), "what `method` may be is a kind of distribution"
    fields = {field: getattr(capture, key) for field, key in kind.asked_by.items()}
    return kind(kind=capture.method, **fields)


__all__ = [
    "KINDS",
    "Arrays",
    "Distribution",
    "Layout",
    "Payload",
    "Payloads",
    "RecordBatch",
    "Records",
    "Shape",
    "distribution_of",
    "join_batches",
    "registered",
]
