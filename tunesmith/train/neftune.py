"""NEFTune: uniform noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch


@dataclass
class Neftune:
    """Adds noise within ± alpha / sqrt(L d), L the tokens of the row and d the embedding size.

    L is the row's own length, not the pack's, so that packing doesn't change the strength.
    """

    alpha: float
    _row_lengths: Tensor | None = field(default=None, init=False)  # [B, T, 1]

    @contextmanager
    def on(self, embedding: nn.Module) -> Iterator[Neftune]:
        """Hook an embedding layer for the length of the block; no hook at all with alpha 0."""
        if self.alpha == 0:
            yield self
            return
        handle = embedding.register_forward_hook(self._add_noise)
        try:
            yield self
        finally:
            handle.remove()

    def prepare(self, batch: Batch) -> None:
        """Take the row lengths of the batch that is about to pass."""
        if self.alpha == 0:
            return
        if batch.attention_mask is not None:
            lengths = batch.attention_mask.sum(1, keepdim=True).expand_as(batch.input_ids)
        else:
            sizes = batch.cu_seqlens.diff().long()
            lengths = sizes.repeat_interleave(sizes)[None]
        self._row_lengths = lengths[..., None]

    def _add_noise(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if not module.training or self._row_lengths is None:
            return output
        bound = self.alpha / (self._row_lengths * output.shape[-1]).float().sqrt()
        noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1) * bound
        return output + noise.to(output.dtype)
