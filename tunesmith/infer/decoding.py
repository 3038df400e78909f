"""A model as generation uses it: new tokens of many rows in, scores of each row's next token out.

Prompts and the steps after them go through the model's own modules, packed, or through C++ where the model
and the machine allow it (model/decode_native.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.model.cache import Cache, Chunk, Pass, Spans, attending
from tunesmith.model.decode_native import NativeStep, library, why_not
from tunesmith.model.families import can_pack
from tunesmith.model.fused_lora import only_for

# A long text is read in pieces: scores of a piece with all before it are one matrix.
PIECE = 512


def slow_because(model: Any) -> str | None:
    """Why this model's answers are left to transformers' `generate`, in a line; None where they aren't."""
    possible, why = can_pack(model.config)
    return None if possible else why


def prepare(model: Any, note: Callable[[str], None]) -> None:
    """Build what this model's answers need on this machine; `note` takes a line on what isn't as usual."""
    if why := slow_because(model):
        note(f"Answers are computed by transformers' generate, slower: {why}.")
    elif why_not(model) is None:
        try:
            library(note)
        except ModelError as error:
            note(f"Answers are computed without C++, slower: {error.what}")


@dataclass(frozen=True)
class New:
    """New tokens of a row, the last ones of its spans; `wanted`: the scores after them are."""

    ids: Sequence[int]
    spans: Spans
    adapter: bool = True
    wanted: bool = True


class Decoder:
    """A model with a cache for `tokens` tokens of all rows together."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model = model
        self.slow: str | None = why_not(model)
        self.cache = Cache(tokens, paired=self.slow is None)
        self._native: NativeStep | None = None
        if self.slow is None:
            try:
                self._native = NativeStep(model, self.cache)
            except ModelError as error:
                self.slow = str(error)
                self.cache = Cache(tokens)
        self._scores = torch.empty(0, 0)
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def read(self, new: Sequence[New]) -> Tensor:
        """Scores [R, V] in fp32 of what follows each of `new` that is wanted."""
        if self._native is not None:
            out = torch.empty(sum(one.wanted for one in new), self._vocabulary)
            chunks = [Chunk(len(one.ids), one.spans, one.wanted) for one in new]
            self._native.read(chunks, [i for one in new for i in one.ids], [one.adapter for one in new], out)
            return out
        pieces = [piece for one in new for piece in pieces_of(one)]
        chunks = [Chunk(len(piece.ids), piece.spans) for piece in pieces]
        device = self.model.device
        positions, ends, at = [], [], 0
        for piece in pieces:
            length = sum(b - a for a, b in piece.spans)
            positions.append(torch.arange(length - len(piece.ids), length))
            at += len(piece.ids)
            if piece.wanted:
                ends.append(at - 1)
        adapter = torch.tensor([float(piece.adapter) for piece in pieces for _ in piece.ids])
        last = torch.tensor(ends, dtype=torch.int64, device=device)
        keep = {"logits_to_keep": last} if self._keeps else {}
        with attending(self.model, Pass(self.cache, chunks, device)), only_for(_mixed(adapter, device)):
            logits: Tensor = self.model(
                input_ids=torch.tensor([[i for piece in pieces for i in piece.ids]], device=device),
                position_ids=torch.cat(positions)[None].to(device),
                # Four dimensions: handed to every layer as it is, and looked at by none.
                attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device),
                use_cache=False,
                **keep,
            ).logits[0]
        return (logits if self._keeps else logits[last]).float()

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], spans: Sequence[Spans], adapter: Sequence[bool]) -> Tensor:
        """Scores [R, V] in fp32 after one more token of each row, the last one of its spans.

        They hold until the next step.
        """
        if self._native is None:
            return self.read([New([t], s, a) for t, s, a in zip(tokens, spans, adapter, strict=True)])
        size = (len(tokens), self._vocabulary)
        if self._scores.shape != size:  # the same memory for every step
            self._scores = torch.empty(size)
        self._native.step(tokens, spans, adapter, self._scores)
        return self._scores


def _mixed(adapter: Tensor, device: torch.device) -> Tensor | None:
    return None if bool(adapter.all()) else adapter.to(device)


def pieces_of(new: New) -> list[New]:
    """Cut in pieces of `PIECE` tokens, each with the spans as far as its own end."""
    count, (*before, (begin, end)) = len(new.ids), new.spans
    found = []
    for start in range(0, count, PIECE):
        stop = min(start + PIECE, count)
        spans = (*before, (begin, end - count + stop))
        found.append(New(new.ids[start:stop], spans, new.adapter, new.wanted and stop == count))
    return found
