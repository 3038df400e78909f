"""What a small set of rows can say: intervals for means, paired differences, and a verdict in plain words.

Intervals are 95 % ones. Means of scores: BCa bootstrap over rows (Efron 1987). Shares of 0/1 scores: Wilson's
(1927), because resampling 15 zeros only ever gives zeros. Differences are paired by row. All draws are
seeded. What isn't covered: another training seed would give another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 10_000
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Paired:
    """B against A on the same rows: the mean difference B - A, and on how many rows B is better or worse."""

    difference: Interval
    wins: int
    losses: int
    ties: int
    p_value: float | None = None

    def to_json(self) -> dict[str, object]:
        counts = {"wins": self.wins, "losses": self.losses, "ties": self.ties}
        return {"difference": self.difference.to_json(), **counts, "p_value": self.p_value}


def mean_interval(scores: Sequence[float], *, binary: bool = False, seed: int = 0) -> Interval:
    """The mean of scores between 0 and 1 with its interval. One row says nothing: [0, 1]."""
    values = _floats(scores)
    mean = float(values.mean())
    if binary or mean in (0.0, 1.0):
        return Interval(mean, *wilson(int(values.sum()), len(values)))
    if len(values) < 2:
        return Interval(mean, 0.0, 1.0)
    return Interval(mean, *bca(values, seed=seed))


def paired(a: Sequence[float], b: Sequence[float], *, binary: bool = False, seed: int = 0) -> Paired:
    """B against A, row by row; scores between 0 and 1, more is better. Raises ValueError for unequal lengths.

    For 0/1 scores `p_value` is McNemar's exact one: the rows on which both agree say nothing about who is
    better, the others are fair coin throws if neither is.
    """
    left, right = _floats(a), _floats(b)
    if len(left) != len(right):
        raise ValueError(f"paired scores of {len(left)} and {len(right)} rows")
    differences = right - left
    wins, losses = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    mean = float(differences.mean())
    low, high = bca(differences, seed=seed) if len(differences) > 1 else (-1.0, 1.0)
    p_value = mcnemar(wins, losses) if binary else None
    return Paired(Interval(mean, low, high), wins, losses, len(differences) - wins - losses, p_value)


def paired_ratio(
    a: tuple[Sequence[float], Sequence[float]], b: tuple[Sequence[float], Sequence[float]], *, seed: int = 0
) -> Interval | None:
    """Difference of two ratios of sums, B - A, each given as (numerators, denominators) by row.

    This is the loss: sum of nll over sum of tokens, rows resampled for both at once (percentile bootstrap).
    None for a single row, from which no interval can be had.
    """
    numerator_a, denominator_a, numerator_b, denominator_b = map(_floats, (*a, *b))

    def difference(index: NDArray[np.int64] | slice) -> Floats:
        ratio_b = numerator_b[index].sum(-1) / denominator_b[index].sum(-1)
        ratio_a = numerator_a[index].sum(-1) / denominator_a[index].sum(-1)
        return np.asarray(ratio_b - ratio_a, dtype=np.float64)

    if len(numerator_a) < 2:
        return None
    draws = np.concatenate([difference(index) for index in _resamples(len(numerator_a), seed)])
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(difference(slice(None))), float(low), float(high))


def percentile(values: Sequence[float] | Floats, *, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean."""
    low, high = np.quantile(_bootstrap_means(_floats(values), seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bca(values: Sequence[float] | Floats, *, seed: int = 0) -> tuple[float, float]:
    """The BCa bootstrap interval of a mean: percentiles moved for bias (z0) and skewness (a).

    alpha' = Phi(z0 + (z0 + z) / (1 - a (z0 + z))), z the normal quantile of alpha; z0 = Phi^-1 of the share
    of resampled means below the mean (ties count half), a = sum d^3 / (6 (sum d^2)^1.5) over d, the
    jackknife means' distances from their own mean. Source: Efron & Tibshirani 1993, 14.3.
    """
    data = _floats(values)
    mean, n = data.mean(), len(data)
    if np.ptp(data) == 0:
        return float(mean), float(mean)
    means = _bootstrap_means(data, seed)
    # Leaving out x gives (n mean - x) / (n - 1), whose distance to the mean of all is (mean - x) / (n - 1).
    distance = -(mean - data) / (n - 1)
    acceleration = (distance**3).sum() / (6 * (distance**2).sum() ** 1.5)
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = NORMAL.inv_cdf(min(max(float(below), 1e-6), 1 - 1e-6))
    levels = []
    for alpha in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        moved = bias + NORMAL.inv_cdf(alpha)
        levels.append(NORMAL.cdf(bias + moved / (1 - acceleration * moved)))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval for a share: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    z = NORMAL.inv_cdf((1 + LEVEL) / 2)
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # At the ends the formula is exact on paper only.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p of so uneven a split of the rows that differ, were each a fair coin throw."""
    n = wins + losses
    tail: float = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def verdict(result: Paired | Interval, n: int, *, lower_is_better: bool = False) -> str:
    """better, worse, or "cannot tell with n = 15" (and how many rows might tell), said of B against A."""
    difference = result.difference if isinstance(result, Paired) else result
    p_value = result.p_value if isinstance(result, Paired) else None
    told = difference.low > 0 or difference.high < 0
    if told and (p_value is None or p_value < 1 - LEVEL):
        return "better" if (difference.value < 0) == lower_is_better else "worse"
    needed = _rows_needed(difference, n)
    return f"cannot tell with n = {n}" + (f"; about {needed} are needed" if needed else "")


def _rows_needed(difference: Interval, n: int) -> int | None:
    """Rows at which this difference would just leave 0 outside, as the width shrinks with the root of n."""
    half = (difference.high - difference.low) / 2
    if not difference.value or n < 5:
        return None
    needed = math.ceil(n * (half / abs(difference.value)) ** 2)
    # Two figures are more than such a guess holds; beyond a hundredfold it says nothing.
    digits = len(str(needed)) - 2
    rounded = math.ceil(needed / 10**digits) * 10**digits if digits > 0 else needed
    return rounded if n < rounded <= 100 * n else None


def _bootstrap_means(data: Floats, seed: int) -> Floats:
    return np.concatenate([data[index].mean(axis=1) for index in _resamples(len(data), seed)])


def _resamples(n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row indexes [draws, n] of all resamples, in parts of a bounded size."""
    generator = np.random.default_rng(seed)
    part = max(1, min(RESAMPLES, 4_000_000 // n))
    for start in range(0, RESAMPLES, part):
        yield generator.integers(n, size=(min(part, RESAMPLES - start), n))


def _floats(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError("an interval needs at least one row")
    return array
