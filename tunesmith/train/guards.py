"""What is looked for in every step beside the step itself: spikes of the loss, what each example cost.

Both go on from a checkpoint as if nothing had been: their states are part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tunesmith.data.encode import Example
from tunesmith.rundir import RunDir
from tunesmith.train.ending import told_in_log
from tunesmith.train.spikes import Spikes
from tunesmith.train.worst import Costs, write_worst

PREFIX = "costs."  # of the tensors in a checkpoint
NAMED = 3  # rows of a step with a spike


class Guards:
    """Over one training's examples; `text` says what stands in the row of one."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.text: Callable[[Example], str] = lambda _: ""
        self._examples = examples
        self._spikes, self._costs = Spikes(), Costs(len(examples))

    def see(self, step: int, loss: float, losses: Mapping[int, float]) -> dict[str, Any]:
        """Take a step's loss and those of its examples; returns what its line of metrics says of a spike."""
        self._costs.see(step, loss, losses)
        z = self._spikes.see(loss)
        return {} if z is None else {"spike": round(z, 2), "spike_rows": self.named(losses, NAMED)}

    def named(self, losses: Mapping[int, float], count: int) -> list[str]:
        """Where the examples with the highest losses stand; those that aren't numbers are the highest."""
        order = sorted(losses, key=lambda i: -losses[i] if math.isfinite(losses[i]) else -math.inf)
        return [f"{self._examples[i].origin} (loss {losses[i]:.3g})" for i in order[:count]]

    def write(self, run: RunDir) -> None:
        """Write the worst examples of now into the run's folder; where that fails, the log says so."""
        if worst := self._costs.worst():
            with told_in_log():
                write_worst(run.worst_file, worst, self._examples, self.text)

    def state(self) -> tuple[list[float], dict[str, Tensor]]:
        """What a checkpoint keeps, as JSON and as tensors."""
        return self._spikes.losses, {PREFIX + name: tensor for name, tensor in self._costs.tensors().items()}

    def restore(self, losses: Sequence[float], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        self._spikes = Spikes(losses)
        self._costs.restore(
            {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
        )
