"""What a small set of rows can say: intervals for means, paired differences, and a verdict in plain words.

Intervals are 95 % ones. Means of scores: BCa bootstrap over rows (Efron 1987). Shares of 0/1 scores: Wilson's
(1927), because resampling 15 zeros only ever gives zeros; their differences: Bonett and Price's (2012).
Differences are paired by row, and a verdict needs an exact test besides the interval. All draws are seeded.
What isn't covered: another training seed would give another model.

Fewer than 6 rows: no verdict, for a test that flips the signs of n paired differences can reach a two-sided p
of 2 / 2^n (Fisher 1935), 0.0625 at n = 5 and 0.031 at n = 6; and Student's interval instead of the bootstrap,
which then draws the same few samples again and again and comes out much too narrow.
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
FEWEST = 6
EXACT_FLIPS = 12  # rows whose 2^n signs are all tried; of more rows, as many as RESAMPLES are drawn
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # t at 0.975 by degrees of freedom, below FEWEST rows
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
    return Interval(mean, *_of_mean(values, 0.0, seed))


def paired(a: Sequence[float], b: Sequence[float], *, binary: bool = False, seed: int = 0) -> Paired:
    """B against A, row by row; scores between 0 and 1, more is better. Raises ValueError for unequal lengths.

    `p_value`: for 0/1 scores McNemar's exact one (the rows on which both agree say nothing about who is
    better, the others are fair coin throws if neither is), else that of `sign_flip`.
    """
    left, right = _floats(a), _floats(b)
    if len(left) != len(right):
        raise ValueError(f"paired scores of {len(left)} and {len(right)} rows")
    differences = right - left
    wins, losses = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    mean = float(differences.mean())
    if binary:
        low, high = bonett_price(wins, losses, len(differences))
        p_value = mcnemar(wins, losses)
    else:
        low, high = _of_mean(differences, -1.0, seed)
        p_value = sign_flip(differences, seed=seed)
    return Paired(Interval(mean, low, high), wins, losses, len(differences) - wins - losses, p_value)


def paired_ratio(
    a: tuple[Sequence[float], Sequence[float]], b: tuple[Sequence[float], Sequence[float]], *, seed: int = 0
) -> Interval | None:
    """Difference of two ratios of sums, B - A, each given as (numerators, denominators) by row.

    This is the loss: sum of nll over sum of tokens, rows resampled for both at once (percentile bootstrap;
    below 6 rows Student's t on the linearised ratios, Cochran 1977, 6.4). None where no interval can be had:
    for a single row, and where no row differs.
    """
    numerator_a, denominator_a, numerator_b, denominator_b = map(_floats, (*a, *b))

    def difference(index: NDArray[np.int64] | slice) -> Floats:
        ratio_b = numerator_b[index].sum(-1) / denominator_b[index].sum(-1)
        ratio_a = numerator_a[index].sum(-1) / denominator_a[index].sum(-1)
        return np.asarray(ratio_b - ratio_a, dtype=np.float64)

    n, value = len(numerator_a), float(difference(slice(None)))
    ratio_a, ratio_b = numerator_a.sum() / denominator_a.sum(), numerator_b.sum() / denominator_b.sum()
    # Each row's pull on the difference; they sum to 0.
    pulls = (numerator_b - ratio_b * denominator_b) / denominator_b.sum()
    pulls = pulls - (numerator_a - ratio_a * denominator_a) / denominator_a.sum()
    if n < 2 or np.ptp(pulls) < 1e-12:
        return None
    if n < FEWEST:
        half = STUDENT[n - 1] * math.sqrt(n / (n - 1) * float((pulls**2).sum()))
        return Interval(value, value - half, value + half)
    draws = np.concatenate([difference(index) for index in _resamples(len(numerator_a), seed)])
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Interval | None:
    """A ratio of sums with its interval, as `paired_ratio` has it against a ratio that is always 0."""
    n = len(numerators)
    return paired_ratio(([0.0] * n, [1.0] * n), (numerators, denominators), seed=seed)


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


def bonett_price(wins: int, losses: int, n: int) -> tuple[float, float]:
    """The interval of a difference of paired shares; a win and a loss are added, so that ties aren't certain.

    p = (wins + 1) / (n + 2), q = (losses + 1) / (n + 2): p - q ± z sqrt((p + q - (p - q)²) / (n + 2)).
    Source: Bonett & Price 2012, J. Educational and Behavioral Statistics 37, 479-488.
    """
    z = NORMAL.inv_cdf((1 + LEVEL) / 2)
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def sign_flip(differences: Sequence[float] | Floats, *, seed: int = 0) -> float:
    """Two-sided p of so large a sum, were each difference as likely to be its own negative (Fisher 1935).

    All signs are tried up to 12 rows that differ; of more, 10,000 are drawn, and the one observed counts too.
    """
    values = _floats(differences)
    values = values[np.abs(values) > 1e-9]
    n = len(values)
    if n <= EXACT_FLIPS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean())
    generator, reached = np.random.default_rng(seed), 0
    part = max(1, min(RESAMPLES, 4_000_000 // n))
    for start in range(0, RESAMPLES, part):
        signs = generator.choice((-1.0, 1.0), size=(min(part, RESAMPLES - start), n))
        reached += int((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).sum())
    return (reached + 1) / (RESAMPLES + 1)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p of so uneven a split of the rows that differ, were each a fair coin throw."""
    n = wins + losses
    tail: float = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def verdict(result: Paired | Interval, n: int, *, lower_is_better: bool = False) -> str:
    """better, worse, or "cannot tell with n = 15" (and how many rows might tell), said of B against A."""
    if n < FEWEST:
        return f"cannot tell with n = {n}; at least {FEWEST} are needed"
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
    if not difference.value:
        return None
    needed = math.ceil(n * (half / abs(difference.value)) ** 2)
    # Two figures are more than such a guess holds; beyond a hundredfold it says nothing.
    digits = len(str(needed)) - 2
    rounded = math.ceil(needed / 10**digits) * 10**digits if digits > 0 else needed
    return rounded if n < rounded <= 100 * n else None


def _of_mean(values: Floats, least: float, seed: int) -> tuple[float, float]:
    """The interval of a mean of values from `least` to 1."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return least, 1.0
    if np.ptp(values) < 1e-12:
        # n rows alike: by Wilson's interval of 0 in n, up to this share of all rows may be anything else.
        others = wilson(0, n)[1]
        return mean - others * (mean - least), mean + others * (1.0 - mean)
    if n >= FEWEST:
        return bca(values, seed=seed)
    half = STUDENT[n - 1] * float(values.std(ddof=1)) / math.sqrt(n)
    return max(least, mean - half), min(1.0, mean + half)


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
