"""How numbers become bits in a teacher store. Pure numpy; docs/store-format.md is the norm.

entry    uint32: token id in the high `id_bits`, a code in the low `value_bits`
         id_bits = bits of (vocab_size - 1), value_bits = 32 - id_bits
code     log-probability records: logprob = -code * 32 / (2^value_bits - 2), in nats
         records of draws:        in how many of the record's `parts` the id comes
packed   an entry of draws in 24 bits where they hold it: id, then code - 1; little-endian
PAD      0xFFFFFFFF, no entry; no other entry has a code of all ones
tail     int16: round(1024 * ln(tail mass / head mass)); -32768 = no tail at all
entropy  int16: round(1024 * nats)
"""

import numpy as np

from axolotl_distill.errors import StoreError

PAD = np.uint32(0xFFFFFFFF)
LOGPROB_RANGE = 32.0
FIXED_POINT = 1024.0
NO_TAIL = np.int16(-32768)
MIN_VALUE_BITS = 12


def id_bits(vocab_size: int) -> int:
    """Bits of a token id. Raises StoreError for a vocabulary that leaves too few for the value."""
    bits = max(1, (vocab_size - 1).bit_length())
    if vocab_size < 1 or 32 - bits < MIN_VALUE_BITS:
        raise StoreError(
            f"vocab_size {vocab_size} is not between 1 and {2 ** (32 - MIN_VALUE_BITS)}, the most "
            "that a 32-bit entry can hold beside a value"
        )
    return bits


def max_code(vocab_size: int) -> int:
    """The largest code an entry can hold; all ones is kept for PAD."""
    return (1 << (32 - id_bits(vocab_size))) - 2


def encode_logprobs(ids: np.ndarray, logprobs: np.ndarray, vocab_size: int) -> np.ndarray:
    """Entries uint32, shaped like `ids`, from ids and logprobs (nats, at T=1; clipped at -32).

    Raises StoreError for NaN, and for ids outside the vocabulary.
    """
    logprobs = np.asarray(logprobs, np.float64)
    if np.isnan(logprobs).any():
        raise StoreError("a log-probability is NaN; the teacher's logits are not finite")
    code = np.rint(np.clip(-logprobs, 0, LOGPROB_RANGE) * (max_code(vocab_size) / LOGPROB_RANGE))
    return _join(ids, code, vocab_size)


def decode_logprobs(entries: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64, logprobs float32 in nats); PAD gives (-1, -inf)."""
    ids, code = _split(entries, vocab_size)
    logprobs = np.where(ids < 0, -np.inf, code * (-LOGPROB_RANGE / max_code(vocab_size)))
    return ids, logprobs.astype(np.float32)


def logprob_rounding(vocab_size: int) -> float:
    """Nats by which an entry's log-probability may be off."""
    return LOGPROB_RANGE / max_code(vocab_size) / 2


def bytes_an_entry(vocab_size: int, draws: int) -> int:
    """Of records of `draws`, packed: 3 where the bits beside an id count to `draws`, else 4."""
    return 3 if draws <= 1 << max(0, 24 - id_bits(vocab_size)) else 4


def parts(vocab_size: int, draws: int) -> int:
    """What the counts of a record of `draws` sum to: the largest multiple of `draws` that an entry
    can count to. 0 where it cannot count to `draws`."""
    if bytes_an_entry(vocab_size, draws) == 3:
        most = 1 << (24 - id_bits(vocab_size))
    else:
        most = max_code(vocab_size)
    return most // draws * draws


def pack_entries(entries: np.ndarray, vocab_size: int) -> np.ndarray:
    """uint8 [E, 3] from entries uint32 [E] of counts that 24 bits hold."""
    ids, counts = decode_counts(entries, vocab_size)
    packed = (ids << (24 - id_bits(vocab_size))) | (counts - 1)
    return np.ascontiguousarray(packed.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3])


def unpack_entries(packed: np.ndarray, vocab_size: int) -> np.ndarray:
    """Entries uint32 [E] from uint8 [E, 3]; an id may be outside the vocabulary."""
    wide = np.zeros((len(packed), 4), np.uint8)
    wide[:, :3] = packed
    joined = wide.view("<u4")[:, 0]
    bits = 24 - id_bits(vocab_size)
    ids, counts = joined >> bits, (joined & ((1 << bits) - 1)) + 1
    return (ids << np.uint32(32 - id_bits(vocab_size))) | counts.astype(np.uint32)


def encode_counts(ids: np.ndarray, counts: np.ndarray, vocab_size: int) -> np.ndarray:
    """Entries uint32, shaped like `ids`, from ids and in how many parts (at least one) each comes.

    Raises StoreError for a count that an entry cannot hold, and for ids outside the vocabulary.
    """
    top = max_code(vocab_size)
    if np.min(counts, initial=1) < 1:
        raise StoreError(f"an id drawn {np.min(counts)} times is no entry; leave it out")
    if np.max(counts, initial=0) > top:
        raise StoreError(
            f"{np.max(counts)} draws of one token do not fit: with {vocab_size} token ids an "
            f"entry counts to {top}. Use fewer draws."
        )
    return _join(ids, counts, vocab_size)


def decode_counts(entries: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64, counts int64); PAD gives (-1, 0)."""
    ids, code = _split(entries, vocab_size)
    return ids, np.where(ids < 0, 0, code)


def are_entries(entries: np.ndarray, vocab_size: int) -> bool:
    """Whether every uint32 has an id of the vocabulary and a code that is no padding's."""
    bits = 32 - id_bits(vocab_size)
    code = entries & np.uint32((1 << bits) - 1)
    return bool(
        int(entries.max(initial=0)) >> bits < vocab_size
        and int(code.max(initial=0)) <= max_code(vocab_size)
    )


def encode_tail(log_tail: np.ndarray, log_head: np.ndarray) -> np.ndarray:
    """int16 log-odds from the log masses (nats) outside and inside a record's entries.

    Log-odds resolve a small tail and a small head alike: an error of half a step, 1/2048, is a
    relative error below 0.05 % of either mass.
    """
    odds = np.asarray(log_tail, np.float64) - np.asarray(log_head, np.float64)
    fixed = np.clip(np.rint(odds * FIXED_POINT), -32767, 32767)
    return np.where(np.isneginf(log_tail), NO_TAIL, fixed).astype(np.int16)


def decode_tail(tail: np.ndarray) -> np.ndarray:
    """log of the tail's mass, float64 nats; -inf where there is no tail."""
    odds = np.asarray(tail, np.float64) / FIXED_POINT
    return np.where(tail == NO_TAIL, -np.inf, -np.logaddexp(0.0, -odds))


def encode_entropy(nats: np.ndarray) -> np.ndarray:
    """int16 from nats (0 to 32)."""
    return np.clip(np.rint(np.asarray(nats, np.float64) * FIXED_POINT), 0, 32767).astype(np.int16)


def decode_entropy(entropy: np.ndarray) -> np.ndarray:
    """float64 nats."""
    return np.asarray(entropy, np.float64) / FIXED_POINT


def _join(ids: np.ndarray, code: np.ndarray, vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise StoreError(
            f"token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}"
        )
    shift = np.uint32(32 - id_bits(vocab_size))
    return (ids.astype(np.uint32) << shift) | np.asarray(code).astype(np.uint32)


def _split(entries: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    bits = 32 - id_bits(vocab_size)
    wide = np.asarray(entries, np.uint32).astype(np.int64)
    ids = np.where(wide == int(PAD), -1, wide >> bits)
    return ids, wide & ((1 << bits) - 1)
