"""Attention of a pack on the CPU, forward and backward, block by block (see model/segments.py).

Forward: each block gives an output and the logarithm of its softmax's denominator (torch's own flash kernel,
scores in fp32); blocks are merged by these exactly as one softmax would (Milakov and Gimelshein 2018,
arXiv 1805.02867). Backward: every block recomputes its probabilities from the merged denominator (Dao et al.
2022, arXiv 2205.14135) by products of whole blocks:

    p = exp(scale q k^T - lse)      ds = p * (dout v^T - delta)      delta = sum of dout * out over D
    dv = p^T dout                   dq = scale ds k                   dk = scale ds^T q

lse and delta ride in three more columns of q and dout, against columns of ones in k and v: the products
subtract them in fp32, so that a bf16 result is rounded where it is near zero, not where the scores are large,
and two passes over all scores are saved.

Shape legend: T packed tokens, H heads, K kv heads, G = H / K, D head size, E = D and those columns, C blocks
of n tokens in a group, m rows and n keys of a reach.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from tunesmith.model.segments import Plan

PARTS = 3  # bf16 holds 8 bits of a number, three of them together all 24 of an fp32
FORWARD_ROWS = 1024

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_local = threading.local()


def forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """q [T, H, D], k and v [T, K, D] -> out [T, H, D], lse [T, H] in fp32."""
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    for segment in plan.segments:
        own = slice(segment.start, segment.stop)
        part, norm = _flash(_rows(q[own]), _rows(k[own]), _rows(v[own]), 0.0, True, scale=scale)
        out[own] = part[0].transpose(0, 1)
        lse[own] = norm[0].t()
    for reach in plan.reaches:
        keys, values = _rows(k[reach.start : reach.stop]), _rows(v[reach.start : reach.stop])
        for begin in range(reach.begin, reach.end, FORWARD_ROWS):
            rows = slice(begin, min(begin + FORWARD_ROWS, reach.end))
            part, norm = _flash(_rows(q[rows]), keys, values, 0.0, False, scale=scale)
            merged = torch.logaddexp(lse[rows], norm[0].t())
            weight = (norm[0].t() - merged).exp_()[..., None]
            out[rows].lerp_(part[0].transpose(0, 1), weight.to(q.dtype))
            lse[rows] = merged
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, in their shapes; dout and out [T, H, D], lse [T, H]."""
    _, heads, size = q.shape
    kv_heads = k.shape[1]
    per_kv = heads // kv_heads
    # bf16 times a power of two is exact; any other scale is applied to the scores.
    folded = q.dtype is torch.float32 or math.frexp(scale)[0] == 0.5
    inner, outer = (1.0, scale) if folded else (scale, 1.0)
    # In bf16 `out` is rounded already, which weighs as much as rounding the products.
    delta = torch.mul(dout, out, out=scratch("delta", tuple(q.shape), q)).sum(-1, dtype=torch.float32)
    qx = _extend("q", q, lse.neg() / inner, outer)
    dx = _extend("dout", dout, delta.neg_())
    kx, vx = _extend("k", k, None), _extend("v", v, None)
    width = qx.shape[-1]

    total = plan.gather.shape[0]
    dq_own = scratch("dq", (total, per_kv * size), q)
    dk_own = scratch("dk", (total, size), q)
    dv_own = scratch("dv", (total, size), q)
    for group in plan.groups:
        batch, length = kv_heads * group.count, group.length
        rows = slice(group.offset, group.offset + batch * length)
        index = plan.gather[rows]
        qs, dos = (_take(name, x, index, per_kv * width) for name, x in (("qs", qx), ("dos", dx)))
        ks, vs = (_take(name, x, index, width) for name, x in (("ks", kx), ("vs", vx)))
        qs, dos = qs.view(batch, length * per_kv, width), dos.view(batch, length * per_kv, width)
        ks, vs = ks.view(batch, length, width), vs.view(batch, length, width)
        p = _probabilities(qs, ks, inner)
        for head in range(per_kv):  # rows are (token, head); a future key's score may have overflowed
            p.view(batch, length, per_kv, length)[:, :, head].tril_()
        ds = _score_gradients(dos, vs, p)
        torch.bmm(p.transpose(1, 2), dos[..., :size], out=dv_own[rows].view(batch, length, size))
        torch.bmm(ds.transpose(1, 2), qs[..., :size], out=dk_own[rows].view(batch, length, size))
        torch.bmm(ds, ks[..., :size], out=dq_own[rows].view(batch, length * per_kv, size))
    dq = dq_own.index_select(0, plan.scatter).view(q.shape)
    dk = dk_own.index_select(0, plan.scatter).view(k.shape)
    dv = dv_own.index_select(0, plan.scatter).view(v.shape)

    if plan.pieces:
        dq, dk, dv = dq.float(), dk.float(), dv.float()
        for piece in plan.pieces:
            m, keys = piece.end - piece.begin, slice(piece.start, piece.stop)
            rows = slice(piece.begin, piece.end)
            shape = (kv_heads, m, per_kv * width)
            qs, dos = (
                scratch(name, shape, q).copy_(x[rows].view(m, kv_heads, -1).transpose(0, 1))
                for name, x in (("qs", qx), ("dos", dx))
            )
            qs, dos = qs.view(kv_heads, m * per_kv, width), dos.view(kv_heads, m * per_kv, width)
            ks, vs = kx[keys].transpose(0, 1), vx[keys].transpose(0, 1)
            p = _probabilities(qs, ks, inner)
            ds = _score_gradients(dos, vs, p)
            dv[keys] += torch.bmm(p.transpose(1, 2), dos[..., :size]).transpose(0, 1)
            dk[keys] += torch.bmm(ds.transpose(1, 2), qs[..., :size]).transpose(0, 1)
            grown = torch.bmm(ds, ks[..., :size]).view(kv_heads, m, per_kv, size)
            dq[rows].view(m, kv_heads, per_kv, size).add_(grown.transpose(0, 1))
    dq.mul_(scale)
    if not folded:
        dk.mul_(scale)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _rows(x: Tensor) -> Tensor:
    """[n, H, D] -> [1, H, n, D], no copy."""
    return x.transpose(0, 1)[None]


def _probabilities(qs: Tensor, ks: Tensor, inner: float) -> Tensor:
    p = scratch("p", (qs.shape[0], qs.shape[1], ks.shape[1]), qs)
    torch.bmm(qs, ks.transpose(1, 2), out=p)
    if inner != 1.0:
        p.mul_(inner)
    return p.exp_()


def _score_gradients(dos: Tensor, vs: Tensor, p: Tensor) -> Tensor:
    ds = scratch("ds", tuple(p.shape), p)
    torch.bmm(dos, vs.transpose(1, 2), out=ds)
    return ds.mul_(p)


def _extend(name: str, x: Tensor, number: Tensor | None, factor: float = 1.0) -> Tensor:
    """x [T, N, D] * factor -> [T + 1, N, E]: number [T, N] in PARTS columns (None: ones), and a zero row."""
    tokens, count, size = x.shape
    wide = scratch(name, (tokens + 1, count, size + 16 // x.element_size()), x)
    if factor == 1.0:
        wide[:tokens, :, :size] = x
    else:
        torch.mul(x, factor, out=wide[:tokens, :, :size])
    columns = x.new_zeros(tokens if number is not None else 1, count, wide.shape[-1] - size)
    for part in range(PARTS):
        if number is None:
            columns[..., part] = 1
        else:
            columns[..., part] = number
            number = number - columns[..., part]
    wide[:tokens, :, size:] = columns
    wide[tokens] = 0
    return wide


def _take(name: str, x: Tensor, index: Tensor, width: int) -> Tensor:
    return torch.index_select(x.view(-1, width), 0, index, out=scratch(name, (index.shape[0], width), x))


def scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory that is used again: new pages cost more than the work done in them."""
    kept: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("buffers", {})
    key, size = (name, like.dtype), math.prod(shape)
    if key not in kept or kept[key].numel() < size:
        kept[key] = like.new_empty(size)
    return kept[key][:size].view(shape)
