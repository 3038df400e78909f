"""How the rows of one model are computed: in a batch that others join, or one after the other.

batch    a LiveBatch over a cache of a bounded size; for models that our own batches are proved for
single   transformers' `generate`, a row at a time, where they aren't (slower, and told at the start)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tunesmith.device import available_memory
from tunesmith.infer.backend import Asked
from tunesmith.infer.decoding import Decoder
from tunesmith.infer.live import LiveBatch, LiveRow
from tunesmith.infer.transformers_backend import TransformersBackend
from tunesmith.infer.turns import TURN, evaluating

SHARE = (
    0.4  # of the memory that is free when the server starts, for what all lanes keep of prompts and answers
)
LEAST = 1024  # tokens of a cache, however little memory there is


class BatchLane:
    """A lane over our own batches. `within` puts the right adapter on, or all off, for a step."""

    def __init__(
        self, model: Any, width: int, tokens: int, within: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """`tokens`: room of the cache."""
        self.model, self.width, self.tokens, self.within = model, width, tokens, within
        self._batch: LiveBatch | None = None

    @property
    def going(self) -> bool:
        """Whether there is anything to do."""
        return self._batch is not None and self._batch.going

    @property
    def alone(self) -> bool:
        """Never: a step stands for itself."""
        return False

    def add(self, prompts: Sequence[Sequence[LiveRow]]) -> None:
        """Rows to be computed."""
        if self._batch is None:
            with TURN, evaluating(self.model), self.within():
                self._batch = LiveBatch(Decoder(self.model, self.tokens), self.width)
        for rows in prompts:
            self._batch.add(rows)

    def step(self) -> Sequence[LiveRow]:
        """One more token of every row."""
        assert self._batch is not None
        with TURN, evaluating(self.model), self.within():
            try:
                rows = self._batch.step()
            except BaseException:
                self._batch = None  # nobody knows what state it's in; its memory is free
                raise
        if any(row.error is not None for row in rows) and not self._batch.going:
            self._batch = None  # after a lack of memory, say, begin anew with none taken
        return rows


class SingleLane:
    """A lane over transformers' `generate`: rows one after the other, each token as soon as it's chosen."""

    def __init__(
        self,
        model: Any,
        context: int | None,
        within: Callable[[], AbstractContextManager[Any]],
        base: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """`within` is held while an answer begins, `base` (adapters off) while one of the base's goes on."""
        self.model, self.context, self.within, self.base = model, context, within, base
        self._waiting: deque[LiveRow] = deque()
        self._now: tuple[LiveRow, Iterator[int]] | None = None

    @property
    def going(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._now)

    @property
    def alone(self) -> bool:
        """Whether an answer is being written: its worker holds the model until the end."""
        return self._now is not None

    def add(self, prompts: Sequence[Sequence[LiveRow]]) -> None:
        """Rows to be computed."""
        self._waiting.extend(row for rows in prompts for row in rows)

    def step(self) -> Sequence[LiveRow]:
        """The next token of the row whose turn it is."""
        if self._now is not None and self._now[0].dropped:
            self._end()
        while self._now is None and self._waiting:
            row = self._waiting.popleft()
            if not row.dropped:
                with self.within():
                    self._now = row, self._begin(row)
        if self._now is None:
            return []
        row, tokens = self._now
        try:
            row.done = next(tokens, None) is None
        except Exception as error:
            row.error, row.done = error, True
        if row.done:
            self._end()
        return [row]

    def _begin(self, row: LiveRow) -> Iterator[int]:
        backend = TransformersBackend(
            self.model, row.tokenizer, row.chooser.sampling, end_ids=sorted(row.end_ids), pad_id=0,
            context=self.context, choice=lambda _: row.choice, base=self.base,
        )  # fmt: skip
        return backend.stream(Asked(0, 0, 0, row.ids, row.limit, row.adapter))

    def _end(self) -> None:
        assert self._now is not None
        self._now[1].close()  # type: ignore[attr-defined]
        self._now = None


def cache_tokens(config: Any, dtype_bytes: int, kind: str, *, wanted: int, lanes: int) -> int:
    """Tokens that each lane's cache may hold: those wanted, or as many as there is memory for."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * size * dtype_bytes
    held = int(available_memory(kind) * SHARE) // (each * max(1, lanes))
    return int(min(wanted, max(LEAST, held)))
