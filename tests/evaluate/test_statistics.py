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
    mcnemar,
    mean_interval,
    paired,
    paired_ratio,
    percentile,
    verdict,
    wilson,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "intervals.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["bootstrap"], ids=lambda case: f"{case['method']}{case['values'][0]}")
def test_bootstrap_intervals_are_scipys(case: dict) -> None:
    ours = {"BCa": bca, "percentile": percentile}[case["method"]](case["values"])
    # 10,000 draws: the standard error of a 2.5 % quantile is about 0.002 here.
    assert ours == pytest.approx(case["interval"], abs=0.008)


@pytest.mark.parametrize("case", GOLDEN["wilson"])
def test_wilson_is_scipys(case: dict) -> None:
    assert wilson(case["successes"], case["n"]) == pytest.approx(case["interval"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["mcnemar"])
def test_mcnemar_is_the_exact_binomial(case: dict) -> None:
    assert mcnemar(case["wins"], case["losses"]) == pytest.approx(case["p"], abs=1e-12)


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
    assert verdict(paired([0.1], [0.9]), 1) == "cannot tell with n = 1"
    assert paired_ratio(([3.0], [1.0]), ([2.0], [1.0])) is None


def test_paired_counts_and_uses_the_pairing() -> None:
    base = np.linspace(0, 0.9, 20)
    result = paired(base.tolist(), (base + 0.05).tolist())
    assert (result.wins, result.losses, result.ties) == (20, 0, 0)
    # Unpaired, a shift of 0.05 would drown in a spread of 0.9.
    assert result.difference.low == pytest.approx(0.05) == result.difference.high
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
    # Half-width 0.2, difference 0.1: 40 * (0.2/0.1)^2 = 160.
    assert verdict(Interval(0.1, -0.1, 0.3), 40) == "cannot tell with n = 40; about 160 are needed"


def test_three_wins_of_fifteen_are_not_called_better() -> None:
    result = paired([0.0] * 15, [1.0] * 3 + [0.0] * 12, binary=True)
    assert result.p_value == pytest.approx(0.25)  # 2 * (1/2)^3
    assert verdict(result, 15).startswith("cannot tell with n = 15")
    # The bootstrap alone would claim it, which is why the exact test has a say.
    assert result.difference.low > 0
    assert verdict(Paired(result.difference, 3, 0, 12), 15) == "better"


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        mean_interval([])
