"""One optimizer step: the gradients of all its microbatches, one division by the label count, clip, step.

guards stand where their name is: a non-finite loss or gradient is met after the last backward pass and
before the optimizer moves anything, and so is a lack of memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.data.pack import Step
from tunesmith.device import peak_memory
from tunesmith.errors import TrainError, lacks_memory
from tunesmith.model.attention import segment_attention
from tunesmith.train.compiling import shaped_by
from tunesmith.train.forward import mixed_precision, needs_autocast
from tunesmith.train.memory import give_back, reserve, versions, watched
from tunesmith.train.neftune import Neftune
from tunesmith.train.optim import build_optimizer, build_schedule
from tunesmith.train.training import Training, microbatch_tokens
from tunesmith.train.worst import losses_by_example


@dataclass
class Parts:
    """What a step moves besides the weights."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    neftune: Neftune
    # Looked up once: that takes as long as a layer's products.
    trained: Sequence[nn.Parameter]
    autocast: bool


@dataclass
class Sums:
    """Over all microbatches of a step: summed loss (nats), and counts."""

    loss: float = 0.0
    tokens: int = 0
    unique_tokens: int = 0
    rows: int = 0
    each: list[tuple[Sequence[int], Tensor]] = field(default_factory=list)  # of label tokens, by pass


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its line of metrics, and the loss of each example per label token."""

    line: dict[str, Any]
    losses: dict[int, float]


def build_parts(training: Training) -> Parts:
    """New ones, as the settings ask, before the first step; the model is set to train."""
    training.model.train()  # parts of it may still be as they were loaded, whatever the whole says
    optimizer = build_optimizer(training.model, training.settings)
    return Parts(
        optimizer,
        build_schedule(optimizer, training.settings, training.steps),
        torch.amp.GradScaler(
            training.device.kind, enabled=training.device.dtype is torch.float16, init_scale=1024
        ),
        Neftune(training.settings.neftune),
        [p for p in training.model.parameters() if p.requires_grad],
        needs_autocast(training.device, training.model),
    )


def take_step(training: Training, step: Step, parts: Parts) -> Taken:
    """One optimizer step. With a non-finite loss or gradient no weight moves.

    Raises, with no weight moved, Stopped where a stop is asked for and there is no time to finish, and
    OutOfMemory. Raises TrainError where memory ran out when some weights were moved.
    """
    begun = time.monotonic()
    if not training.model.training:
        training.model.train()
    # The whole step's label count is known before the first forward pass: each microbatch is divided by it.
    labels = sum(sum(training.train[i].label_mask) for pack in step.microbatches for i in pack)
    sums = _gradients(training, step.microbatches, labels, parts)
    rows = [i for pack in step.microbatches for i in pack]
    trained = parts.trained
    with watched("optimizer", rows):
        parts.scaler.unscale_(parts.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, training.settings.clip or math.inf))
        reserve(parts.optimizer, trained)
    rate = float(parts.schedule.get_last_lr()[0])
    finite = math.isfinite(norm) and math.isfinite(sums.loss)
    if finite:  # not left to a scaler: gradients may be numbers and their norm none
        with watched("optimizer", rows):
            _move(parts, trained)
    parts.scaler.update()
    parts.schedule.step()
    parts.optimizer.zero_grad(set_to_none=True)
    line = {
        "loss": sums.loss / labels,
        "grad_norm": norm,
        "learning_rate": rate,
        "tokens": sums.tokens,
        "unique_tokens": sums.unique_tokens,
        "label_tokens": labels,
        "rows": sums.rows,
        "tokens_per_second": sums.tokens / (time.monotonic() - begun),
        "peak_memory_bytes": peak_memory(training.device.kind),
        **({"microbatch_tokens": microbatch_tokens(training)} if training.halved else {}),
        **({} if finite else {"skipped": True}),
    }
    return Taken(line, _losses(training, sums))


def start_again(training: Training, parts: Parts) -> Parts:
    """Parts as they were before a step that ran out of memory; what it held is given back."""
    training.model.zero_grad(set_to_none=True)
    # A scaler keeps in mind that it unscaled: a new one, with the same factor, doesn't.
    scaler = torch.amp.GradScaler(training.device.kind, enabled=parts.scaler.is_enabled())
    scaler.load_state_dict(parts.scaler.state_dict())
    give_back()
    return replace(parts, scaler=scaler)


def warm_up(training: Training, parts: Parts, passes: Sequence[Sequence[int]]) -> None:
    """Compile what an earlier process compiled, by passes over the same rows; leaves nothing behind."""
    for rows in passes:
        with torch.random.fork_rng():
            training.model.train()
            _gradients(training, [rows], 1, parts)
        training.model.zero_grad(set_to_none=True)


def _gradients(training: Training, microbatches: Sequence[Sequence[int]], labels: int, parts: Parts) -> Sums:
    """Add up the gradients of these forward passes, each divided by `labels`."""
    sums = Sums()
    with segment_attention(training.model, training.segments):
        for rows in microbatches:
            if training.stop.overdue:
                training.stop.end()
            _pass(training, rows, labels, parts, sums)
    return sums


def _pass(training: Training, rows: Sequence[int], labels: int, parts: Parts, sums: Sums) -> None:
    """One forward and backward pass."""
    batch = training.batch([training.train[i] for i in rows])
    parts.neftune.prepare(batch)
    precision = mixed_precision(training.device, training.model, needed=parts.autocast)
    with training.compiled.on(rows), shaped_by(batch):
        with watched("forward", rows), precision:
            loss, _ = training.objective.loss(training.model, batch)
        with watched("backward", rows):
            parts.scaler.scale(loss / labels).backward()  # type: ignore[no-untyped-call]
    if batch.label_losses is not None:
        sums.each.append((rows, batch.label_losses))
    sums.loss += float(loss.detach())
    sums.tokens += batch.tokens
    sums.unique_tokens += batch.unique_tokens
    sums.rows += batch.rows


def _move(parts: Parts, trained: Sequence[Tensor]) -> None:
    """The optimizer's step. A lack of memory in it passes through only if nothing was moved yet."""
    before = versions(parts.optimizer, trained)
    try:
        parts.scaler.step(parts.optimizer)
    except Exception as error:
        if lacks_memory(error) and (before is None or before != versions(parts.optimizer, trained)):
            raise TrainError(
                "Memory ran out in the middle of the optimizer's step: some weights were moved, others not.",
                fix="Go on from the last checkpoint (the same command again), with less in memory beside it.",
            ) from error
        raise


def _losses(training: Training, sums: Sums) -> dict[int, float]:
    found: dict[int, float] = {}
    for rows, each in sums.each:
        labels = [sum(training.train[i].label_mask[1:]) for i in rows]
        found |= losses_by_example(rows, labels, each)
    return found
