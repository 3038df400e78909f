"""Attention of a pack on an NVIDIA GPU: the fastest of torch's own kernels that can do what is asked.

    flash   torch.nn.attention.varlen: 16-bit numbers, packs whose rows share nothing, no capped scores
    flex    FlexAttention, compiled by Triton: shared beginnings, capped scores, other sizes and formats
    dense   SDPA with a mask of T x T: where Triton is missing

Untested on a GPU so far: what is tested is the choice, the mask, and FlexAttention's forward pass on a CPU.
Tests marked `gpu` compare all three with the CPU's kernel.

A tree of segments is one number per token. Segments are laid out depth first, so what hangs on a token's
segment lies right behind it and ends somewhere: token i sees token j where j <= i < until[j].

Shape legend: T packed tokens, H heads, K kv heads, D head size, S segments, B blocks of 128 tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from tunesmith.model.segments import tree

BLOCK = 128  # FlexAttention's own

Kind = Literal["flash", "flex", "dense"]


@dataclass(frozen=True)
class Machine:
    """What of a GPU and its software the choice goes by."""

    capability: tuple[int, int]
    triton: bool
    nvidia: bool = True


@dataclass
class Layout:
    """A pack's segments, on the GPU in the forms that the kernels take; made once for all layers."""

    until: Tensor  # [T] int32: the token where what hangs on this one's segment ends
    position: Tensor  # [T] int32: in its row
    cu_seqlens: Tensor  # [S + 1] int32
    longest: int  # tokens of the longest segment
    longest_row: int
    shared: bool


def choose(
    machine: Machine, dtype: torch.dtype, size: int, *, softcap: float = 0.0, shared: bool = False
) -> tuple[Kind | None, str]:
    """(the kernel, why not a faster one); (None, why) where there is none. `size` is the head size."""
    reasons = [
        ("shared beginnings are beyond it", shared),
        ("scores are capped", bool(softcap)),
        (f"it takes 16-bit numbers, not {str(dtype).removeprefix('torch.')}", dtype.itemsize != 2),
        (f"a head size of {size} isn't a multiple of 8 up to 256", size % 8 != 0 or size > 256),
        ("it needs an NVIDIA GPU from Ampere on", not machine.nvidia or machine.capability < (8, 0)),
    ]
    why = next((text for text, holds in reasons if holds), "")
    if not why:
        return "flash", ""
    if machine.triton:
        return "flex", why
    if softcap:
        return None, "capped scores need Triton here"
    return "dense", f"{why}, and Triton is missing for FlexAttention"


def describe(kind: Kind, why: str) -> str:
    """One line for the person who waits."""
    if kind == "flash":
        return "Attention by flash kernels over the rows of a pack."
    if kind == "flex":
        return f"Attention by FlexAttention, not flash: {why}."
    return f"Attention by SDPA at the cost of a pack's square: {why}."


@cache
def machine(index: int | None = None) -> Machine:
    """This machine's GPU."""
    from torch.utils._triton import has_triton

    capability = torch.cuda.get_device_capability(index)
    return Machine((capability[0], capability[1]), has_triton(), torch.version.hip is None)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """q [T, H, D], k and v [T, K, D], segments [1, 1, S, 3] -> [T, H, D]; 0: no window, no cap."""
    pack = _kept_layout(segments)
    window = window if window < pack.longest_row else 0
    kind, why = choose(machine(q.device.index), q.dtype, q.shape[-1], softcap=softcap, shared=pack.shared)
    assert kind is not None, why
    if kind == "flash":
        return flash(q, k, v, pack, scale, window)
    if kind == "flex":
        return flex(q, k, v, pack, scale, window, softcap, _compiled_flex())
    return dense(q, k, v, pack, scale, window)


def layout(segments: Tensor) -> Layout:
    """segments [S, 3] int64: start, length, parent, depth first."""
    laid = tree(segments.tolist())
    device = segments.device
    lengths = torch.tensor([s.length for s in laid])
    until = torch.tensor([s.end for s in laid]).repeat_interleave(lengths)
    position = torch.cat([torch.arange(s.position, s.position + s.length) for s in laid])
    starts = [*(s.start for s in laid), laid[-1].stop]
    return Layout(
        until=until.to(device, torch.int32),
        position=position.to(device, torch.int32),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32, device=device),
        longest=max(s.length for s in laid),
        longest_row=max(s.position + s.length for s in laid),
        shared=any(s.parent >= 0 for s in laid),
    )


def mask_mod(pack: Layout, window: int) -> Callable[..., Tensor]:
    """Whether token i sees token j, as FlexAttention asks it."""
    until, position = pack.until, pack.position

    def seen(_batch: Any, _head: Any, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < until[j])

    def near(_batch: Any, _head: Any, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < until[j]) & (position[i] - position[j] < window)

    return near if window else seen


def block_mask(pack: Layout, window: int) -> BlockMask:
    """The blocks in which some token may see another; what it is there, `mask_mod` says."""
    tokens = len(pack.until)
    blocks = -(-tokens // BLOCK)
    spare = blocks * BLOCK - tokens

    def per_block(x: Tensor, fill: int) -> Tensor:
        return F.pad(x, (0, spare), value=fill).view(blocks, BLOCK)

    first = torch.arange(blocks, device=pack.until.device) * BLOCK
    needed = first[None] < first[:, None] + BLOCK
    needed &= per_block(pack.until, 0).amax(1)[None] > first[:, None]
    if window:
        nearest = per_block(pack.position, tokens).amin(1)[:, None] - per_block(pack.position, 0).amax(1)
        needed &= nearest < window
    order = needed.int().argsort(dim=1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        needed.sum(1, dtype=torch.int32)[None, None],
        order[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod(pack, window),
        seq_lengths=(tokens, tokens),
    )


def flash(q: Tensor, k: Tensor, v: Tensor, pack: Layout, scale: float, window: int) -> Tensor:
    """Rows that share nothing; in flash kernels a window of w positions reaches w - 1 to the left."""
    cu, longest = pack.cu_seqlens, pack.longest
    left = window - 1 if window else -1
    out = varlen_attn(
        q, k, v, cu, cu, longest, longest,
        scale=scale, window_size=(left, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pack: Layout,
    scale: float,
    window: int,
    softcap: float,
    function: Callable[..., Any] = flex_attention,
) -> Tensor:
    """Any tree, window, cap, and size."""

    def capped(score: Tensor, *_: Any) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    out: Tensor = function(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        score_mod=capped if softcap else None,
        block_mask=block_mask(pack, window),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def dense(q: Tensor, k: Tensor, v: Tensor, pack: Layout, scale: float, window: int) -> Tensor:
    """Any tree and window, at the cost of T x T."""
    at = torch.arange(len(q), device=q.device)
    seen = mask_mod(pack, window)(0, 0, at[:, None], at)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)[0].transpose(0, 1)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


_last: tuple[Any, Layout] | None = None


def _kept_layout(segments: Tensor) -> Layout:
    """The layout of this very tensor, which all layers of a pass are given: it takes a wait for the GPU."""
    global _last
    kept = _last
    if kept is None or kept[0]() is not segments:
        kept = _last = weakref.ref(segments), layout(segments[0, 0])
    return kept[1]
