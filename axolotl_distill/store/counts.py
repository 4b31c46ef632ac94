"""Whether what was counted is what a record says: an exact test of a place, and at how many places
chance alone may speak against a right one.

Of n samples k were the token, which the record gives the probability q. Were the record right, k
would be binomial, and

    p(k) = sum of b(j; n, q) over all j with b(j; n, q) <= b(k; n, q)

is at most LEVEL in at most LEVEL of all cases, whatever n and q. A number of standard errors
promises that for shares in the middle alone: two of them at the counted share, with one more of
each kind, miss a right q of 0.02 at 100 samples in 13 % of all cases, and two at the record's own
share miss one of 0.0015 in 14 % (docs/cross-tokenizer.md).
"""

import math

import numpy as np

LEVEL, ALARM = 0.05, 0.02
"""A right record is outside at no more than LEVEL of the places; that a right set of records is
refused for what lies outside by chance has no more than the probability ALARM."""
ALIKE = 1e-7
"""What two probabilities may differ by, relatively, and be the same."""


def agreement(count: int, of: int, probability: float, rounding: float = 0.0) -> float:
    """p(`count`) above, for `of` samples and a token that a record gives `probability`.

    rounding   nats by which the record's log-probability may be off because of its bits; of all
               probabilities that it may mean the one nearest to what was counted is taken.

    Raises ValueError where `count` is not among 0 … `of`.
    """
    if not 0 <= count <= of:
        raise ValueError(f"{count} of {of} samples: a count lies between 0 and their number")
    least, most = (probability * math.exp(step) for step in (-rounding, rounding))
    chance = _binomial(of, min(1.0, max(least, min(count / max(of, 1), most))))
    return float(min(1.0, chance[chance <= chance[count] * (1 + ALIKE)].sum()))


def may_be_outside(places: int) -> int:
    """At how many of `places` a right set of records may be outside: more of them come by chance
    with no more than the probability ALARM."""
    more = 1.0 - np.cumsum(_binomial(places, LEVEL))
    return int(np.flatnonzero(more <= ALARM)[0])


def _binomial(of: int, probability: float) -> np.ndarray:
    """float64 [of + 1]: how likely each count is."""
    if probability in (0.0, 1.0):
        sure = np.zeros(of + 1)
        sure[of if probability else 0] = 1.0
        return sure
    counts = np.arange(of + 1)
    factorials = np.array([math.lgamma(count + 1) for count in counts])
    ways = factorials[of] - factorials - factorials[::-1]
    logs = counts * math.log(probability) + (of - counts) * math.log1p(-probability)
    return np.exp(ways + logs)
