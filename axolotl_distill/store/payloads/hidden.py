"""What some layers of the teacher hand on at a position: a vector a layer, and its scale.

hidden        float16 or int8 [R, P, D]  of P layers of width D
hidden_scale  float32 [R, P]             x = hidden · hidden_scale, the layer's output
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from axolotl_distill.signal.batch import HIDDEN_SCALE, Column, hidden_column
from axolotl_distill.store.payloads.base import (
    Arrays,
    Layout,
    Payload,
    RecordBatch,
    Records,
    Shape,
    Summary,
    registered,
)
from axolotl_distill.store.payloads.entries import spread

if TYPE_CHECKING:
    from axolotl_distill.store.payloads.together import Payloads

HiddenType = Literal["float16", "int8"]
TYPES: dict[HiddenType, str] = {"float16": "F16", "int8": "I8"}
LARGEST: dict[HiddenType, tuple[float, float]] = {
    "float16": (2.0**14, 2.0**15),
    "int8": (127.0, 127.0),
}
"""What the largest number of a vector is between, as it is stored, whatever the vector"""
# Bytes looked at together, so that memory does not grow with a shard.
AT_ONCE = 64 << 20


@registered
class Hidden(Payload):
    """The outputs x of `layers` of a stack of `depth`, counted from 0, of `width` channels each.
    Each vector has a scale s of its own, so that no output is too large for it. What is stored is
    x / s rounded:

    float16  s a power of 2, the largest |x / s| in [2^14, 2^15]
             |error| ≤ 2^-11 · |x| + 2^-39 · max |x|
    int8     s = max |x| / 127
             |error| ≤ max |x| / 254

    but for what fp32 loses in x / s. A vector of zeros has s = 0.
    """

    kind: Literal["hidden"]
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    depth: Annotated[int, Field(ge=1, lt=1 << 16)]
    width: Annotated[int, Field(ge=1, lt=1 << 20)]
    dtype: HiddenType

    columns: ClassVar[tuple[str, ...]] = ("hidden", "hidden_scale")

    @model_validator(mode="after")
    def _of_the_stack(self) -> Self:
        if any(low >= high for low, high in pairwise(self.layers)):
            raise ValueError(f"`layers` {self.layers} are not in ascending order, each once")
        if self.layers[-1] >= self.depth:
            raise ValueError(f"`layers` {self.layers} are not all below `depth`, {self.depth}")
        return self

    @property
    def bytes_a_record(self) -> int:
        return len(self.layers) * (self.width * np.dtype(self.dtype).itemsize + 4)

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        vectors = (shape.records, len(self.layers), self.width)
        return {"hidden": (TYPES[self.dtype], vectors), "hidden_scale": ("F32", vectors[:2])}

    def pack(self, records: RecordBatch, shape: Shape) -> Arrays:
        return dict(records.columns)

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        found = records.columns
        vectors = (len(records), len(self.layers), self.width)
        assert found["hidden"].dtype == np.dtype(self.dtype)
        assert found["hidden"].shape == vectors
        assert found["hidden_scale"].dtype == np.float32
        assert found["hidden_scale"].shape == vectors[:2]

    def read(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> Records:
        found = {name: arrays[name][index] for name in self.columns}
        _check_finite(found)
        return Records(found)

    def check(self, arrays: Arrays, shape: Shape, most: int | None = None) -> None:
        for index in spread(shape.records, most, max(1, AT_ONCE // self.bytes_a_record)):
            found = {name: arrays[name][index] for name in self.columns}
            _check_finite(found)
            scale = found["hidden_scale"]
            if self.dtype == "float16" and not np.isin(np.frexp(scale)[0], (0.0, 0.5)).all():
                raise ValueError("a scale of a hidden state is no power of 2")
            largest = np.abs(found["hidden"].astype(np.float32)).max(-1)
            low, high = LARGEST[self.dtype]
            fits = (largest >= low) & (largest <= high)
            if not np.where(scale == 0, largest == 0, fits).all():
                raise ValueError("a hidden state is not as large as its scale makes it")

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        return {
            hidden_column(self.dtype): records.columns["hidden"],
            HIDDEN_SCALE: records.columns["hidden_scale"],
        }

    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        squares = np.zeros(len(self.layers))
        step = max(1, AT_ONCE // self.bytes_a_record)
        count = len(records.columns["hidden"])
        for first in range(0, count, step):
            part = {name: column[first : first + step] for name, column in records.columns.items()}
            vectors = part["hidden"].astype(np.float32) * part["hidden_scale"][..., None]
            squares += np.square(vectors, dtype=np.float64).mean(-1).sum(0)
        rms = np.sqrt(squares / max(1, count))
        return {"rms of layer": {str(n): float(x) for n, x in zip(self.layers, rms, strict=True)}}


def hidden_of(payloads: "Payloads") -> Hidden | None:
    return next((payload for payload in payloads.each if isinstance(payload, Hidden)), None)


def _check_finite(found: Arrays) -> None:
    scale = found["hidden_scale"]
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise ValueError("its hidden states are damaged: a scale is negative or not finite")
    if found["hidden"].dtype == np.float16 and not np.isfinite(found["hidden"]).all():
        raise ValueError("its hidden states are damaged: one is not finite")
