"""The attention of a pack in C++ (attention_cpu.cpp), for processors with products in bf16.

The library is built on first use by the machine's own compiler, which training with compiled layers needs
anyway, and kept in tunesmith's cache by everything that it depends on. Only compiled training in bf16 uses it
(`using`): the path that a run takes must not depend on what an earlier run left in the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from tunesmith.model import native
from tunesmith.model.attention_kernels import scratch
from tunesmith.model.native import pointers, sizes
from tunesmith.model.native import supported as supported
from tunesmith.model.segments import tree

SOURCES = native.sources("attention")
LARGEST_HEAD = 256
# Fewer tasks than this many times the threads would leave some idle at the end.
TASKS_PER_THREAD = 4

_library: ctypes.CDLL | None = None


def build(compiler: str) -> ctypes.CDLL:
    """The library, compiled (5 s) unless the cache has it. Raises ModelError with the compiler's words."""
    return native.build("attention", SOURCES, compiler)


@contextmanager
def using(library: ctypes.CDLL | None) -> Iterator[None]:
    """Attention by the library inside, where it can; None changes nothing."""
    global _library
    before, _library = _library, library or _library
    try:
        yield
    finally:
        _library = before


def fits(q: Tensor) -> bool:
    """Whether the library is in use and computes attention of such queries [T, H, D]."""
    size = q.shape[2]
    return (
        _library is not None
        and q.dtype is torch.bfloat16
        and size <= LARGEST_HEAD
        and bool(_library.attention_fits(*sizes(size)))
    )


def forward(q: Tensor, k: Tensor, v: Tensor, segments: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [T, H, D], k and v [T, K, D], segments [S, 3] -> out [T, H, D], lse [T, H] in fp32."""
    assert _library is not None
    q, k, v = map(_rows, (q, k, v))
    _, heads, size = q.shape
    kv_heads = k.shape[1]
    ends, roots = _layout(tuple(map(tuple, segments.tolist())))
    strides = _strides(q, k, v)  # named: a pointer doesn't keep what it points at
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    _library.attention_forward(
        *pointers(q, k, v, strides, ends, roots), *sizes(len(roots), heads, kv_heads, size),
        ctypes.c_float(scale),
        *sizes(torch.get_num_threads(), _heads_of_a_task(len(roots), heads, kv_heads)), *pointers(out, lse),
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, in their shapes; dout and out [T, H, D], lse [T, H]."""
    assert _library is not None
    dout, q, k, v = map(_rows, (dout, q, k, v))
    tokens, heads, size = q.shape
    kv_heads = k.shape[1]
    ends, roots = _layout(tuple(map(tuple, segments.tolist())))
    strides, out, lse = _strides(q, k, v, dout), out.contiguous(), lse.contiguous()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    parts: tuple[Tensor | None, Tensor | None] = (None, None)
    if kv_heads < heads and _heads_of_a_task(len(roots), heads, kv_heads) == 1:
        parts = (scratch("dk32", q.shape, lse), scratch("dv32", q.shape, lse))
    _library.attention_backward(
        *pointers(dout, q, k, v, strides, out, lse, ends, roots),
        *sizes(len(roots), tokens, heads, kv_heads, size), ctypes.c_float(scale),
        *sizes(torch.get_num_threads()), *pointers(dq, dk, dv, *parts),
    )  # fmt: skip
    return dq, dk, dv


def _heads_of_a_task(roots: int, heads: int, kv_heads: int) -> int:
    """All heads of a key head, which then is packed once; one by one where that leaves too few tasks."""
    return 1 if roots * kv_heads < TASKS_PER_THREAD * torch.get_num_threads() else heads // kv_heads


@lru_cache(maxsize=16)
def _layout(content: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
    """Of each token the end of what sees it, [T] int32; of each root begin and end, the largest first."""
    segments = tree(content)
    lengths = torch.tensor([segment.length for segment in segments])
    ends = torch.tensor([segment.end for segment in segments], dtype=torch.int32).repeat_interleave(lengths)
    roots = [(segment.start, segment.end) for segment in segments if segment.parent < 0]
    return ends, torch.tensor(sorted(roots, key=lambda root: root[0] - root[1]))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> Tensor:
    return torch.tensor([stride for x in tensors for stride in x.stride()[:2]])
