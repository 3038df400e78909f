"""Answers by transformers' own `generate`: beams, and models that our own batches aren't proved for.

Rows are padded to the longest of their batch and wait for its end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from tunesmith.infer.backend import Asked, Tokens
from tunesmith.infer.choosing import Choice
from tunesmith.infer.config import Sampling
from tunesmith.infer.sampling import criteria, generation_config, processors
from tunesmith.infer.turns import TURN, evaluating

WINDOW = 8  # batches that are sorted by length together: little padding, and the first answers come soon


class TransformersBackend:
    """A backend. `choice` makes what a row is chosen by; `base` switches the adapter off inside."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        end_ids: Sequence[int],
        pad_id: int,
        context: int | None,
        choice: Callable[[Asked], Choice],
        base: Callable[[], Any],
    ) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.end_ids, self.pad_id, self.context = end_ids, pad_id, context
        self.choice, self.base = choice, base

    def answers(self, asked: Sequence[Asked], width: int, done: Container[int]) -> Iterator[Sequence[Tokens]]:
        prompts = [one for one in asked if one.answer == 0]
        repeats = len(asked) // max(1, len(prompts))
        size = max(1, width // max(self.sampling.beams, repeats))
        for start in range(0, len(prompts), size * WINDOW):
            for together in _batches(prompts[start : start + size * WINDOW], size, self.context):
                # What is done keeps its place: the others are in the batches they would be in without it.
                left = [one for one in together if one.index not in done]
                batch = [replace(one, answer=n) for one in left for n in range(repeats)]
                if not batch:
                    continue
                began = time.perf_counter()
                choices = [self.choice(one) for one in batch]
                found = self._run(batch, choices)
                seconds = (time.perf_counter() - began) / len(found)
                each = len(found) // len(batch)
                yield [
                    Tokens(batch[number // each], ids, seconds, choices[number // each].scores)
                    for number, ids in enumerate(found)
                ]

    def stream(self, asked: Asked) -> Iterator[int]:
        tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        cancelled = threading.Event()

        def work() -> None:
            try:
                self._run([asked], [self.choice(asked)], cancelled=cancelled, streamer=_NewTokens(tokens))
                tokens.put(None)
            except BaseException as error:
                tokens.put(error)

        worker = threading.Thread(target=work, name="answer")
        worker.start()
        try:
            while (token := tokens.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            cancelled.set()
            worker.join()

    def _run(
        self,
        asked: Sequence[Asked],
        choices: Sequence[Choice],
        *,
        cancelled: threading.Event | None = None,
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """New tokens of each row, filled up after its end; with beams every answer is a row."""
        width = max(len(one.ids) for one in asked)
        padding = [width - len(one.ids) for one in asked]
        limits = [one.limit for one in asked]
        input_ids = torch.tensor(
            [[self.pad_id] * p + list(one.ids) for p, one in zip(padding, asked, strict=True)]
        )
        mask = torch.tensor([[0] * p + [1] * (width - p) for p in padding])
        with _answering(self.model), self.base() if not asked[0].adapter else evaluating(self.model):
            output = self.model.generate(
                input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=generation_config(
                    self.sampling, new_tokens=max(limits), end_ids=self.end_ids, pad_id=self.pad_id
                ),
                logits_processor=processors(self.sampling, padding=padding, width=width, choices=choices),
                stopping_criteria=criteria(
                    self.tokenizer, self.sampling, width=width, limits=limits, cancelled=cancelled
                ),
                streamer=streamer,
            )
        new_ids: list[list[int]] = output[:, width:].tolist()
        return new_ids


class _NewTokens(BaseStreamer):  # type: ignore[misc]
    """Hands each new token on; the prompt, which `generate` puts first, is left out."""

    def __init__(self, tokens: queue.SimpleQueue[int | BaseException | None]) -> None:
        self.tokens = tokens
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.tokens.put(int(value.item()))
        self.prompt_seen = True

    def end(self) -> None:
        pass


def _batches(asked: Sequence[Asked], size: int, context: int | None) -> list[list[Asked]]:
    """Prompts of similar length together, the base's apart; the batch with the earliest prompt first."""
    batches: list[list[Asked]] = []
    for one in sorted(asked, key=lambda a: (a.adapter, len(a.ids), a.index, a.answer)):
        grown = [*batches[-1], one] if batches else [one]
        # A row that has ended is carried along until the last one ends; it mustn't run out of positions.
        last_position = len(one.ids) + max(a.limit for a in grown)
        fits = len(grown) <= size and (context is None or last_position <= context)
        if batches and fits and grown[0].adapter is one.adapter:
            batches[-1] = grown
        else:
            batches.append([one])
    return sorted(batches, key=lambda batch: min(a.index for a in batch))


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """The model without defaults of its own, which are given back afterwards."""
    with TURN, evaluating(model):
        own = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = own
