"""Answers by our own batches (batching.py) over our own cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.infer.answer import contains, decode
from tunesmith.infer.backend import Asked, Tokens
from tunesmith.infer.batching import Batch, Row
from tunesmith.infer.choosing import Choice, Chooser
from tunesmith.infer.config import Sampling
from tunesmith.infer.decoding import Decoder
from tunesmith.infer.turns import TURN, evaluating


class BatchBackend:
    """A backend (backend.py). `choice` makes what a row is chosen by."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        end_ids: Collection[int],
        choice: Callable[[Asked], Choice],
    ) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.end_ids, self.choice = end_ids, choice
        self.stop = sampling.stop or ()
        # A token writes a byte at least, so these hold any stop text; a few more for characters cut in two.
        self.window = max((len(text.encode()) for text in self.stop), default=0) + 4

    def answers(self, asked: Sequence[Asked], width: int, done: Container[int]) -> Iterator[Sequence[Tokens]]:
        rows = [self._row(one, wanted=one.index not in done) for one in asked]
        of = {id(row): one for row, one in zip(rows, asked, strict=True)}
        for over in self._steps(self._batch(rows, width)):
            if over:
                yield [Tokens(of[id(row)], row.choice.new, row.seconds, row.choice.scores) for row in over]

    def stream(self, asked: Asked) -> Iterator[int]:
        row = self._row(asked)
        given = 0
        for _ in self._steps(self._batch([row], 1)):
            yield from row.choice.new[given:]
            given = len(row.choice.new)

    def _row(self, asked: Asked, *, wanted: bool = True) -> Row:
        return Row(asked.ids, asked.limit, self.choice(asked), asked.adapter, wanted)

    def _batch(self, rows: Sequence[Row], width: int) -> Batch:
        with self._turn():
            return Batch(
                lambda tokens: Decoder(self.model, tokens), rows, width, Chooser(self.sampling), self._ended
            )

    def _steps(self, batch: Batch) -> Iterator[list[Row]]:
        while batch.going:
            # Between its steps others may have their turn, and the reader of a stream may take its time.
            with self._turn():
                over = batch.step()
            yield over

    def _ended(self, row: Row) -> bool:
        new = row.choice.new
        return new[-1] in self.end_ids or (
            bool(self.stop) and contains(decode(self.tokenizer, new[-self.window :]), self.stop)
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with TURN, evaluating(self.model):
            yield
