"""Optimizer and learning-rate schedule, by name, from torch and transformers."""

from __future__ import annotations

import math
import warnings
from typing import cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from tunesmith.errors import SettingsError
from tunesmith.train.config import TrainSettings

CHECKED = 1000  # steps of a schedule at either end


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over what is trainable; weight decay on matrices only, not on biases, norms and embeddings."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def warmup_steps(warmup: float, steps: int) -> int:
    """A value below 1 is a share of all steps (rounded up), anything else a number of steps."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def build_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> LRScheduler:
    """The schedule of that name over `steps` steps. Raises SettingsError for options that it doesn't take."""
    warmup = warmup_steps(settings.warmup, steps)
    if warmup >= steps and settings.warmup >= 1:
        raise SettingsError(
            f"train.warmup is {warmup} steps, but the whole training has {steps}.",
            fix="Use a ratio such as 0.05, fewer warm-up steps, or train longer.",
        )
    try:
        schedule = get_scheduler(
            settings.schedule,
            optimizer,
            num_warmup_steps=warmup,
            # At its first and last point a schedule may be zero, and a step there would change nothing:
            # ours are the points 1 to N of 0 to N + 1.
            num_training_steps=steps + 1,
            scheduler_specific_kwargs=dict(settings.schedule_options) or None,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingsError(
            f"train.schedule {settings.schedule} can't be built: {error}.",
            fix="Check train.schedule_options against transformers' schedule of that name.",
        ) from None
    return cast(LRScheduler, schedule)


def check_schedule(settings: TrainSettings, steps: int) -> None:
    """Raise SettingsError for what can't be built, or gives no rate on the way, before anything is written.

    Of a long training the first and the last thousand steps are looked at.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule = build_schedule(optimizer, settings, steps)
    rates = schedule.lr_lambdas if isinstance(schedule, LambdaLR) else []
    ends = {*range(1, min(steps + 1, CHECKED) + 1), *range(max(1, steps + 2 - CHECKED), steps + 2)}
    for step in sorted(ends):
        try:
            shares = [rate(step) for rate in rates]
            if not all(0 <= share < math.inf for share in shares):
                raise ValueError(f"it would be {shares[0]:g} times train.learning_rate")
        except (TypeError, ValueError, ArithmeticError) as error:
            raise SettingsError(
                f"train.schedule {settings.schedule} gives no rate for step {step} of {steps}: {error}.",
                fix="Check train.schedule_options against transformers' schedule of that name.",
            ) from None
