"""Examples of one forward pass as tensors.

B sequences, T tokens in each, N label positions in all of them.

    packed (B = 1)    ids        a0 a1 a2 b0 b1 b2 b3
                      positions   0  1  2  0  1  2  3     restart for every row: rows don't see each other
                      labels      .  .  x  .  x  x  x
                      keep           1     3  4  5        whose next token is a label; 2 -> b0 never is
                      targets       a2    b1 b2 b3

    shared (B = 1)    ids        s0 s1 s2 a3 a4 b3       a and b begin with s0 s1 s2, laid out once
                      positions   0  1  2  3  4  3
                      keep              2  3     2        s2 predicts a3 for a, and b3 for b
                      segments   (0, 3, -1) (3, 2, 0) (5, 1, 0): start, length, what it hangs on

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
from tunesmith.data.prefixes import Shared, share, sort_rows


@dataclass
class Batch:
    """Input and targets of one forward pass.

    `tokens`, `label_tokens` and `rows` count real ones, as if nothing were shared; `unique_tokens` those
    that are computed. `label_losses` is the place where a loss leaves what each target cost.
    """

    input_ids: Tensor  # [B, T] int64
    position_ids: Tensor  # [B, T] int64, from 0 in every row
    attention_mask: Tensor | None  # [B, T] of 0 and 1, right-padded; None when packed
    cu_seqlens: Tensor  # [rows + 1 (+ filler)] int32, where rows begin and end in a pack that shares nothing
    segments: Tensor  # [S, 3] int64, the tree of a packed sequence: start, length, parent; padded: S = 0
    keep: Tensor  # [N] int64, flat positions in B * T whose next token is a label; once for each row
    targets: Tensor  # [N] int64, those next tokens
    tokens: int
    unique_tokens: int
    label_tokens: int
    rows: int
    label_losses: Tensor | None = None  # [N], in nats, targets in their order: one row after the other

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: Any = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(
    examples: Sequence[Example], *, packing: bool, pad_id: int, sharing: bool = False, multiple: int = 1
) -> Batch:
    """Lay examples into one sequence (packing) or into padded rows; `pad_id` never changes a result.

    `sharing`: common beginnings of packed rows are laid out once, for a model that attends by segments.
    `multiple`: a filler, which no row sees and nothing counts, makes a pack's length a multiple of this.
    """
    if packing:
        return _pack(examples, sharing, pad_id, multiple)
    width = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    for number, example in enumerate(examples):
        ids[number, : len(example.input_ids)] = torch.tensor(example.input_ids)
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    real = torch.arange(width) < lengths[:, None]
    places = [range(number * width, (number + 1) * width) for number in range(len(examples))]
    return Batch(
        input_ids=ids,
        position_ids=torch.arange(width) * real,
        attention_mask=real.long(),
        segments=torch.empty(0, 3, dtype=torch.int64),
        unique_tokens=int(lengths.sum()),
        **_rest(examples, places),
    )


def _pack(examples: Sequence[Example], sharing: bool, pad_id: int, multiple: int) -> Batch:
    rows = [example.input_ids for example in examples]
    lengths = [len(row) for row in rows]
    if sharing:
        order = sort_rows(rows)
        shared, last = share(order, lengths)
        ends = dict(zip(order.rows, last, strict=True))
    else:
        shared = [Shared(row, 0, length, -1) for row, length in enumerate(lengths)]
        ends = {row: row for row in range(len(rows))}
    starts = [0]
    for segment in shared:
        starts.append(starts[-1] + segment.end - segment.begin)
    places = []
    for row in range(len(rows)):
        chain, at = [], ends[row]
        while at >= 0:
            chain.append(range(starts[at], starts[at + 1]))
            at = shared[at].parent
        places.append([place for part in reversed(chain) for place in part])
    ids = [token for segment in shared for token in rows[segment.row][segment.begin : segment.end]]
    positions = [position for segment in shared for position in range(segment.begin, segment.end)]
    segments = [
        (start, segment.end - segment.begin, segment.parent)
        for start, segment in zip(starts, shared, strict=False)
    ]
    unique, filler = len(ids), -len(ids) % multiple
    rest = _rest(examples, places)
    if filler:
        segments.append((unique, filler, -1))
        ids += [pad_id] * filler
        positions += range(filler)
        ends_at = rest["cu_seqlens"]
        rest["cu_seqlens"] = torch.cat((ends_at, ends_at[-1:] + filler))
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=None,
        segments=torch.tensor(segments),
        unique_tokens=unique,
        **rest,
    )


def _rest(examples: Sequence[Example], places: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Labels and counts; places[row][t] is the flat position of the row's token t."""
    keep: list[int] = []
    targets: list[int] = []
    for example, place in zip(examples, places, strict=True):
        # From 1 on: nothing stands before a row's first token.
        labels = [t for t in range(1, len(example.input_ids)) if example.label_mask[t]]
        keep += [place[t - 1] for t in labels]
        targets += [example.input_ids[t] for t in labels]
    lengths = [len(example.input_ids) for example in examples]
    return {
        "cu_seqlens": torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        "keep": torch.tensor(keep, dtype=torch.int64),
        "targets": torch.tensor(targets, dtype=torch.int64),
        "tokens": sum(lengths),
        "label_tokens": len(keep),
        "rows": len(examples),
    }
