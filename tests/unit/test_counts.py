"""Whether what was counted is what a record says: an exact test, by its values and by what it does
where the truth is known."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from axolotl_distill.store.check import check_lines, check_warnings, fits_too_rarely
from axolotl_distill.store.counts import LEVEL, agreement, may_be_outside
from axolotl_distill.store.encoding import decode_logprobs, encode_logprobs, logprob_rounding

TRUE = [0.0005, 0.0015, 0.003, 0.01, 0.02, 0.05, 0.133, 0.3, 0.5, 0.71, 0.9, 0.98, 0.9985, 0.9995]


def exactly(count: int, of: int, probability: Fraction) -> Fraction:
    chance = [comb(of, k) * probability**k * (1 - probability) ** (of - k) for k in range(of + 1)]
    return sum((one for one in chance if one <= chance[count]), Fraction(0))


@pytest.mark.parametrize("probability", [Fraction(1, 50), Fraction(1, 2), Fraction(9, 10)])
def test_it_is_the_sum_over_what_is_no_likelier(probability):
    for count in range(31):
        wanted = float(exactly(count, 30, probability))
        assert agreement(count, 30, float(probability)) == pytest.approx(wanted, rel=1e-9)


def test_values():
    # b(0; 10, 0.5) + b(10; 10, 0.5), and all ten samples of what is sure or impossible.
    assert agreement(0, 10, 0.5) == pytest.approx(2 / 1024)
    assert agreement(5, 10, 0.5) == pytest.approx(1.0)
    assert agreement(10, 10, 1.0) == agreement(0, 10, 0.0) == 1.0
    assert agreement(9, 10, 1.0) == agreement(1, 10, 0.0) == 0.0
    # DeepSeek's `1` after `The code is `: 0.133 in the record, 84 of 400 counted.
    assert agreement(84, 400, 0.133) < 1e-4
    assert agreement(0, 0, 0.3) == 1.0
    for count in (-1, 11):
        with pytest.raises(ValueError, match=r"of 10 samples"):
            agreement(count, 10, 0.5)


@pytest.mark.parametrize("of", [25, 100, 200])
def test_a_right_record_is_outside_as_rarely_as_is_promised(of):
    """Whatever its probability. By two standard errors, at either share, it is not so."""
    counts = np.arange(of + 1)
    outside, by_counted, by_recorded = [], [], []
    for q in TRUE:
        chance = np.array([comb(of, int(k)) * q**k * (1 - q) ** (of - k) for k in counts])
        p_values = np.array([agreement(int(k), of, q) for k in counts])
        outside.append(chance[p_values <= LEVEL].sum())
        share = counts / of
        counted = np.sqrt((share * (1 - share) + 1 / (of + 2)) / (of + 2))
        by_counted.append(chance[abs(share - q) > 2 * counted].sum())
        by_recorded.append(chance[abs(share - q) > 2 * np.sqrt(q * (1 - q) / of)].sum())
    assert max(outside) <= LEVEL
    assert max(by_counted) > 0.06 and max(by_recorded) > 0.06
    if of == 100:
        # What ADR 40 quotes.
        assert by_counted[TRUE.index(0.02)] == pytest.approx(0.134, abs=0.001)
        assert by_recorded[TRUE.index(0.0015)] == pytest.approx(0.139, abs=0.001)


def test_bits_of_a_record_are_no_error():
    """A probability just below 1 that is kept as 1: one sample of another token is no proof."""
    size = 129_280
    truth = 1 - 3e-4
    _, kept = decode_logprobs(encode_logprobs(np.array([5]), np.log([truth]), size), size)
    assert np.exp(kept[0]) == 1.0
    assert agreement(99, 100, 1.0) == 0.0
    rounding = logprob_rounding(size)
    assert agreement(99, 100, 1.0, rounding) > 0.04 and agreement(95, 100, 1.0, rounding) < 1e-4
    steps = np.log(np.random.default_rng(0).uniform(0.01, 1.0, 1000))
    _, kept = decode_logprobs(encode_logprobs(np.arange(1000), steps, size), size)
    assert abs(kept - steps).max() <= rounding * (1 + 1e-3)


def test_so_many_places_come_by_chance():
    assert [may_be_outside(places) for places in (1, 2, 5, 10, 20, 50)] == [1, 1, 2, 2, 3, 6]
    assert fits_too_rarely(0.8, 20) and not fits_too_rarely(0.85, 20)
    assert fits_too_rarely(0.7, 10) and not fits_too_rarely(0.8, 10)
    assert not fits_too_rarely(1.0, 1)


def test_right_records_pass_and_planted_ones_are_caught():
    """20 places of 100 counted samples each, ten thousand times. Planted: of half of the places
    the record has what a map of vocabularies gives a numeral, its own and that of its longer forms
    (the truth times 1.6); and a record that is 0.1 off everywhere."""
    rng = np.random.default_rng(0)
    passed = {"right": 0, "longer forms": 0, "0.1 off": 0}
    p_values: dict[tuple[int, float], float] = {}
    grid = np.round(rng.beta(0.7, 1.2, (10_000, 20)) * 0.58 + 0.02, 2)
    for truth in grid[:1000]:
        counts = rng.binomial(100, truth)
        longer = np.where(np.arange(20) % 2, truth, np.round(np.minimum(1.6 * truth, 1.0), 3))
        for name, record in (
            ("right", truth), ("longer forms", longer), ("0.1 off", truth + 0.1),
        ):  # fmt: skip
            within = 0
            for count, q in zip(counts.tolist(), record.tolist(), strict=True):
                key = (count, q)
                p_values[key] = p_values.get(key) or agreement(count, 100, q)
                within += p_values[key] > LEVEL
            passed[name] += not fits_too_rarely(within / 20, 20)
    assert passed["right"] >= 980 and passed["longer forms"] < 100 and passed["0.1 off"] < 20


def test_what_a_check_says():
    check = {"rows": 8, "tokens": 100, "carried": 0.9, "places": 10, "samples": 200, "error": 0.03}
    (_, line) = check_lines({**check, "within": 0.8})
    assert line.startswith("what the teacher writes fits them at 8 of 10 places (200 samples each")
    assert not [*check_warnings({**check, "within": 0.8})]
    (warning,) = check_warnings({**check, "within": 0.7})
    assert "at 7 of 10 places" in warning and "at 8 or more" in warning
    assert not [*check_warnings({"rows": 8, "tokens": 100, "carried": 0.9, "places": 0})]
