"""Optimizer groups, schedules and warm-up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.errors import SettingsError
from tunesmith.settings import build
from tunesmith.train.config import TrainSettings
from tunesmith.train.optim import build_optimizer, build_schedule, check_schedule, warmup_steps


def settings(**values: object) -> TrainSettings:
    return build(TrainSettings, values)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.linear = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 2)
        self.frozen.requires_grad_(False)


def test_weight_decay_is_for_matrices_only() -> None:
    model = Small()
    optimizer = build_optimizer(model, settings(weight_decay=0.1))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.1 for p in g["params"]}
    rest = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert decayed == {id(model.linear.weight)}
    assert rest == {
        id(p) for p in (model.embedding.weight, model.linear.bias, model.norm.weight, model.norm.bias)
    }


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"), [(0.05, 100, 5), (0.05, 101, 6), (0, 50, 0), (10, 50, 10)]
)
def test_warmup_is_a_share_below_one_else_steps(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(warmup, steps) == expected


def rates(name: str, steps: int, **values: object) -> list[float]:
    chosen = settings(schedule=name, learning_rate=1.0, **values)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, chosen, steps)
    seen = []
    for _ in range(steps):
        seen.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return seen


def test_linear_goes_up_and_down_and_no_step_is_wasted() -> None:
    # Points 1 to 6 of a schedule of 7: 1/2, 2/2, then (7 - t) / 5.
    assert rates("linear", 6, warmup=2) == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_a_single_step_learns(steps: int) -> None:
    assert min(rates("cosine", steps, warmup=0.05)) > 0.05


@pytest.mark.parametrize("name", TrainSettings.model_fields["schedule"].annotation.__args__)  # type: ignore[union-attr]
def test_every_schedule_can_be_built(name: str) -> None:
    options = {"cosine_with_min_lr": {"min_lr": 0.1}, "warmup_stable_decay": {"num_decay_steps": 3}}
    warmup = 0 if name == "constant" else 2
    seen = rates(name, 10, warmup=warmup, schedule_options=options.get(name, {}))
    assert max(seen) <= 1.0 + 1e-6
    assert min(seen) > 0
    assert seen[0] < 0.51 or name == "constant"


def test_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(SettingsError, match="whole training has 8"):
        rates("linear", 8, warmup=8)


def test_an_option_that_a_schedule_does_not_take_is_refused() -> None:
    with pytest.raises(SettingsError, match="linear"):
        rates("linear", 8, warmup=0, schedule_options={"num_cycle": 2})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inverse_sqrt", {"timescale": 0}),
        ("polynomial", {"power": -1}),
        ("polynomial", {"lr_end": 1.0}),
    ],
)
@pytest.mark.parametrize("steps", [1, 20, 1_000_000])
def test_a_schedule_that_fails_on_the_way_is_refused_before(
    name: str, options: dict[str, float], steps: int
) -> None:
    with pytest.raises(SettingsError, match=name):
        check_schedule(settings(schedule=name, schedule_options=options, learning_rate=0.1), steps)


@pytest.mark.parametrize("name", TrainSettings.model_fields["schedule"].annotation.__args__)  # type: ignore[union-attr]
def test_a_sound_schedule_passes(name: str) -> None:
    options = {"cosine_with_min_lr": {"min_lr": 1e-5}, "warmup_stable_decay": {"num_decay_steps": 3}}
    warmup = {} if name == "constant" else {"warmup": 2}
    check_schedule(settings(schedule=name, schedule_options=options.get(name, {}), **warmup), 5000)
