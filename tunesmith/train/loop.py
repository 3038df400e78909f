"""The training loop: steps of microbatches, one division by the label count, guards, validation.

for each epoch: plan it (data.pack) from (lengths, seed, epoch) alone
  for each step: gradients of all its microbatches -> clip -> optimizer -> schedule -> a line of metrics
    now and then: validation loss, checkpoint, sample answer
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch, collate
from tunesmith.data.encode import Example
from tunesmith.data.pack import Step, plan_eval
from tunesmith.device import Device, peak_memory
from tunesmith.errors import TrainError
from tunesmith.model.attention import segment_attention
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.compiling import Compiled
from tunesmith.train.config import TrainSettings
from tunesmith.train.epochs import Epochs
from tunesmith.train.forward import mixed_precision
from tunesmith.train.listener import Listener
from tunesmith.train.neftune import Neftune
from tunesmith.train.objectives import Objective, sft
from tunesmith.train.optim import build_optimizer, build_schedule
from tunesmith.train.track import Tracking

NON_FINITE_LIMIT = 3
SCALED_LIMIT = 20  # fp16: the scaler halves its factor at each non-finite step until gradients fit
TOKENS_PER_STEP = (512, 4096)  # the least and the most by default
STEPS_AN_EPOCH = 16  # how many the default aims at where the data is small
# Tokens in one forward pass. On a CPU torch's attention builds a dense mask: its cost grows with the square.
MICROBATCH_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}
SEGMENTS_MICROBATCH_TOKENS = 2048
# Packs of few different lengths: oneDNN makes and keeps code for every shape that it meets, which costs time,
# and memory that grows from step to step.
PACK_MULTIPLE = 64


@dataclass
class Training:
    """Everything a loop works on; `steps` is known before the first one."""

    model: nn.Module
    objective: Objective
    train: Sequence[Example]
    valid: Sequence[Example]
    settings: TrainSettings
    device: Device
    packing: bool
    pad_id: int
    run: RunDir
    listener: Listener
    tracking: Tracking
    sample: Callable[[int], None] = lambda _step: None
    segments: bool = False  # attention by segments (model/attention.py)
    sharing: bool = False  # of common beginnings, which needs it
    compiled: Compiled = field(default_factory=Compiled)
    learnt: set[int] = field(default_factory=set)  # rows (indexes of records) that a step was made of
    plans: Epochs = field(init=False)
    valid_plan: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.plan()

    def plan(self) -> None:
        """Lay out steps and validation by the settings as they are now."""
        self.plans, self.valid_plan = plan_epochs(self), plan_valid(self)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.plans.steps

    @property
    def tokens(self) -> int:
        """Tokens of the whole training, about."""
        return self.plans.tokens

    def trial_pass(self, examples: Sequence[Example] | None = None) -> None:
        """Forward and backward pass of the first microbatch (or of `examples`); leaves nothing behind."""
        examples = examples or [self.train[i] for i in self.plans.first[0].microbatches[0]]
        with torch.random.fork_rng(), segment_attention(self.model, self.segments):
            self.model.train()
            with mixed_precision(self.device, self.model):
                loss, _ = loss_of(self, examples)
            loss.backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)


@dataclass
class Outcome:
    """How a loop ended. `best` is the checkpoint with the lowest validation loss, None without validation."""

    step: int
    best: Path | None
    best_loss: float | None
    best_step: int | None
    stopped_early: bool
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for a listener."""
        return {**asdict(self), "best": str(self.best) if self.best else None}


def plan_epochs(training: Training) -> Epochs:
    """The steps of every epoch, as the settings ask."""
    settings, lengths = training.settings, [len(example.input_ids) for example in training.train]
    rows = settings.rows_per_step
    return Epochs(
        lengths,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        tokens_per_step=None if rows else settings.tokens_per_step or default_tokens_per_step(lengths),
        rows_per_step=rows,
        microbatch_tokens=microbatch_tokens(training),
        microbatch_rows=None if training.packing else settings.batch_size,
        packing=training.packing,
        shared=[example.input_ids for example in training.train] if training.sharing else None,
    )


def plan_valid(training: Training) -> list[tuple[int, ...]]:
    """The forward passes of every evaluation."""
    return plan_eval(
        [len(example.input_ids) for example in training.valid],
        microbatch_tokens=microbatch_tokens(training),
        packing=training.packing,
        shared=[example.input_ids for example in training.valid] if training.sharing else None,
    )


def default_tokens_per_step(lengths: Sequence[int]) -> int:
    """4096, or fewer where an epoch would then have less than 16 steps, but at least 512."""
    least, most = TOKENS_PER_STEP
    return min(most, max(least, sum(lengths) // STEPS_AN_EPOCH))


def microbatch_tokens(training: Training) -> int:
    """The budget of one forward pass: what the job says, else by the kind of device."""
    wanted = training.settings.microbatch_tokens
    if wanted != "auto":
        return wanted
    if training.segments and training.device.kind == "cpu":
        return SEGMENTS_MICROBATCH_TOKENS
    return MICROBATCH_TOKENS[training.device.kind]


def run_loop(training: Training) -> Outcome:
    """Train to the end. Raises TrainError when three steps in a row have a non-finite loss or gradient."""
    settings = training.settings
    optimizer = build_optimizer(training.model, settings)
    schedule = build_schedule(optimizer, settings, training.steps)
    scaler = torch.amp.GradScaler(
        training.device.kind, enabled=training.device.dtype is torch.float16, init_scale=1024
    )
    neftune = Neftune(settings.neftune)
    start = time.monotonic()
    watch = _Watch(training)
    watch.evaluate(0)
    training.sample(0)
    done = bad = 0
    with neftune.on(training.model.get_input_embeddings()):  # type: ignore[operator]
        for epoch, step in training.plans.numbered():
            line = _step(training, step, optimizer, schedule, scaler, neftune)
            if not line.get("skipped"):
                training.learnt.update(training.train[i].row for pack in step.microbatches for i in pack)
            done += 1
            line = {"step": done, "epoch": round(epoch, 4), **line, "seconds": time.monotonic() - start}
            training.run.append(training.run.metrics_file, line)
            training.tracking.log(line)
            training.listener.step(line)
            bad = bad + 1 if line.get("skipped") else 0
            if bad >= (SCALED_LIMIT if scaler.is_enabled() else NON_FINITE_LIMIT):
                raise _non_finite(training, step, done, bad)
            last = done == training.steps
            if last or (settings.eval_every and done % settings.eval_every == 0):
                watch.evaluate(done, epoch)
            if last or watch.stop or (settings.save_every and done % settings.save_every == 0):
                watch.save(done, epoch)
            if last or (settings.sample_every and done % settings.sample_every == 0):
                training.sample(done)
            if watch.stop and not last:
                training.listener.note(
                    f"Stopped early at step {done}: no better loss in {settings.early_stopping} evaluations."
                )
                break
    return Outcome(
        done, watch.best, watch.best_loss, watch.best_step, done < training.steps, time.monotonic() - start
    )


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
            batch = _batch(training, [examples[i] for i in indexes])
            loss, labels = objective.loss(model, batch)
            total, count = total + float(loss), count + labels
    model.train(was_training)
    return total, count


def _step(
    training: Training,
    step: Step,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    neftune: Neftune,
) -> dict[str, Any]:
    """One optimizer step; returns its metrics. With a non-finite loss or gradient no weight moves."""
    begun = time.monotonic()
    model, device = training.model, training.device
    model.train()
    batches = [[training.train[i] for i in indexes] for indexes in step.microbatches]
    # The whole step's label count is known before the first forward pass: each microbatch is divided by it.
    labels = sum(sum(example.label_mask) for batch in batches for example in batch)
    total, tokens, unique, rows = 0.0, 0, 0, 0
    with segment_attention(model, training.segments), training.compiled.on():
        for examples in batches:
            batch = _batch(training, examples)
            neftune.prepare(batch)
            with mixed_precision(device, model):
                loss, _ = training.objective.loss(model, batch)
            scaler.scale(loss / labels).backward()  # type: ignore[no-untyped-call]
            total, tokens, rows = total + float(loss.detach()), tokens + batch.tokens, rows + batch.rows
            unique += batch.unique_tokens
    scaler.unscale_(optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, training.settings.clip or math.inf))
    rate = float(schedule.get_last_lr()[0])
    finite = math.isfinite(norm) and math.isfinite(total)
    if finite or scaler.is_enabled():
        scaler.step(optimizer)
    scaler.update()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - begun
    return {
        "loss": total / labels,
        "grad_norm": norm,
        "learning_rate": rate,
        "tokens": tokens,
        "unique_tokens": unique,
        "label_tokens": labels,
        "rows": rows,
        "tokens_per_second": tokens / seconds,
        "peak_memory_bytes": peak_memory(device.kind),
        **({} if finite else {"skipped": True}),
    }


def loss_of(training: Training, examples: Sequence[Example]) -> tuple[Tensor, Batch]:
    """Summed loss of these rows as one forward pass, and how they were laid out."""
    batch = _batch(training, examples)
    return training.objective.loss(training.model, batch)[0], batch


def _batch(training: Training, examples: Sequence[Example]) -> Batch:
    batch = collate(
        examples,
        packing=training.packing,
        pad_id=training.pad_id,
        sharing=training.sharing,
        multiple=PACK_MULTIPLE if training.segments else 1,
    )
    return batch.to(training.device.torch_device)


class _Watch:
    """Validation, checkpoints, the best one, and when to stop early."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._without_gain = 0
        self.best: Path | None = None
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.stop = False

    def evaluate(self, step: int, epoch: float = 0.0) -> None:
        """Validation loss; a lower one than ever is saved as the best checkpoint."""
        training = self._training
        if not training.valid:
            return
        total, count = valid_loss(training)
        loss = total / count
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "valid_loss": loss,
            "valid_perplexity": math.exp(min(loss, 700.0)),
            "valid_label_tokens": count,
        }
        training.run.append(training.run.metrics_file, line)
        training.tracking.log(line)
        training.listener.evaluated(line)
        if step == 0:
            return  # the base model: nothing to save, but the figure everything is compared with
        # NaN is never the best: nothing would ever be less.
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self._without_gain = loss, step, 0
            self.best = self.save(step, epoch)
        else:
            self._without_gain += 1
            patience = training.settings.early_stopping
            self.stop = patience is not None and self._without_gain >= patience

    def save(self, step: int, epoch: float) -> Path:
        """A checkpoint of this step; older ones beyond `keep` go, the best one stays."""
        training = self._training
        state = {"step": step, "epoch": epoch, "best_loss": self.best_loss, "best_step": self.best_step}
        folder = checkpoint.save(training.run, training.model, state)
        best = folder if self.best_step == step else self.best
        checkpoint.prune(training.run, keep=training.settings.keep, best=best)
        return folder


def _non_finite(training: Training, step: Step, number: int, in_a_row: int) -> TrainError:
    origins = sorted({str(training.train[i].origin) for batch in step.microbatches for i in batch})
    return TrainError(
        f"The loss or the gradient isn't finite, {in_a_row} steps in a row (up to step {number}); "
        "the weights are those before the first of them.",
        details=[f"row of the last step: {origin}" for origin in origins],
        fix="Lower train.learning_rate, use dtype=fp32, or look at these rows.",
    )
