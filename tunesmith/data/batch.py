"""Examples of one forward pass as tensors.

B sequences, T tokens in each, N label positions in all of them.

    packed (B = 1)    ids        a0 a1 a2 b0 b1 b2 b3
                      positions   0  1  2  0  1  2  3     restart for every row: rows don't see each other
                      labels      .  .  x  .  x  x  x
                      keep           1     3  4  5        whose next token is a label; 2 -> b0 never is
                      targets       a2    b1 b2 b3

    padded (B = 2)    ids        a0 a1 a2  p              the mask goes by length, never by id, so that a pad
                                 b0 b1 b2 b3              token that is also the end token stays a label
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.encode import Example


@dataclass
class Batch:
    """Input and targets of one forward pass. `tokens`, `label_tokens` and `rows` count real ones."""

    input_ids: Tensor  # [B, T] int64
    position_ids: Tensor  # [B, T] int64, from 0 in every row
    attention_mask: Tensor | None  # [B, T] of 0 and 1, right-padded; None when packed
    cu_seqlens: Tensor  # [rows + 1] int32, where rows begin and end in a packed sequence
    keep: Tensor  # [N] int64, flat positions in B * T whose next token is a label
    targets: Tensor  # [N] int64, those next tokens
    tokens: int
    label_tokens: int
    rows: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: Any = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(examples: Sequence[Example], *, packing: bool, pad_id: int) -> Batch:
    """Lay examples into one sequence (packing) or into padded rows; `pad_id` never changes a result."""
    lengths = [len(example.input_ids) for example in examples]
    width = sum(lengths) if packing else max(lengths)
    shape = (1, width) if packing else (len(examples), width)
    ids = torch.full((shape[0] * width,), pad_id, dtype=torch.int64)
    positions = torch.zeros(shape[0] * width, dtype=torch.int64)
    mask = torch.zeros(shape[0] * width, dtype=torch.int64)
    keep: list[int] = []
    targets: list[int] = []
    start = 0
    for example, length in zip(examples, lengths, strict=True):
        ids[start : start + length] = torch.tensor(example.input_ids, dtype=torch.int64)
        positions[start : start + length] = torch.arange(length)
        mask[start : start + length] = 1
        # From 1 on: the token before a row's first one belongs to another row.
        labels = [t for t in range(1, length) if example.label_mask[t]]
        keep += [start + t - 1 for t in labels]
        targets += [example.input_ids[t] for t in labels]
        start += length if packing else width
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Batch(
        input_ids=ids.view(shape),
        position_ids=positions.view(shape),
        attention_mask=None if packing else mask.view(shape),
        cu_seqlens=bounds,
        keep=torch.tensor(keep, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        tokens=sum(lengths),
        label_tokens=len(keep),
        rows=len(examples),
    )
