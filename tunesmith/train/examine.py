"""What a training asks of whoever scores answers while it runs; the evaluate stage gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedModel

from tunesmith.data.check import Dataset
from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.train.config import VALID_LOSS, Job


@dataclass(frozen=True)
class Aim:
    """The figure that says which step is the best: its name in metrics.jsonl, and whether more is better."""

    name: str = VALID_LOSS
    higher: bool = False

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is the best so far. NaN never is: nothing would ever be better."""
        if not math.isfinite(value) or than is None:
            return math.isfinite(value)
        return value > than if self.higher else value < than

    def to_json(self) -> dict[str, str]:
        """For the run's record, where `runs show` and the report find it."""
        return {"by": self.name, "better": "higher" if self.higher else "lower"}


@dataclass(frozen=True)
class Answered:
    """An answer and its scores by metric."""

    prompt: str
    answer: str
    reference: str | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Examined:
    """Figures of all answers by metric, how many there were, and how many of them empty."""

    figures: Mapping[str, float]
    answers: list[Answered] = field(default_factory=list)
    empty: int = 0

    def line(self) -> dict[str, Any]:
        """As metrics.jsonl has it, beside the step; `metrics` says which of its names are metrics."""
        return {
            **self.figures,
            "metrics": list(self.figures),
            "n": len(self.answers),
            **({"empty": self.empty} if self.empty else {}),
        }


class Examination(Protocol):
    """Held-out rows, and the metrics that answers to them are scored by."""

    @property
    def files(self) -> Mapping[str, str]:
        """sha256 of each file that was read for it."""
        ...

    @property
    def aim(self) -> Aim:
        """What chooses the best step."""
        ...

    def examine(self, model: PreTrainedModel, renderer: Renderer, device: Device) -> Examined:
        """Let the model answer. Draws from no generator of the training, and leaves nothing in the model."""
        ...


Examiner = Callable[[Job, Dataset | None], Examination]
"""(job, validation rows) -> its examination. Raises what makes it impossible, before anything is loaded."""
