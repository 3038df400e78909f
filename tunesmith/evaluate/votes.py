"""What votes between two sides say: the exact sign test, how many votes it takes, and how far raters agree.

A vote for a side is a throw of a coin that is fair if neither is better; a tie says nothing about who is and
is left out, which is the sign test (Dixon & Mood 1946). Its p is that of McNemar's exact test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.evaluate.statistics import FEWEST, LEVEL, NORMAL, Interval, mcnemar, wilson
from tunesmith.evaluate.wins import wins_needed

POWER = 0.8
EXACT_SEARCH = 1_000  # votes up to which the size is searched; beyond, the normal approximation is as good


@dataclass(frozen=True, slots=True)
class Duel:
    """B against A: on how many items B was preferred, on how many A, and on how many neither."""

    wins: int
    losses: int
    ties: int

    @property
    def n(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def p_value(self) -> float | None:
        """Two-sided p of the exact sign test; None where every item is a tie."""
        return mcnemar(self.wins, self.losses) if self.decided else None

    @property
    def share(self) -> Interval | None:
        """B's share of the decided items with Wilson's interval."""
        if not self.decided:
            return None
        return Interval(self.wins / self.decided, *wilson(self.wins, self.decided))

    @property
    def preferred(self) -> str | None:
        """ "a" or "b" where p < 0.05, else None."""
        if self.p_value is None or self.p_value >= 1 - LEVEL:
            return None
        return "b" if self.wins > self.losses else "a"

    @property
    def needed(self) -> int | None:
        """Items with which so large a share shows four times in five; None where no number is worth it."""
        if self.preferred is not None or self.decided < FEWEST or self.wins == self.losses:
            return None
        votes = votes_needed(max(self.wins, self.losses) / self.decided)
        items = math.ceil(votes * self.n / self.decided)
        digits = len(str(items)) - 2  # two figures are more than such a guess holds
        rounded = math.ceil(items / 10**digits) * 10**digits if digits > 0 else items
        return rounded if self.n < rounded <= 100 * self.n else None

    @property
    def verdict(self) -> str:
        """ "B is preferred", "A is preferred", or "cannot tell with n = 24; about 90 are needed"."""
        if self.preferred is not None:
            return f"{self.preferred.upper()} is preferred"
        if self.decided < FEWEST:
            more = f"at least {FEWEST} that aren't ties are needed"
            return f"cannot tell with n = {self.n}; {more}"
        return f"cannot tell with n = {self.n}" + (f"; about {self.needed} are needed" if self.needed else "")

    def to_json(self) -> dict[str, Any]:
        """The numbers of a result, with how many wins there would have to be."""
        return {
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "decided": self.decided,
            "share": self.share.to_json() if self.share else None,
            "p_value": self.p_value,
            "wins_needed": wins_needed(self.decided) if self.decided else None,
            "needed": self.needed,
            "preferred": self.preferred,
            "verdict": self.verdict,
        }


def votes_needed(share: float) -> int:
    """Decided votes with which a true share of wins gives p < 0.05 for the right side with a chance of 80 %.

    The exact binomial power, searched upwards from the normal approximation
    ((z_0.975 / 2 + z_0.8 sqrt(s (1 - s))) / (s - 1/2))^2. Raises ValueError for a share of one half or less.
    """
    if not 0.5 < share <= 1:
        raise ValueError(f"a share above one half is needed, not {share}")
    z_test, z_power = NORMAL.inv_cdf((1 + LEVEL) / 2), NORMAL.inv_cdf(POWER)
    guess = ((z_test / 2 + z_power * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2
    if guess > EXACT_SEARCH:
        return math.ceil(guess)
    votes = max(FEWEST, math.floor(0.8 * guess))
    while power(share, votes) < POWER:
        votes += 1
    return votes


def power(share: float, votes: int) -> float:
    """The chance that so many decided votes give p < 0.05 for the side whose true share of them this is."""
    needed = wins_needed(votes)
    if needed is None:
        return 0.0
    if share == 1:
        return 1.0
    wins = np.arange(needed, votes + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, votes + 1)))])
    log_ways = log_factorial[votes] - log_factorial[wins] - log_factorial[votes - wins]
    return float(np.exp(log_ways + wins * math.log(share) + (votes - wins) * math.log(1 - share)).sum())


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for names (nominal values): 1 full agreement, 0 what chance would give.

    `units` holds the values that each item was given, by however many raters. With o the coincidences, each
    pair of an item with m values weighing 1 / (m - 1), and n_c how often c was paired:
    alpha = 1 - (n - 1) sum_(c != k) o_ck / sum_(c != k) n_c n_k. None where nothing was rated twice, or all
    values are one. Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = Counter()
    differing = 0.0
    for count in counts:
        m = count.total()
        totals.update(count)
        differing += (m * m - sum(k * k for k in count.values())) / (m - 1)
    n = totals.total()
    expected = n * n - sum(k * k for k in totals.values())
    return 1 - (n - 1) * differing / expected if expected else None


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa of two raters: (p_o - p_e) / (1 - p_e), p_e from each one's own shares (Cohen 1960).

    `pairs` holds both raters' values of each item that both rated. None without items, or where both gave one
    and the same value throughout.
    """
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(first[value] * second[value] for value in first)
    agreed = sum(a == b for a, b in pairs)
    return (agreed * n - by_chance) / (n * n - by_chance) if n * n != by_chance else None
