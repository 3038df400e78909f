"""Validation: the loss over held-out rows, the best one so far, and when to stop early."""

from __future__ import annotations

import math
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


def judge(loss: float, at: Progress) -> bool:
    """Whether this is the best so far, which `at` keeps. The base's own loss, at step 0, is never kept."""
    if at.step == 0:
        return False
    # NaN is never the best: nothing would ever be less.
    if math.isfinite(loss) and (at.best_loss is None or loss < at.best_loss):
        at.best_loss, at.best_step, at.without_gain = loss, at.step, 0
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
