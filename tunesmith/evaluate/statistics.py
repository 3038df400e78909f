"""What a small set of rows can say: intervals for means, paired differences, and a verdict in plain words.

Intervals are 95 % ones. Means of scores: BCa bootstrap over rows (Efron 1987). Shares of 0/1 scores: Wilson's
(1927), because resampling 15 zeros only ever gives zeros; their differences: Bonett and Price's (2012).
Differences are paired by row, and a verdict needs an exact test besides the interval. All draws are seeded.
Rows of one document aren't independent: clusters.py. Figures that are no means: corpus.py. What isn't
covered: another training seed would give another model.

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
POWER = 0.8
"""Of a verdict at the number of rows that `verdict` names, were the difference the one that was seen."""
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
    """B against A on the same rows: the mean difference B - A, and on how many rows B is higher or lower."""

    difference: Interval
    wins: int
    losses: int
    ties: int
    p_value: float | None = None
    binary: bool = False

    def to_json(self) -> dict[str, object]:
        counts = {"wins": self.wins, "losses": self.losses, "ties": self.ties}
        return {"difference": self.difference.to_json(), **counts, "p_value": self.p_value}


Ends = tuple[float, float]
"""The least and the largest value there can be, or that was seen."""


def mean_interval(
    scores: Sequence[float],
    *,
    binary: bool = False,
    top: float | None = 1.0,
    seen: Ends | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of scores between 0 and `top` with its interval. One row says nothing: [0, top].

    `top` None: scores without bounds; `seen`, the ends of a larger set that these are from, then stand in for
    them where a single row, or rows that are all alike, would give no width.
    """
    values = _floats(scores)
    mean = float(values.mean())
    if top == 1.0 and (binary or mean in (0.0, 1.0)):
        return Interval(mean, *wilson(int(values.sum()), len(values)))
    return Interval(mean, *_of_mean(values, None if top is None else (0.0, top), seen, seed))


def paired(
    a: Sequence[float],
    b: Sequence[float],
    *,
    binary: bool = False,
    top: float | None = 1.0,
    seen: Ends | None = None,
    seed: int = 0,
) -> Paired:
    """B against A, row by row; scores as in `mean_interval`. Raises ValueError for unequal lengths.

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
        low, high = _of_mean(differences, None if top is None else (-top, top), of_differences(seen), seed)
        p_value = sign_flip(differences, seed=seed)
    return Paired(Interval(mean, low, high), wins, losses, len(differences) - wins - losses, p_value, binary)


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
    draws = np.concatenate([difference(index) for index in resamples(len(numerator_a), seed)])
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


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several comparisons, each raised so that 0.05 holds for all of them together.

    The k-th smallest of m is multiplied by m - k + 1, and is no smaller than the one before (Holm 1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def verdict(
    result: Paired | Interval,
    n: int,
    *,
    lower_is_better: bool = False,
    neutral: bool = False,
    documents: int | None = None,
) -> str:
    """better, worse, or "cannot tell with n = 15" (and how many rows might tell), said of B against A.

    `neutral`: higher or lower, of what is neither good nor bad. `documents`: how many the n rows are from,
    where rows of one document aren't independent. The number of rows that might tell is the one at which 4
    of 5 repetitions would, were the true difference the one that was seen.
    """
    if documents is not None and documents < FEWEST:
        return f"cannot tell with n = {n} from {documents} documents; at least {FEWEST} documents are needed"
    if n < FEWEST:
        return f"cannot tell with n = {n}; at least {FEWEST} are needed"
    difference = result.difference if isinstance(result, Paired) else result
    p_value = result.p_value if isinstance(result, Paired) else None
    told = difference.low > 0 or difference.high < 0
    if told and (p_value is None or p_value < 1 - LEVEL):
        if neutral:
            return "higher" if difference.value > 0 else "lower"
        return "better" if (difference.value < 0) == lower_is_better else "worse"
    needed = rows_needed(result, n)
    return f"cannot tell with n = {n}" + (f"; about {needed} are needed" if needed else "")


def rows_needed(result: Paired | Interval, n: int) -> int | None:
    """Rows at which a difference like this one is told with a probability of 0.8; None if none can be named.

    Scores: n' = ((z + z') s / d)² + z² / 2, s the spread of a row's difference as the interval's width has
    it, z and z' the normal quantiles of 0.975 and 0.8 (Guenther 1981). 0/1 scores: McNemar's exact test loses
    about one row that differs to being exact, so that d n' - 1 = (z sqrt(p + q) + z' sqrt(p + q - d²))
    sqrt(n'), p and q the shares of wins and losses, d = p - q (Connor 1987, with the correction).
    """
    difference = result.difference if isinstance(result, Paired) else result
    gap, half = abs(difference.value), (difference.high - difference.low) / 2
    if not gap or not math.isfinite(half):
        return None
    of_test, of_power = NORMAL.inv_cdf((1 + LEVEL) / 2), NORMAL.inv_cdf(POWER)
    if isinstance(result, Paired) and result.binary:
        differing = (result.wins + result.losses) / n
        spread = of_test * math.sqrt(differing) + of_power * math.sqrt(differing - gap**2)
        needed = math.ceil(((spread + math.sqrt(spread**2 + 4 * gap)) / (2 * gap)) ** 2)
    else:
        deviation = half / of_test * math.sqrt(n)
        needed = math.ceil(((of_test + of_power) * deviation / gap) ** 2 + of_test**2 / 2)
    # Two figures are more than such a guess holds; beyond a hundredfold it says nothing.
    digits = len(str(needed)) - 2
    rounded = math.ceil(needed / 10**digits) * 10**digits if digits > 0 else needed
    return rounded if n < rounded <= 100 * n else None


def of_differences(seen: Ends | None) -> Ends | None:
    """The ends of differences of two scores whose ends these are."""
    return None if seen is None else (seen[0] - seen[1], seen[1] - seen[0])


def of_all_alike(value: float, bounds: Ends, n: int) -> Ends:
    """The ends for n rows all alike: by Wilson's interval of 0 in n, so many others may be anything."""
    others = wilson(0, n)[1]
    return value - others * (value - bounds[0]), value + others * (bounds[1] - value)


def _of_mean(values: Floats, bounds: Ends | None, seen: Ends | None, seed: int) -> Ends:
    """The interval of a mean of values within `bounds`."""
    n, mean = len(values), float(values.mean())
    ends = bounds or seen or (mean, mean)
    if n < 2:
        return ends
    if np.ptp(values) < 1e-12:
        return of_all_alike(mean, ends, n)
    if n >= FEWEST:
        return bca(values, seed=seed)
    half = STUDENT[n - 1] * float(values.std(ddof=1)) / math.sqrt(n)
    low, high = bounds or (-math.inf, math.inf)
    return max(low, mean - half), min(high, mean + half)


def _bootstrap_means(data: Floats, seed: int) -> Floats:
    return np.concatenate([data[index].mean(axis=1) for index in resamples(len(data), seed)])


def resamples(n: int, seed: int, width: int = 1) -> Iterator[NDArray[np.int64]]:
    """Row indexes [draws, n] of all resamples, in parts whose rows of `width` numbers have a bounded size."""
    generator = np.random.default_rng(seed)
    part = max(1, min(RESAMPLES, 4_000_000 // (n * width)))
    for start in range(0, RESAMPLES, part):
        yield generator.integers(n, size=(min(part, RESAMPLES - start), n))


def _floats(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError("an interval needs at least one row")
    return array
