"""Keys and values of the tokens that generation has seen, and the attention of new tokens over them.

One store for all rows of a batch: nothing is padded, and a beginning that several rows share lies there once.
A row is a list of spans, (begin, end) in the store, its own tokens last. `attending` switches a model to this
attention for one forward pass; a pass may bring new tokens of any number of rows, packed in one sequence.

    T new tokens of a pass   R rows   L tokens seen   H heads, K of them for keys and values   D head size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

CACHED = "tunesmith_cached"  # the name of this attention among those of transformers
ALIGN = 32  # spans begin at multiples of it; decode_cpu.cpp reads whole ones

Spans = tuple[tuple[int, int], ...]


class Cache:
    """Room for `tokens` tokens in every layer, given out in spans; memory is taken as it is written to.

    `paired` packs values as decode_cpu.cpp reads them: [K, tokens / 2, D, 2] in place of [K, tokens, D].
    """

    def __init__(self, tokens: int, *, paired: bool = False) -> None:
        self.tokens = padded(tokens)
        self.paired = paired
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._free = [(0, self.tokens)]

    def reserve(self, count: int) -> int | None:
        """Where a span of so many tokens may begin; None where there is no room now."""
        size = padded(count)
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= size:
                self._free[i : i + 1] = [(begin + size, end)] if end - begin > size else []
                return begin
        return None

    def release(self, begin: int, count: int) -> None:
        """Give a span back."""
        spans = sorted([*self._free, (begin, begin + padded(count))])
        merged = spans[:1]
        for start, end in spans[1:]:
            if start == merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [K, tokens, D] and values of a layer, for tensors like `like` [T, K, D]; zeros at first."""
        if number not in self.layers:
            shape = (like.shape[1], self.tokens, like.shape[2])
            self.layers[number] = like.new_zeros(shape), like.new_zeros(shape)
        return self.layers[number]

    def put(self, number: int, at: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [T, K, D] of a layer as tokens `at` [T]."""
        keys, values = self.layer(number, k)
        keys[:, at] = k.transpose(0, 1)
        if self.paired:
            self._pairs(values)[:, at // 2, :, at % 2] = v
        else:
            values[:, at] = v.transpose(0, 1)

    def get(self, number: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [K, *at.shape, D] of tokens."""
        keys, values = self.layers[number]
        if self.paired:
            return keys[:, at], self._pairs(values)[:, at // 2, :, at % 2].movedim(-2, 0)
        return keys[:, at], values[:, at]

    @staticmethod
    def _pairs(values: Tensor) -> Tensor:
        kv_heads, tokens, size = values.shape
        return values.view(kv_heads, tokens // 2, size, 2)


def padded(count: int) -> int:
    """Tokens that a span of so many takes in the store."""
    return -(-count // ALIGN) * ALIGN


@dataclass(frozen=True)
class Chunk:
    """New tokens of one row, one behind the other: so many, the last tokens of the row's spans.

    `wanted`: the scores after them are.
    """

    count: int
    spans: Spans
    wanted: bool = True


@dataclass
class Pass:
    """What a forward pass brings: chunks in the order of its tokens."""

    cache: Cache
    chunks: Sequence[Chunk]
    device: torch.device
    at: Tensor = field(init=False)  # [T] where the new tokens go
    seen: list[Tensor] = field(init=False)  # of each chunk [L]: all tokens of its row, in their order
    rows: Tensor | None = field(init=False)  # [R, L]: the same as one tensor where each brings one token
    lengths: Tensor = field(init=False)  # [R]

    def __post_init__(self) -> None:
        seen = [torch.cat([torch.arange(a, b) for a, b in chunk.spans]) for chunk in self.chunks]
        new = [tokens[-chunk.count :] for tokens, chunk in zip(seen, self.chunks, strict=True)]
        self.at = torch.cat(new).to(self.device)
        self.seen = [tokens.to(self.device) for tokens in seen]
        self.lengths = torch.tensor([len(tokens) for tokens in seen], device=self.device)
        single = all(chunk.count == 1 for chunk in self.chunks)
        self.rows = nn.utils.rnn.pad_sequence(self.seen, batch_first=True) if single else None


_pass: Pass | None = None


@contextmanager
def attending(model: nn.Module, new: Pass) -> Iterator[None]:
    """Forward passes inside put their keys and values into the cache and attend over what is in it."""
    global _pass
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation, _pass = CACHED, new
    try:
        yield
    finally:
        config._attn_implementation, _pass = before, None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the pass says what is seen
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]."""
    assert _pass is not None, "no pass is going on"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    number = int(module.layer_idx)  # type: ignore[arg-type]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    _pass.cache.put(number, _pass.at, k.to(v.dtype), v)
    limits = (scale, sliding_window or 0, softcap or 0.0)
    q = q.to(v.dtype)
    out = _single(number, q, _pass, limits) if _pass.rows is not None else _several(number, q, _pass, limits)
    return out[None], None


def _single(number: int, q: Tensor, new: Pass, limits: tuple[float, int, float]) -> Tensor:
    """One new token of each row: q [R, H, D] -> [R, H, D]."""
    assert new.rows is not None
    k, v = (x.transpose(0, 1) for x in new.cache.get(number, new.rows))  # [R, K, L, D]
    window = limits[1]
    place = torch.arange(new.rows.shape[1], device=q.device)
    hidden = place >= new.lengths[:, None]
    if window:
        hidden |= place < new.lengths[:, None] - window
    heads = q.reshape(len(q), k.shape[1], -1, q.shape[2])  # [R, K, H / K, D]
    return _scored(heads, k, v, ~hidden[:, None, None], limits).flatten(1, 2)


def _several(number: int, q: Tensor, new: Pass, limits: tuple[float, int, float]) -> Tensor:
    """Any number of new tokens of each row: q [T, H, D] -> [T, H, D]."""
    found = []
    window = limits[1]
    for part, seen, chunk in zip(
        torch.split(q, [c.count for c in new.chunks]), new.seen, new.chunks, strict=True
    ):
        k, v = new.cache.get(number, seen)  # [K, L, D]
        place = torch.arange(len(seen), device=q.device)
        own = place[-chunk.count :, None]
        visible = place <= own
        if window:
            visible &= place > own - window
        kv_heads, group = k.shape[0], q.shape[1] // k.shape[0]
        # The heads that share a key head are rows of one product: [1, K, H / K x N, D].
        heads = part.transpose(0, 1).reshape(1, kv_heads, group * chunk.count, -1)
        out = _scored(heads, k[None], v[None], visible.repeat(group, 1), limits)
        found.append(out.reshape(kv_heads * group, chunk.count, -1).transpose(0, 1))
    return torch.cat(found)


def _scored(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, limits: tuple[float, int, float]) -> Tensor:
    scale, _window, softcap = limits
    if not softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v


AttentionInterface.register(CACHED, _attend)
AttentionMaskInterface.register(CACHED, lambda *_args, **_kwargs: None)
