"""Intervals against scipy's and against the truth; verdicts that don't claim more than the rows say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith.evaluate.statistics import (
    Interval,
    Paired,
    bca,
    bonett_price,
    mcnemar,
    mean_interval,
    paired,
    paired_ratio,
    sign_flip,
    verdict,
    wilson,
)

FOLDER = Path(__file__).parent.parent / "golden"
GOLDEN = json.loads((FOLDER / "intervals.json").read_text(encoding="utf-8"))
PAIRED = json.loads((FOLDER / "paired.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["bootstrap"], ids=lambda case: str(case["values"][0]))
def test_bootstrap_intervals_are_scipys(case: dict) -> None:
    # 10,000 draws: the standard error of a 2.5 % quantile is about 0.002 here.
    assert bca(case["values"]) == pytest.approx(case["interval"], abs=0.008)


@pytest.mark.parametrize("case", GOLDEN["wilson"])
def test_wilson_is_scipys(case: dict) -> None:
    assert wilson(case["successes"], case["n"]) == pytest.approx(case["interval"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["mcnemar"])
def test_mcnemar_is_the_exact_binomial(case: dict) -> None:
    assert mcnemar(case["wins"], case["losses"]) == pytest.approx(case["p"], abs=1e-12)


@pytest.mark.parametrize("case", PAIRED["sign_flip"], ids=lambda case: f"{len(case['values'])} rows")
def test_sign_flips_are_scipys(case: dict) -> None:
    # Of more than 12 rows that differ, 10,000 of the flips are drawn: within two standard errors.
    off = 1e-12 if len(case["values"]) <= 12 else 2 * (case["p"] / 10_000) ** 0.5
    assert sign_flip(case["values"]) == pytest.approx(case["p"], abs=off)


@pytest.mark.parametrize("case", PAIRED["bonett_price"], ids=lambda case: f"{case['wins']}-{case['losses']}")
def test_the_interval_of_paired_shares_is_the_published_one(case: dict) -> None:
    found = bonett_price(case["wins"], case["losses"], case["n"])
    assert found == pytest.approx(case["interval"], abs=1e-12)


def test_a_95_percent_interval_holds_the_true_mean_about_95_times_in_100() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        low, high = bca(generator.beta(2, 5, size=40))
        hits += low <= 2 / 7 <= high
    assert 180 <= hits <= 199


def test_draws_are_seeded() -> None:
    values = np.random.default_rng(5).random(40)
    assert bca(values, seed=1) == bca(values, seed=1)
    assert bca(values, seed=1) != bca(values, seed=2)


def test_fifteen_zeros_are_not_a_certain_zero() -> None:
    result = mean_interval([0.0] * 15, binary=True)
    # Wilson at 0 of n: z^2 / (n + z^2) = 3.8415 / 18.8415.
    assert (result.value, result.low, result.high) == (0.0, 0.0, pytest.approx(0.2039, abs=1e-4))
    assert mean_interval([0.0] * 15) == result  # nor are fifteen F1 of 0


def test_one_row_says_nothing() -> None:
    assert mean_interval([0.7]) == Interval(0.7, 0.0, 1.0)
    assert verdict(paired([0.1], [0.9]), 1).startswith("cannot tell with n = 1;")
    assert paired_ratio(([3.0], [1.0]), ([2.0], [1.0])) is None


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_rows_give_no_verdict(n: int) -> None:
    # The bootstrap would see nothing but gains, between 0.1 and 0.2.
    scores, losses = np.linspace(0.1, 0.2, n).tolist(), np.linspace(30, 40, n)
    for binary, b in ((False, scores), (True, [1.0] * n)):
        told = verdict(paired([0.0] * n, b, binary=binary), n)
        assert told == f"cannot tell with n = {n}; at least 6 are needed"
    ratio = paired_ratio((losses.tolist(), [10.0] * n), ((losses / 2).tolist(), [10.0] * n))
    assert ratio is not None
    assert verdict(ratio, n, lower_is_better=True).startswith("cannot tell")
    # Student's interval of two: 0.15 ± 12.706 * 0.0707 / sqrt(2).
    if n == 2:
        assert paired([0.0, 0.0], scores).difference.low == pytest.approx(0.15 - 12.706 * 0.05, abs=1e-4)


def test_students_interval_of_a_ratio_is_that_of_a_mean_where_rows_have_equal_tokens() -> None:
    gain = [0.3, 0.1, 0.2]
    result = paired_ratio(([1.0] * 3, [1.0] * 3), ([1.0 - g for g in gain], [1.0] * 3))
    assert result is not None
    # sd 0.1, t 4.303 with two degrees of freedom.
    assert (result.value, result.high - result.value) == (
        pytest.approx(-0.2),
        pytest.approx(4.303 * 0.1 / 3**0.5),
    )
    assert paired_ratio(([1.0, 2.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, 1.0])) is None


def test_ties_alone_are_not_a_certain_zero() -> None:
    # 1/17 each way: 1.95996 * sqrt((2/17) / 17).
    binary = paired([0.0] * 15, [0.0] * 15, binary=True).difference
    assert (binary.low, binary.high) == (pytest.approx(-0.1630, abs=1e-4), pytest.approx(0.1630, abs=1e-4))
    # Wilson at 0 of 15 leaves a share of 0.2039, which may be anything from -1 to 1.
    scores = paired([0.4] * 15, [0.4] * 15).difference
    assert (scores.low, scores.high) == (pytest.approx(-0.2039, abs=1e-4), pytest.approx(0.2039, abs=1e-4))
    low, high = mean_interval([0.4] * 15).low, mean_interval([0.4] * 15).high
    assert (low, high) == (pytest.approx(0.4 * 0.7961, abs=1e-4), pytest.approx(0.4 + 0.6 * 0.2039, abs=1e-4))


def test_flipped_signs() -> None:
    assert sign_flip([0.1] * 6) == 2 / 2**6
    assert sign_flip([0.1] * 5 + [0.0] * 9) == 2 / 2**5  # ties say nothing
    assert sign_flip([0.0]) == 1.0
    # 3, 2, 1: the sums of at least 4 are 6 and 4, and their negatives, of 8; 3 + 2 - 1 = 4.
    assert sign_flip([3.0, 2.0, -1.0]) == 4 / 8
    drawn = np.random.default_rng(1).normal(0.3, 1, 60)
    assert sign_flip(drawn) == pytest.approx(0.03, abs=0.03)
    assert sign_flip([1.0] * 40) == pytest.approx(1 / 10_001)


def test_paired_counts_and_uses_the_pairing() -> None:
    base = np.linspace(0, 0.9, 20)
    result = paired(base.tolist(), (base + np.linspace(0.04, 0.06, 20)).tolist())
    assert (result.wins, result.losses, result.ties) == (20, 0, 0)
    # Unpaired, a shift of 0.05 would drown in a spread of 0.9.
    assert 0.045 < result.difference.low < 0.05 < result.difference.high < 0.055
    assert verdict(result, 20) == "better"
    assert paired([1, 0, 0.5], [0, 1, 0.5]).ties == 1
    with pytest.raises(ValueError, match="3 and 2"):
        paired([1, 0, 1], [1, 0])


def test_ratio_difference_weights_rows_by_their_tokens() -> None:
    a = ([10.0, 300.0], [10.0, 100.0])
    b = ([20.0, 100.0], [10.0, 100.0])
    result = paired_ratio(a, b)
    # A: 310/110, B: 120/110. The mean of row losses would give (2+1)/2 - (1+3)/2 = -0.5.
    assert result is not None
    assert result.value == pytest.approx((120 - 310) / 110)


def test_verdicts() -> None:
    assert verdict(Interval(0.2, 0.1, 0.3), 50) == "better"
    assert verdict(Interval(-0.2, -0.3, -0.1), 50) == "worse"
    assert verdict(Interval(-0.2, -0.3, -0.1), 50, lower_is_better=True) == "better"
    assert verdict(Interval(0.0, 0.0, 0.0), 15) == "cannot tell with n = 15"
    # A row's spread is 0.2 / 1.96 * sqrt(40) = 0.645: ((1.96 + 0.842) * 6.45)^2 + 1.92 = 328.8, rounded up.
    assert verdict(Interval(0.1, -0.1, 0.3), 40) == "cannot tell with n = 40; about 330 are needed"
    assert verdict(Interval(0.2, 0.1, 0.3), 50, neutral=True) == "higher"
    assert verdict(Interval(-0.2, -0.3, -0.1), 50, neutral=True) == "lower"
    few = verdict(Interval(0.2, 0.1, 0.3), 50, documents=5)
    assert few == "cannot tell with n = 50 from 5 documents; at least 6 documents are needed"


def test_three_wins_of_fifteen_are_not_called_better() -> None:
    result = paired([0.0] * 15, [1.0] * 3 + [0.0] * 12, binary=True)
    assert result.p_value == pytest.approx(0.25)  # 2 * (1/2)^3
    assert verdict(result, 15).startswith("cannot tell with n = 15")
    # The bootstrap alone would claim it, which is why the exact test has a say.
    low, high = bca([1.0] * 3 + [0.0] * 12)
    assert low > 0
    assert verdict(Paired(Interval(0.2, low, high), 3, 0, 12), 15) == "better"
    assert verdict(Paired(Interval(0.2, low, high), 3, 0, 12, 0.25), 15).startswith("cannot tell")


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        mean_interval([])
