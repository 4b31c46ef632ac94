"""Where each record's entries lie, when records are of several lengths.

lengths  uint8 [R], uint16 or uint32 where a record may be longer
starts   uint32 [ceil(R / 64)]   entries before every 64th record; the others are sums of lengths

A byte and a sixteenth a record, and any record is found by looking at 64.
"""

import numpy as np

from axolotl_distill.store.payloads.base import Arrays, Layout

GROUP = 64


def layout(records: int, most: int) -> Layout:
    """The tensors for records of at most so many entries."""
    bits = 8 if most < 1 << 8 else 16 if most < 1 << 16 else 32
    return {"lengths": (f"U{bits}", (records,)), "starts": ("U32", (-(-records // GROUP),))}


def pack(lengths: np.ndarray, most: int) -> Arrays:
    """The tensors of layout(), for lengths [R] that sum to less than 2^32."""
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    bits = layout(len(lengths), most)["lengths"][0].removeprefix("U")
    return {
        "lengths": lengths.astype(f"uint{bits}"),
        "starts": before[::GROUP].astype(np.uint32),
    }


def spans(arrays: Arrays, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first entry, number of entries), int64 [M] each, of records int64 [M]; as the file says."""
    lengths = arrays["lengths"]
    group = index // GROUP
    near = group[:, None] * GROUP + np.arange(GROUP)
    before = lengths[np.minimum(near, max(0, lengths.size - 1))].astype(np.int64)
    before[near >= index[:, None]] = 0
    start = arrays["starts"][group].astype(np.int64) + before.sum(1)
    return start, lengths[index].astype(np.int64)


def check(arrays: Arrays, entries: int) -> None:
    """Raises ValueError unless the records lie one after another and fill the entries."""
    lengths = arrays["lengths"]
    stops = np.cumsum(lengths, dtype=np.int64)
    total = int(stops[-1]) if stops.size else 0
    if (lengths == 0).any() or total != entries:
        raise ValueError(f"its lengths sum to {total} of {entries} entries, or one is 0")
    if ((stops - lengths)[::GROUP] != arrays["starts"]).any():
        raise ValueError("its starts are not where its lengths lead")
