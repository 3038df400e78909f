"""Everything that a loop works on, and how its rows are laid into steps and forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch, collate
from tunesmith.data.encode import Example
from tunesmith.data.pack import plan_eval
from tunesmith.device import Device
from tunesmith.journal import Journal
from tunesmith.model.attention import segment_attention
from tunesmith.rundir import RunDir
from tunesmith.train.compiling import Compiled, shaped_by
from tunesmith.train.config import TrainSettings
from tunesmith.train.epochs import Epochs
from tunesmith.train.examine import Aim, Examined
from tunesmith.train.forward import mixed_precision
from tunesmith.train.guards import Guards
from tunesmith.train.listener import Listener
from tunesmith.train.objectives import Objective
from tunesmith.train.signals import Stop
from tunesmith.train.track import Tracking

TOKENS_PER_STEP = (512, 4096)  # the least and the most by default
STEPS_AN_EPOCH = 16  # how many the default aims at where the data is small
# Tokens in one forward pass. On a CPU torch's attention builds a dense mask: its cost grows with the square.
MICROBATCH_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}
SEGMENTS_MICROBATCH_TOKENS = 3072
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
    examine: Callable[[int], Examined] | None = None  # answers after a step, scored by metrics
    aim: Aim = field(default_factory=Aim)
    segments: bool = False  # attention by segments (model/attention.py)
    sharing: bool = False  # of common beginnings, which needs it
    compiled: Compiled = field(default_factory=Compiled)
    learnt: set[int] = field(default_factory=set)  # rows (indexes of records) that a step was made of
    made_from: dict[str, str] = field(default_factory=dict)  # hashes of job, data, …, for checkpoints
    halved: int = 0  # how often memory ran out: forward passes are that many times half as large
    plans: Epochs = field(init=False)
    valid_plan: list[tuple[int, ...]] = field(init=False)
    metrics: Journal = field(init=False)
    samples: Journal = field(init=False)
    stop: Stop = field(init=False)
    guards: Guards = field(init=False)

    def __post_init__(self) -> None:
        self.plan()
        self.metrics, self.samples = Journal(self.run.metrics_file), Journal(self.run.samples_file)
        self.guards = Guards(self.train)
        self.stop = Stop(lambda text: self.listener.note(text))

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
        batch = self.batch(examples)
        with torch.random.fork_rng(), segment_attention(self.model, self.segments), shaped_by(batch):
            self.model.train()
            with mixed_precision(self.device, self.model):
                loss, _ = self.objective.loss(self.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Rows of one forward pass as tensors on the device."""
        made = collate(
            examples,
            packing=self.packing,
            pad_id=self.pad_id,
            sharing=self.sharing,
            multiple=PACK_MULTIPLE if self.segments else 1,
        )
        return made.to(self.device.torch_device)


def plan_epochs(training: Training) -> Epochs:
    """The steps of every epoch, as the settings ask."""
    settings, lengths = training.settings, [len(example.input_ids) for example in training.train]
    rows, at_once = settings.rows_per_step, settings.batch_size
    return Epochs(
        lengths,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        tokens_per_step=None if rows else settings.tokens_per_step or default_tokens_per_step(lengths),
        rows_per_step=rows,
        microbatch_tokens=microbatch_tokens(training),
        microbatch_rows=None if training.packing or not at_once else max(1, at_once >> training.halved),
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
    """The budget of one forward pass: what the job says, else by the kind of device; less, once memory was
    short.
    """
    tokens = training.settings.microbatch_tokens
    if tokens == "auto":
        on_cpu = training.segments and training.device.kind == "cpu"
        tokens = SEGMENTS_MICROBATCH_TOKENS if on_cpu else MICROBATCH_TOKENS[training.device.kind]
    return max(1, tokens >> training.halved)


def loss_of(training: Training, examples: Sequence[Example]) -> tuple[Tensor, Batch]:
    """Summed loss of these rows as one forward pass, and how they were laid out."""
    batch = training.batch(examples)
    return training.objective.loss(training.model, batch)[0], batch
