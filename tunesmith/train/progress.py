"""Where a training is, and how it is put back there.

`Progress` is what isn't a tensor. Its marks and generator states are those after the last thing that was done
whole, so that a step or an evaluation that was given up is done again from its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from tunesmith.errors import RunError
from tunesmith.journal import Mark
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import LOOP, OPTIMIZER, WEIGHTS, Contents
from tunesmith.train.generators import Generators
from tunesmith.train.guards import PREFIX
from tunesmith.train.optim import put_states, seek, states
from tunesmith.train.state_tree import flatten, unflatten
from tunesmith.train.step import Parts
from tunesmith.train.training import Training

LEARNT = "learnt"  # in loop.safetensors, beside the generators: a bit for each row


class Cursor(NamedTuple):
    """A place in the data: steps done of an epoch. With the job's seed it says which rows come next."""

    epoch: int = 0
    steps: int = 0


@dataclass
class Progress:
    """After how many steps, and what of the last one is done."""

    step: int = 0
    epoch: float = 0.0  # epochs done, as metrics tell it
    cursor: Cursor = field(default_factory=Cursor)
    seconds: float = 0.0
    bad: int = 0  # steps in a row that weren't finite
    evaluated: bool = False
    sampled: bool = False
    best_loss: float | None = None
    best_step: int | None = None
    without_gain: int = 0  # evaluations since the best one
    metrics: Mark | None = None
    samples: Mark | None = None
    generators: Generators = field(default_factory=Generators.now)

    def done(self, training: Training) -> None:
        """Something was done whole: from here on it needn't be done again."""
        self.metrics, self.samples = training.metrics.mark(), training.samples.mark()
        self.generators = Generators.now()

    def ended(self, step: int, epoch: float, cursor: Cursor, seconds: float, *, finite: bool) -> None:
        """A step was taken; what belongs after it is still to be done."""
        self.step, self.epoch, self.cursor, self.seconds = step, epoch, cursor, seconds
        self.bad = 0 if finite else self.bad + 1
        self.evaluated = self.sampled = False


_PLAIN = (
    "step", "epoch", "seconds", "bad", "evaluated", "sampled", "best_loss", "best_step", "without_gain",
    "metrics", "samples",
)  # fmt: skip


def capture(training: Training, parts: Parts, at: Progress, *, copied: bool) -> Contents:
    """What a checkpoint holds now; `copied`: in memory of its own, so that training may go on meanwhile."""
    optimizer, moments = flatten(states(parts.optimizer))
    rows = np.zeros(max(training.learnt, default=-1) + 1, dtype=np.uint8)
    rows[[*training.learnt]] = 1
    losses, costs = training.guards.state()
    state = {
        **{name: getattr(at, name) for name in _PLAIN},
        "cursor": {**at.cursor._asdict(), "seed": training.settings.seed},
        "microbatch_tokens": training.settings.microbatch_tokens,
        "halved": training.halved,
        "losses": losses,
        "optimizer": {"name": training.settings.optimizer, "states": optimizer},
        "scaler": parts.scaler.state_dict(),
        "generators": at.generators.numbers,
        "compiled": [*training.compiled.seen],
        "trackers": training.tracking.ids,
    }
    loop = {**at.generators.tensors, **costs, LEARNT: torch.from_numpy(np.packbits(rows))}
    tensors = {WEIGHTS: checkpoint.trained_weights(training.model), OPTIMIZER: moments, LOOP: loop}
    return Contents(state, {name: checkpoint.on_cpu(part, copied=copied) for name, part in tensors.items()})


def restore(training: Training, parts: Parts, contents: Contents) -> Progress:
    """Put everything back in place but the generators, which come last (`Generators.put_back`).

    Raises RunError where the checkpoint's tensors aren't this job's.
    """
    state, tensors = contents.state, contents.tensors
    name = str(checkpoint.folder_of(training.run, contents.step))
    checkpoint.put_weights(training.model, tensors[WEIGHTS], name)
    # Copies: what is read lies in the file, at addresses of the file's making.
    moments = {key: tensor.clone() for key, tensor in tensors[OPTIMIZER].items()}
    if (kept := state["optimizer"]["name"]) != training.settings.optimizer:
        raise RunError(
            f"{name} holds the states of {kept}, which {training.settings.optimizer} can't take.",
            fix=f"Go on with train.optimizer={kept}.",
        )
    _put_moments(parts, unflatten(state["optimizer"]["states"], moments), name)
    seek(parts.schedule, contents.step)
    parts.scaler.load_state_dict(state["scaler"])
    training.learnt = set(np.flatnonzero(np.unpackbits(tensors[LOOP][LEARNT].numpy())).tolist())
    training.compiled.seen = [[*rows] for rows in state["compiled"]]
    training.guards.restore(state["losses"], tensors[LOOP])
    # Another size is a forced one: it means what it says.
    if training.settings.microbatch_tokens == state["microbatch_tokens"] and state["halved"]:
        training.halved = state["halved"]
        training.plan()
    cursor = Cursor(state["cursor"]["epoch"], state["cursor"]["steps"])
    drawn = {k: t for k, t in tensors[LOOP].items() if k != LEARNT and not k.startswith(PREFIX)}
    generators = Generators(drawn, state["generators"])
    return Progress(**{key: state[key] for key in _PLAIN}, cursor=cursor, generators=generators)


def _put_moments(parts: Parts, saved: Any, name: str) -> None:
    """The optimizer's states; what it made of them must be what was saved, to the last bit."""
    put_states(parts.optimizer, saved)
    (wanted, before), (found, after) = flatten(saved), flatten(states(parts.optimizer))
    differing = checkpoint.differing(before, after)
    if wanted != found or differing:
        raise RunError(
            f"The optimizer took the states in {name} otherwise than they were saved.",
            details=differing,
            fix="Go on with the versions of torch and bitsandbytes that the run began with (job.yaml).",
        )
