"""What each example cost when it was last trained on, and the worst of them: rows that people should look at.

The figure is the loss per label token in the forward pass of the step itself, before its update, with the
dropout and noise of training: it costs nothing to have. Each epoch replaces it, so that it tells what the
model makes of a row now, not what it made of it at the beginning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.encode import Example
from tunesmith.disk import write_atomic

KEPT = 20


@dataclass(frozen=True)
class Cost:
    """The loss of an example, in nats per label token, at a step whose own loss was `step_loss`."""

    example: int
    loss: float
    step: int
    step_loss: float


class Costs:
    """The last loss of every example, by its index."""

    def __init__(self, examples: int) -> None:
        self._losses = torch.zeros(examples)
        self._step_losses = torch.zeros(examples)
        self._steps = torch.zeros(examples, dtype=torch.int32)  # 0: not trained on yet

    def see(self, step: int, step_loss: float, losses: Mapping[int, float]) -> None:
        """Take the losses per label token of a step, by example."""
        rows = torch.tensor(list(losses), dtype=torch.int64)
        self._losses[rows] = torch.tensor(list(losses.values()), dtype=torch.float32)
        self._step_losses[rows] = step_loss
        self._steps[rows] = step

    def worst(self, count: int = KEPT) -> list[Cost]:
        """Those with the highest loss, the worst first; what isn't a number is worse than any number."""
        rank = torch.where(self._losses.isnan(), math.inf, self._losses)
        rank = torch.where(self._steps > 0, rank, -math.inf)
        order = torch.argsort(rank, descending=True, stable=True)[:count].tolist()
        return [self._cost(i) for i in order if self._steps[i] > 0]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"losses": self._losses, "step_losses": self._step_losses, "steps": self._steps}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what a checkpoint kept; other examples than then begin anew."""
        if tensors["steps"].shape == self._steps.shape:
            self._losses.copy_(tensors["losses"])
            self._step_losses.copy_(tensors["step_losses"])
            self._steps.copy_(tensors["steps"])

    def _cost(self, i: int) -> Cost:
        return Cost(i, float(self._losses[i]), int(self._steps[i]), float(self._step_losses[i]))


def losses_by_example(indexes: Sequence[int], labels: Sequence[int], each: Tensor) -> dict[int, float]:
    """Loss per label token of a pass's examples, which have so many `labels`; `each` is in their order."""
    rows = torch.repeat_interleave(torch.tensor(labels))
    sums = torch.zeros(len(labels), dtype=torch.float64).index_add_(0, rows, each.to("cpu", torch.float64))
    return {
        index: total / count
        for index, total, count in zip(indexes, sums.tolist(), labels, strict=True)
        if count
    }


def write_worst(
    file: Path, costs: Sequence[Cost], examples: Sequence[Example], text: Callable[[Example], str]
) -> None:
    """Write the worst as JSONL: loss, where the row stands, when it was measured, how its text begins."""
    lines = [_line(cost, examples[cost.example], text(examples[cost.example])) for cost in costs]
    write_atomic(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _line(cost: Cost, example: Example, text: str) -> dict[str, Any]:
    return {
        "loss": cost.loss,
        "origin": str(example.origin),
        "path": example.origin.path,
        "line": example.origin.line,
        "row": example.origin.row,
        "label_tokens": sum(example.label_mask[1:]),
        "step": cost.step,
        "step_loss": cost.step_loss,
        "text": text,
    }
