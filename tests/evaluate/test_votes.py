"""Votes against scipy's binomial, published agreement figures, and simulated tests with a known truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith.evaluate.votes import (
    Duel,
    cohen_kappa,
    krippendorff_alpha,
    power,
    votes_needed,
    wins_needed,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "votes.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["sign_test"])
def test_the_sign_test_is_scipys_and_leaves_ties_out(case: dict) -> None:
    for ties in (0, 7):
        duel = Duel(case["wins"], case["losses"], ties)
        assert duel.p_value == pytest.approx(case["p"], abs=1e-12)
        assert duel.share is not None
        assert duel.share.value == case["wins"] / (case["wins"] + case["losses"])


@pytest.mark.parametrize("case", GOLDEN["wins_needed"])
def test_wins_needed_are_scipys(case: dict) -> None:
    assert wins_needed(case["n"]) == case["wins"]


def test_wins_needed_are_those_people_know() -> None:
    assert [wins_needed(n) for n in (20, 30, 50, 100)] == [15, 21, 33, 61]


@pytest.mark.parametrize("case", GOLDEN["power"])
def test_power_is_scipys(case: dict) -> None:
    assert power(case["share"], case["n"]) == pytest.approx(case["power"], abs=1e-9)


@pytest.mark.parametrize("share", [0.55, 0.6, 0.65, 0.7, 0.75, 0.8])
def test_the_promised_size_has_the_promised_power(share: float) -> None:
    votes = votes_needed(share)
    generator = np.random.default_rng(7)
    wins, times = np.unique(generator.binomial(votes, share, size=2_000), return_counts=True)
    told = [Duel(int(w), votes - int(w), 0).preferred == "b" for w in wins]
    seen = np.average(told, weights=times)
    assert seen == pytest.approx(0.8, abs=0.05)


def test_a_size_beyond_the_search_has_it_too() -> None:
    votes = votes_needed(0.53)
    assert votes > 1_000
    assert power(0.53, votes) == pytest.approx(0.8, abs=0.02)


def test_equal_sides_are_seldom_called_different() -> None:
    generator = np.random.default_rng(11)
    called = 0
    for _ in range(200):
        wins, losses, ties = generator.multinomial(50, [0.4, 0.4, 0.2])
        called += Duel(int(wins), int(losses), int(ties)).preferred is not None
    assert called <= 14


def test_verdicts_in_words() -> None:
    assert Duel(33, 17, 4).verdict == "B is preferred"
    assert Duel(17, 33, 4).verdict == "A is preferred"
    # 32 of 50 misses by one: 0.64 shows with 101 votes at a chance of 80 %; a fifth of the items are ties.
    assert votes_needed(0.64) == 101
    assert Duel(32, 18, 13).verdict == "cannot tell with n = 63; about 130 are needed"
    assert Duel(25, 25, 0).verdict == "cannot tell with n = 50"
    assert Duel(251, 249, 0).verdict == "cannot tell with n = 500"  # millions: no figure worth saying
    assert Duel(5, 0, 30).verdict == "cannot tell with n = 35; at least 6 that aren't ties are needed"
    assert Duel(0, 0, 4).share is None
    assert Duel(0, 0, 4).p_value is None


# Krippendorff 2011, section C: four observers, twelve units, None where one gave no value.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def units(observers: list[list]) -> list[list]:
    return [[value for value in unit if value is not None] for unit in zip(*observers, strict=True)]


def test_alpha_is_the_published_one() -> None:
    assert krippendorff_alpha(units(OBSERVERS)) == pytest.approx(0.743, abs=5e-4)
    # Section A of the same paper: two observers, ten binary units.
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(units([meg, owen])) == pytest.approx(0.095, abs=5e-4)


def test_kappa_is_the_published_one() -> None:
    # 50 grant proposals, two readers: both yes 20, both no 15, only the first 5, only the second 10.
    table = {("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}
    assert cohen_kappa([pair for pair, count in table.items() for _ in range(count)]) == pytest.approx(0.4)


def test_agreement_that_cant_be_told_is_none() -> None:
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert cohen_kappa([]) is None
    assert cohen_kappa([("a", "a")] * 3) is None


def test_raters_who_throw_dice_agree_as_chance_does() -> None:
    thrown = np.random.default_rng(5).integers(3, size=(2_000, 3)).tolist()
    assert krippendorff_alpha(thrown) == pytest.approx(0, abs=0.05)
    assert krippendorff_alpha([[a, a, a] for a, _, _ in thrown]) == 1
