"""Spikes: found where they are, and nowhere else."""

from __future__ import annotations

import math
import random

import pytest

from tunesmith.train.spikes import Spikes


def curve(steps: int, noise: float, seed: int) -> list[float]:
    """A loss as trainings have it: falling fast, then slowly, with noise."""
    chance = random.Random(seed)
    return [2.5 + 1.5 * math.exp(-step / 20) + chance.gauss(0, noise) for step in range(steps)]


def test_z_by_hand() -> None:
    spikes = Spikes()
    for loss in [1.0, 3.0] * 25:  # mean 2, standard deviation 1
        assert spikes.see(loss) is None
    assert spikes.see(8.0) is None  # z = 6: the limit itself is no spike
    spikes = Spikes([1.0, 3.0] * 25)
    assert spikes.see(8.01) == pytest.approx(6.01)


def test_a_jump_is_found_at_any_time_after_the_first_steps() -> None:
    losses = curve(400, 0.1, seed=1)
    for at in (20, 60, 399):
        spikes = Spikes()
        found = [i for i, x in enumerate(losses) if spikes.see(x + (at == i) * 4.0) is not None]
        assert found == [at]
    spikes = Spikes()
    assert [spikes.see(9.0 if i == 19 else 2.5) for i in range(20)] == [None] * 20, "too few to tell"


def test_ordinary_training_has_none() -> None:
    for seed in range(80):
        spikes = Spikes()
        assert [i for i, x in enumerate(curve(300, 0.15, seed)) if spikes.see(x) is not None] == []


def test_a_loss_that_hardly_moves_has_none_of_nothing() -> None:
    spikes = Spikes([0.0] * 50)
    assert spikes.see(0.059) is None
    assert spikes.see(0.2) is not None


def test_it_goes_on_from_what_is_kept() -> None:
    losses = curve(200, 0.1, seed=3)
    losses[150] = 9.0
    whole, first = Spikes(), Spikes()
    expected = [whole.see(x) for x in losses]
    for cut in (0, 7, 149, 150, 151):
        first = Spikes()
        before = [first.see(x) for x in losses[:cut]]
        second = Spikes(first.losses)
        assert before + [second.see(x) for x in losses[cut:]] == expected


def test_what_is_not_finite_is_left_out() -> None:
    spikes = Spikes([1.0, 3.0] * 25)
    assert spikes.see(math.nan) is spikes.see(math.inf) is None
    assert spikes.losses == [1.0, 3.0] * 25
    assert spikes.see(8.5) is not None
