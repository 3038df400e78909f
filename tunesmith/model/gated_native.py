"""A gated feed-forward block with LoRA in C++ (gated_cpu.cpp), for processors with products in bf16.

    y = down(silu(gate(x)) up(x))          gate, up, down: x W^T + s (x A^T) B^T; W frozen

Built and used as linear_native is. Between three products by themselves stand two loops over numbers that are
written and read again, and a copy of down's input that is kept for the way back; here what is between them is
computed as their sums leave them, and that input once more from what gate and up gave.

Shapes: T tokens, D the size of x, E that between the layers, R a rank, P that of gate and up together filled
up to whole 32s, Q that of down, U tokens filled up to whole 32s.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunesmith.model import linear_native, native
from tunesmith.model.attention_kernels import scratch
from tunesmith.model.linear_native import WHOLE, layout_of, rows_of
from tunesmith.model.native import pointers, sizes
from tunesmith.model.native import supported as supported

SOURCES = native.sources("gated")
WIDEST = 3072
"""Of E: with more, fewer than 96 rows are in the cache at a time, and the weights are read too often."""
HIGHEST_RANK = 32
"""gate and up share one low-rank part, half of which is zeros for each: with more, that is what they gain."""

_library: ctypes.CDLL | None = None
_in_use = False  # by itself: what is compiled depends on it, and the compiler can't look at a library


class _Layers(ctypes.Structure):
    """What the library takes of gate, up and down, in this order; `Layers` in C++."""

    _fields_ = (
        ("w", ctypes.c_void_p * 3), ("a", ctypes.c_void_p * 3), ("b", ctypes.c_void_p * 3),
        ("stride", ctypes.c_int64 * 3), ("turned", ctypes.c_int64 * 3), ("rank", ctypes.c_int64 * 3),
        ("scale", ctypes.c_float * 3), ("d", ctypes.c_int64), ("e", ctypes.c_int64),
    )  # fmt: skip


def build(compiler: str) -> ctypes.CDLL:
    """The library, compiled (2 s) unless the cache has it. Raises ModelError with the compiler's words."""
    return native.build("gated", SOURCES, compiler)


@contextmanager
def using(library: ctypes.CDLL | None) -> Iterator[None]:
    """Gated blocks by the library inside, where it can; None changes nothing."""
    global _library, _in_use
    before = _library
    _library = library or _library
    _in_use = _library is not None
    try:
        yield
    finally:
        _library, _in_use = before, before is not None


def in_use() -> bool:
    """Whether there is a library now: the first question, which costs nothing."""
    return _in_use


def fits(x: Tensor, weights: Sequence[Tensor], ranks: Sequence[int]) -> bool:
    """Whether the library is in use and computes x [..., D] with these: gate, up [E, D] and down [D, E]."""
    gate, up, down = weights
    e, d = gate.shape
    return (
        _in_use
        and x.device.type == "cpu"
        and x.dtype is torch.bfloat16
        and x.shape[-1] == d
        and up.shape == (e, d)
        and down.shape == (d, e)
        and 0 < e <= WIDEST
        and max(ranks) <= HIGHEST_RANK
        and d > 0
        and e % WHOLE == d % WHOLE == 0
        and all(w.dtype is torch.bfloat16 and 1 in w.stride() for w in weights)
    )


def gated(
    x: Tensor, weights: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor], scales: Sequence[float]
) -> Tensor:
    """x [..., D] in bf16 -> y [..., D]; weights, a and b (in any format) of gate, up and down."""
    out: Tensor = _Gated.apply(x, *weights, *a, *b, *scales)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        tensors, scales = list(given[:9]), list(given[9:])
        rows = x.reshape(-1, x.shape[-1])
        y, g, u, h, low = torch.ops.tunesmith.gated_forward(rows, tensors, scales)
        ctx.save_for_backward(rows, g, u, h, low, *tensors)
        ctx.scales, ctx.shape = scales, x.shape
        out: Tensor = y.view(x.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, g, u, h, low, *tensors = ctx.saved_tensors
        dy = grads[0].reshape(rows.shape)
        dx, *small = torch.ops.tunesmith.gated_backward(dy, rows, g, u, h, low, tensors, ctx.scales)
        made = [grad.to(own.dtype) for grad, own in zip(small, tensors[3:], strict=True)]
        return dx.view(ctx.shape), None, None, None, *made, None, None, None


def _forward(x: Tensor, tensors: list[Tensor], scales: list[float]) -> tuple[Tensor, ...]:
    assert _library is not None
    x, tensors = rows_of(x), _masters(tensors)
    y, g, u, h, low = _results(x, tensors, scales)
    _library.gated_forward(
        ctypes.byref(_layers(tensors, scales)), *pointers(x),
        *sizes(x.stride(0), len(x), torch.get_num_threads()),
        *pointers(g, u, y, h, low, _packed(tensors, h, low)),
    )  # fmt: skip
    return y, g, u, h, low


def _backward(
    dy: Tensor,
    x: Tensor,
    g: Tensor,
    u: Tensor,
    h: Tensor,
    low: Tensor,
    tensors: list[Tensor],
    scales: list[float],
) -> tuple[Tensor, ...]:
    assert _library is not None
    dy, x, tensors = rows_of(dy), rows_of(x), _masters(tensors)
    dx, *small = _gradients(dy, x, g, u, h, low, tensors, scales)
    (e, d), threads = tensors[0].shape, torch.get_num_threads()
    ranks = [len(a) for a in tensors[3:6]]
    pair, down = (-(-rank // 16) * 16 for rank in (ranks[0] + ranks[1], ranks[2]))
    parts = scratch("gated parts", (threads * (pair * (d + 2 * e) + down * (d + e)),), small[0])
    _library.gated_backward(
        ctypes.byref(_layers(tensors, scales)), *pointers(dy, x),
        *sizes(dy.stride(0), x.stride(0), len(x), threads), *pointers(g, u, h, low, dx),
        _array(small[:3]), _array(small[3:]), *pointers(_packed(tensors, h, low), parts),
    )  # fmt: skip
    return dx, *small


def _masters(tensors: list[Tensor]) -> list[Tensor]:
    return [*tensors[:3], *(t.float().contiguous() for t in tensors[3:])]


def _layers(tensors: list[Tensor], scales: list[float]) -> _Layers:
    """Where they lie; whoever calls keeps the tensors."""
    weights, a, b = tensors[:3], tensors[3:6], tensors[6:]
    strides, turned = zip(*map(layout_of, weights), strict=True)
    e, d = weights[0].shape
    return _Layers(
        _array(weights), _array(a), _array(b), strides, turned, tuple(map(len, a)), tuple(scales), d, e
    )


def _array(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * 3)(*(t.data_ptr() for t in tensors))


def _packed(tensors: list[Tensor], h: Tensor, low: Tensor) -> Tensor:
    """Room for the weights and the small matrices as the library multiplies them."""
    e, d = tensors[0].shape
    return scratch("gated packed", (3 * d * e + h.shape[1] * (d + 2 * e) + low.shape[1] * (d + e),), h)


def _results(x: Tensor, tensors: list[Tensor], _scales: list[float]) -> tuple[Tensor, ...]:
    """Room for what _forward gives: y [T, D], g and u [T, E], h [U, P], low [U, Q]."""
    ranks = [a.shape[0] for a in tensors[3:6]]
    tokens, e = x.shape[0], tensors[0].shape[0]
    whole, pair, down = (-(-size // WHOLE) * WHOLE for size in (tokens, ranks[0] + ranks[1], ranks[2]))
    return (
        x.new_empty(x.shape), x.new_empty((tokens, e)), x.new_empty((tokens, e)), x.new_empty((whole, pair)),
        x.new_empty((whole, down)),
    )  # fmt: skip


def _gradients(
    _dy: Tensor, x: Tensor, _g: Tensor, _u: Tensor, _h: Tensor, _low: Tensor, tensors: list[Tensor], _: Any
) -> tuple[Tensor, ...]:
    """Room for what _backward gives: dx [T, D], and in fp32 those of the a's and b's."""
    return x.new_empty(x.shape), *(t.new_empty(t.shape, dtype=torch.float32) for t in tensors[3:])


linear_native.register(
    ("gated_forward", "Tensor x, Tensor[] tensors, float[] scales",
     "(Tensor, Tensor, Tensor, Tensor, Tensor)", _forward, _results),
    ("gated_backward",
     "Tensor dy, Tensor x, Tensor g, Tensor u, Tensor h, Tensor low, Tensor[] tensors, float[] scales",
     "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", _backward, _gradients),
)  # fmt: skip
