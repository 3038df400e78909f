"""The steps of a whole training, an epoch planned when its turn comes: a long training starts at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice

from tunesmith.data.pack import Step, epoch_rows, plan_epoch


@dataclass(frozen=True)
class Epochs:
    """The plans of all epochs, cut to `epochs` (a fraction cuts the last one) or to `max_steps`.

    The other fields are the arguments of data.pack.plan_epoch.
    """

    lengths: Sequence[int]
    epochs: float
    max_steps: int | None
    seed: int
    tokens_per_step: int | None
    rows_per_step: int | None
    microbatch_tokens: int
    microbatch_rows: int | None
    packing: bool
    shared: Sequence[Sequence[int]] | None

    def __iter__(self) -> Iterator[list[Step]]:
        left = self.steps
        for plan in self._whole():
            yield plan[:left]
            left -= len(plan)
            if left <= 0:
                return

    def numbered(
        self, cursor: tuple[int, int] = (0, 0), done: int = 0
    ) -> Iterator[tuple[float, tuple[int, int], Step]]:
        """(epochs done after this step, cursor after it, step), in order, to the end of the training.

        A cursor is (epoch, steps done of it); from there on, of a training with `done` steps done, nothing
        before it is planned.
        """
        first, skipped = cursor
        steps = (
            (epoch + number / len(plan), (epoch, number), step)
            for epoch, plan in zip(count(first), self._whole(first), strict=False)
            for number, step in enumerate(plan, 1)
            if epoch > first or number > skipped
        )
        return islice(steps, max(0, self.steps - done))

    @cached_property
    def first(self) -> list[Step]:
        """The first epoch, whole."""
        return self._plan(0)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        if self.max_steps is not None:
            return self.max_steps
        whole = int(self.epochs)
        steps = sum(self._steps_of(epoch) for epoch in range(whole))
        if part := self.epochs - whole:
            # Rounded first: 1.1 - 1 is a little more than 0.1, which would be a step too many.
            steps += math.ceil(round(self._steps_of(whole) * part, 6))
        return max(1, steps)

    @cached_property
    def tokens(self) -> int:
        """Tokens of the whole training: an estimate where the last epoch is cut."""
        epochs = self.epochs if self.max_steps is None else self.max_steps / self._steps_of(0)
        return round(sum(self.lengths) * epochs)

    def _whole(self, first: int = 0) -> Iterator[list[Step]]:
        """Epoch after epoch, none of them cut, without end."""
        if first == 0:
            yield self.first
        yield from map(self._plan, count(max(1, first)))

    def _plan(self, epoch: int) -> list[Step]:
        return plan_epoch(
            self.lengths,
            epoch=epoch,
            seed=self.seed,
            tokens_per_step=self.tokens_per_step,
            rows_per_step=self.rows_per_step,
            microbatch_tokens=self.microbatch_tokens,
            microbatch_rows=self.microbatch_rows,
            packing=self.packing,
            shared=self.shared,
        )

    def _steps_of(self, epoch: int) -> int:
        if self.rows_per_step is not None:
            return math.ceil(len(self.lengths) / self.rows_per_step)
        budgets = {"tokens_per_step": self.tokens_per_step, "rows_per_step": None}
        return len(epoch_rows(self.lengths, epoch=epoch, seed=self.seed, **budgets))
