"""What is measured between steps: the loss over held-out rows, and answers; the best step so far, and when to
stop early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.model.attention import segment_attention
from tunesmith.train.forward import mixed_precision
from tunesmith.train.objectives import sft
from tunesmith.train.progress import Progress
from tunesmith.train.training import Training


def evaluate(training: Training, at: Progress) -> dict[str, Any] | None:
    """The validation loss after the step that `at` is at, as a line of metrics; None without rows."""
    if not training.valid:
        return None
    with training.stop.at_once():
        total, count = valid_loss(training)
    loss = total / count
    return {
        "step": at.step,
        "epoch": round(at.epoch, 4),
        "valid_loss": loss,
        "valid_perplexity": math.exp(min(loss, 700.0)),
        "valid_label_tokens": count,
    }


def examine(training: Training, at: Progress) -> dict[str, Any] | None:
    """Figures of the model's answers after the step that `at` is at, as a line of metrics; None if not asked.

    `answer_seconds` is what it took, which is no part of a step's speed.
    """
    if training.examine is None:
        return None
    began = time.monotonic()
    found = training.examine(at.step)
    took = time.monotonic() - began
    return {"step": at.step, "epoch": round(at.epoch, 4), **found.line(), "answer_seconds": took}


def judge(training: Training, line: Mapping[str, Any], at: Progress) -> bool:
    """Whether this line makes the step the best so far, which `at` keeps; False if it isn't what chooses.

    What training began with, at step 0, is never kept.
    """
    aim = training.aim
    if at.step == 0 or aim.name not in line:
        return False
    if aim.better(value := line[aim.name], at.best_value):
        at.best_value, at.best_step, at.without_gain = value, at.step, 0
        return True
    at.without_gain += 1
    return False


def patience_ended(training: Training, at: Progress) -> bool:
    """Whether so many evaluations brought no better loss as the job wants to wait."""
    patience = training.settings.early_stopping
    return patience is not None and at.without_gain >= patience


def valid_loss(training: Training) -> tuple[float, int]:
    """Summed loss (nats) and label tokens over the validation rows; no dropout, noise or smoothing."""
    examples, model = training.valid, training.model
    objective, total, count = sft(), 0.0, 0
    was_training = model.training
    model.eval()
    with (
        torch.no_grad(),
        mixed_precision(training.device, model),
        segment_attention(model, training.segments),
    ):
        for indexes in training.valid_plan:
            loss, labels = objective.loss(model, training.batch([examples[i] for i in indexes]))
            total, count = total + float(loss), count + labels
    model.train(was_training)
    return total, count
