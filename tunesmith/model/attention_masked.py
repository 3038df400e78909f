"""Attention of a pack in fp32, for capped scores and for sliding windows that are shorter than a row.

Slower than attention_kernels, but still far from the pack's square: a block of rows meets only the keys of
its own path through the tree that lie within the window. Memory is linear in the length of a row.

Shape legend: T packed tokens, H heads, K kv heads, G = H / K, D head size, m rows of a block, n keys they may
see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.model.segments import Plan, path

ROWS = 128


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of the pack, the ranges of keys they may see, and which of them each row does: [m, n]."""

    rows: slice
    keys: list[slice]
    seen: Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    """q [T, H, D], k and v [T, K, D] -> out [T, H, D], lse [T, H] in fp32; 0: no window, no cap."""
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    for block in _blocks(plan, window):
        scores, _ = _scores(q, k, block, scale, softcap)
        norm = scores.logsumexp(-1, keepdim=True)
        part = (scores - norm).exp_() @ _keys(v, block)
        out[block.rows] = _flat(part, q.shape[1])
        lse[block.rows] = _flat(norm, q.shape[1])[..., 0]
    return out, lse


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: Plan,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, in their shapes; dout and out [T, H, D], lse [T, H]."""
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
    kv_heads = k.shape[1]
    for block in _blocks(plan, window):
        scores, slope = _scores(q, k, block, scale, softcap)
        p = (scores - _grouped(lse[block.rows, :, None], kv_heads)).exp_()
        do = _grouped(dout[block.rows], kv_heads)
        delta = (do * _grouped(out[block.rows], kv_heads)).sum(-1, keepdim=True)
        keys, values = _keys(k, block), _keys(v, block)
        ds = (do @ values.mT - delta).mul_(p).mul_(scale)
        if slope is not None:
            ds *= slope
        dq[block.rows] = _flat(ds @ keys, q.shape[1])
        _add(dk, block, ds, _grouped(q[block.rows], kv_heads))
        _add(dv, block, p, do)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _blocks(plan: Plan, window: int) -> Iterator[_Block]:
    for index, segment in enumerate(plan.segments):
        line = path(plan.segments, index)
        for begin in range(segment.start, segment.stop, ROWS):
            stop = min(begin + ROWS, segment.stop)
            first = segment.position + begin - segment.start
            oldest = max(0, first - window + 1) if window else 0
            keys, positions = [], []
            for above in line:
                skip = max(0, oldest - above.position)
                last = stop if above is segment else above.stop
                if above.start + skip < last:
                    keys.append(slice(above.start + skip, last))
                    positions.append(torch.arange(skip, last - above.start) + above.position)
            distance = torch.arange(first, first + stop - begin)[:, None] - torch.cat(positions)
            seen = distance >= 0
            yield _Block(slice(begin, stop), keys, seen & (distance < window) if window else seen)


def _scores(
    q: Tensor, k: Tensor, block: _Block, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """Scores [K, m G, n], -inf where unseen, and the cap's derivative there: cap tanh(x / cap)."""
    scores = (_grouped(q[block.rows], k.shape[1]) @ _keys(k, block).mT).mul_(scale)
    slope = None
    if softcap:
        bent = scores.div_(softcap).tanh_()
        slope = 1 - bent**2
        scores = bent * softcap
    m, n = block.seen.shape
    scores.view(k.shape[1], m, -1, n).masked_fill_(~block.seen[:, None], float("-inf"))
    return scores, slope


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[m, H, D] -> [K, m G, D] in fp32."""
    m, heads, size = x.shape
    split = x.reshape(m, kv_heads, heads // kv_heads, size).transpose(0, 1)
    return split.float().reshape(kv_heads, -1, size)


def _flat(x: Tensor, heads: int) -> Tensor:
    """[K, m G, D] -> [m, H, D]."""
    kv_heads, rows, size = x.shape
    per_kv = heads // kv_heads
    return x.view(kv_heads, rows // per_kv, per_kv, size).transpose(0, 1).reshape(-1, heads, size)


def _keys(x: Tensor, block: _Block) -> Tensor:
    """[T, K, D] -> [K, n, D] in fp32."""
    return torch.cat([x[part] for part in block.keys]).transpose(0, 1).float()


def _add(total: Tensor, block: _Block, weights: Tensor, rows: Tensor) -> None:
    """total [T, K, D] += weights^T rows, where the block's keys lie."""
    grown = (weights.mT @ rows).transpose(0, 1)
    at = 0
    for part in block.keys:
        size = part.stop - part.start
        total[part] += grown[at : at + size]
        at += size
