"""What a store can hold of a position, one kind a file.

A kind is a Payload: it packs, reads, checks and decodes its own records, says which losses can be
had from them, and its fields are the `method` of a manifest. AnyPayload is where it is registered.
"""

from typing import Annotated, get_args

from pydantic import Field

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store.payloads.base import (
    Arrays,
    Layout,
    Payload,
    RecordBatch,
    Records,
    Shape,
    join_batches,
)
from axolotl_distill.store.payloads.draws import Sampled
from axolotl_distill.store.payloads.logprobs import Nucleus, TopK

AnyPayload = Annotated[TopK | Nucleus | Sampled, Field(discriminator="kind")]
KINDS: dict[str, type[Payload]] = {
    get_args(payload.model_fields["kind"].annotation)[0]: payload
    for payload in get_args(get_args(AnyPayload)[0])
}


def payload_of(capture: CaptureArgs) -> Payload:
    """The payload that `distill.capture` asks for."""
    kind = KINDS[capture.method]
    fields = {field: getattr(capture, key) for field, key in kind.asked_by.items()}
    return kind(kind=capture.method, **fields)


__all__ = [
    "KINDS",
    "AnyPayload",
    "Arrays",
    "Layout",
    "Payload",
    "RecordBatch",
    "Records",
    "Shape",
    "join_batches",
    "payload_of",
]
