"""A linear layer with LoRA in C++ (linear_cpu.cpp), for processors with products in bf16.

Built and used as attention_native is: by compiled training in bf16 alone. torch takes one product for the
base and five thin ones for the adapter, each of which reads or writes all of x, y or their gradients again;
here they are taken while a block of rows is in the cache. And each result is rounded once: an update that is
smaller than half a step of bf16, as the first ones of a LoRA are, would be lost on a result already rounded.

Shapes: T tokens, D and E the layer's input and output size, R rank, P the rank filled up to whole 32s, U
tokens filled up to whole 32s.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunesmith.model import native
from tunesmith.model.attention_kernels import scratch
from tunesmith.model.native import pointers, sizes
from tunesmith.model.native import supported as supported

SOURCES = native.sources("linear")
WHOLE = 32
"""Input and output sizes must be multiples of this; ranks are filled up to one."""

_library: ctypes.CDLL | None = None
_in_use = False  # by itself: what is compiled depends on it, and the compiler can't look at a library


def build(compiler: str) -> ctypes.CDLL:
    """The library, compiled (2 s) unless the cache has it. Raises ModelError with the compiler's words."""
    return native.build("linear", SOURCES, compiler)


@contextmanager
def using(library: ctypes.CDLL | None) -> Iterator[None]:
    """Fused LoRA by the library inside, where it can; None changes nothing."""
    global _library, _in_use
    before = _library
    _library = library or _library
    _in_use = _library is not None
    try:
        yield
    finally:
        _library, _in_use = before, before is not None


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the library is in use and computes x [..., D] times a weight [E, D]."""
    e, d = weight.shape
    return (
        _in_use
        and x.device.type == "cpu"
        and x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.shape[-1] == d
        and e > 0 < d
        and e % WHOLE == d % WHOLE == 0
        and 1 in weight.stride()
    )


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x [..., D] and weight [E, D] in bf16; bias [E], a [R, D], b [E, R] in any format -> [..., E]."""
    out: Tensor = _LoRALinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return out


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """x [T, D], weight [E, D] -> y [T, E], h [U, P] = scale x a^T."""
    found: tuple[Tensor, Tensor] = torch.ops.tunesmith.lora_forward(x, weight, bias, a, b, scale)
    return found


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, h: Tensor, scale: float, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dy [T, E] -> dx [T, D] (empty unless wanted), and in fp32 da [R, D], db [E, R]."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.tunesmith.lora_backward(
        dy, x, weight, a, b, h, scale, wanted
    )
    return found


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, h = forward(rows, weight, bias, a, b, scale)
        ctx.save_for_backward(rows, weight, a, b, h)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, h = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        wanted = ctx.needs_input_grad[0]
        dx, da, db = backward(dy, rows, weight, a, b, h, ctx.scale, wanted)
        return dx.view(ctx.shape) if wanted else None, None, None, da.to(a.dtype), db.to(b.dtype), None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    assert _library is not None
    x, a, b = rows_of(x), a.float().contiguous(), b.float().contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    y, h = _results(x, weight, bias, a, b, scale)
    stride, turned = layout_of(weight)
    _library.linear_forward(
        *pointers(x, weight, bias, a, b), *sizes(x.stride(0), stride, turned, *x.shape, *b.shape),
        ctypes.c_float(scale), *sizes(torch.get_num_threads()), *pointers(y, h, _packed(weight, h)),
    )  # fmt: skip
    return y, h


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, h: Tensor, scale: float, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    assert _library is not None
    dy, x, a, b = rows_of(dy), rows_of(x), a.float().contiguous(), b.float().contiguous()
    dx, da, db = _gradients(dy, x, weight, a, b, h, scale, wanted)
    stride, turned = layout_of(weight)
    threads, tall = torch.get_num_threads(), -(-a.shape[0] // 16) * 16
    parts = scratch("linear parts", (threads * tall * sum(weight.shape),), da)
    _library.linear_backward(
        *pointers(dy, x, weight, a, b, h),
        *sizes(dy.stride(0), x.stride(0), stride, turned, *x.shape, *b.shape), ctypes.c_float(scale),
        *sizes(threads), *pointers(dx if wanted else None, da, db, _packed(weight, h), parts),
    )  # fmt: skip
    return dx, da, db


def _packed(weight: Tensor, h: Tensor) -> Tensor:
    """Room for the weight and the small matrices as the library multiplies them."""
    e, d = weight.shape
    return scratch("linear packed", (e * d + (e + d) * h.shape[1],), h)


def _results(x: Tensor, weight: Tensor, _bias: Tensor | None, a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Room for what _forward gives."""
    tokens, width = (-(-size // WHOLE) * WHOLE for size in (x.shape[0], a.shape[0]))
    return x.new_empty((x.shape[0], weight.shape[0])), x.new_empty((tokens, width))


def _gradients(
    _dy: Tensor, x: Tensor, _weight: Tensor, a: Tensor, b: Tensor, _h: Tensor, _scale: float, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what _backward gives."""
    dx = x.new_empty(x.shape if wanted else (0,))
    return dx, a.new_empty(a.shape, dtype=torch.float32), b.new_empty(b.shape, dtype=torch.float32)


def layout_of(weight: Tensor) -> tuple[int, bool]:
    """The stride of a row of the weight, or of its transpose where that is what stands in rows."""
    assert 1 in weight.stride(), "as it did when `fits` was asked"
    turned = weight.stride(1) != 1
    return weight.stride(0 if not turned else 1), turned


def rows_of(x: Tensor) -> Tensor:
    """x [T, D] with numbers of a row side by side."""
    return x if x.stride(1) == 1 else x.contiguous()


_operators = torch.library.Library("tunesmith", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(*operators: tuple[str, str, str, Callable[..., Any], Callable[..., Any]]) -> None:
    """Operators for compiled code: name, what it takes, what it gives, its function, room for its results.

    By hand: a `custom_op` costs 0.1 ms a call.
    """
    for name, takes, gives, do, room in operators:
        _operators.define(f"{name}({takes}) -> {gives}")  # type: ignore[no-untyped-call]
        _operators.impl(name, do, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"tunesmith::{name}", room)


register(
    ("lora_forward", "Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale",
     "(Tensor, Tensor)", _forward, _results),
    ("lora_backward",
     "Tensor dy, Tensor x, Tensor weight, Tensor a, Tensor b, Tensor h, float scale, bool wanted",
     "(Tensor, Tensor, Tensor)", _backward, _gradients),
)  # fmt: skip
