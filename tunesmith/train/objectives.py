"""What is minimised. Another objective is another function, not another loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.train.forward import label_logits, label_states
from tunesmith.train.head import head_loss, head_of
from tunesmith.train.losses import label_losses


@dataclass(frozen=True)
class Objective:
    """`loss(model, batch)` returns (sum, count); a step minimises all its sums divided by all its counts.

    It leaves each label token's own loss in `batch.label_losses`.
    """

    name: str
    loss: Callable[[nn.Module, Batch], tuple[Tensor, int]]


def sft(label_smoothing: float = 0.0, *, fused: bool = False) -> Objective:
    """Supervised fine-tuning: next-token cross-entropy on the label tokens of each row.

    `fused` compiles the loss over a chunk of logits; it changes no result.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        if (parts := head_of(model)) is not None:
            decoder, head = parts
            states = label_states(model, decoder, batch)
            total, each = head_loss(states, batch.targets, head, label_smoothing, fused=fused)
        else:
            total, each = label_losses(label_logits(model, batch), batch.targets, label_smoothing)
        batch.label_losses = each
        return total, len(batch.targets)

    return Objective("sft", loss)
