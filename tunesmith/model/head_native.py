"""The loss at a frozen output head in C++ (head_cpu.cpp), for processors with products in bf16.

Built and used as attention_native is: by compiled training in bf16 alone. torch writes a chunk's logits,
reads and writes them again, and multiplies what it made of them; here 32 rows of them exist at a time, in a
core's cache, and the weight is read once. Where results differ from torch's they are nearer to the exact
ones: no logit is rounded.

Shapes: N label tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tunesmith.model import native
from tunesmith.model.native import pointers, sizes
from tunesmith.model.native import supported as supported

SOURCES = native.sources("head")
WHOLE = 32
"""Hidden size and vocabulary must be multiples of this."""
SUMS = 48 * 2**20
"""Bytes that all threads' sums of the gradient may take: as many rows meet the weight at a time."""
FEWEST_ROWS = 128
"""Fewer at a time would spend too long on laying out the weight."""

WIDEST = 2048
"""Hidden sizes beyond leave so few columns of the weight in the cache that torch's products are faster."""

_library: ctypes.CDLL | None = None


def build(compiler: str) -> ctypes.CDLL:
    """The library, compiled (3 s) unless the cache has it. Raises ModelError with the compiler's words."""
    return native.build("head", SOURCES, compiler)


@contextmanager
def using(library: ctypes.CDLL | None) -> Iterator[None]:
    """Losses at the head by the library inside, where it can; None changes nothing."""
    global _library
    before = _library
    _library = library or _library
    try:
        yield
    finally:
        _library = before


def fits(hidden: Tensor, weight: Tensor, cap: float | None, smoothing: float) -> bool:
    """Whether the library is in use and computes the loss of hidden states [N, D] under a weight [V, D]."""
    v, d = weight.shape
    return (
        _library is not None
        and hidden.device.type == "cpu"
        and hidden.dtype is weight.dtype is torch.bfloat16
        and len(hidden) > 0
        and v > 0 < d <= WIDEST
        and v % WHOLE == d % WHOLE == 0
        and weight.stride(1) == 1
        and _rows(d) >= FEWEST_ROWS
        and not (cap is not None and smoothing)  # its own sum over the vocabulary, which isn't taken
    )


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: float = 1.0,
    cap: float | None = None,
    smoothing: float = 0.0,
    *,
    wanted: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Summed loss and each label's own [N], not smoothed, in fp32; and the sum's gradient [N, D] if wanted.

    hidden [N, D], weight [V, D], targets [N]. Raises IndexError for a target that isn't in the vocabulary.
    """
    assert _library is not None
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    targets = targets.to(torch.int64).contiguous()
    (n, d), v = hidden.shape, len(weight)
    total, each = torch.empty(()), torch.empty(n)
    gradient = hidden.new_empty(n, d) if wanted else None
    done = _library.head_loss(
        *pointers(hidden, weight, targets), *sizes(hidden.stride(0), weight.stride(0), n, d, v),
        *(ctypes.c_float(number) for number in (scale, cap or 0.0, smoothing)),
        *sizes(_rows(d), torch.get_num_threads()), *pointers(total, each, gradient),
    )  # fmt: skip
    if not done:
        raise IndexError(f"A target isn't in the vocabulary of {v:,}.")
    return total, each, gradient


def _rows(d: int) -> int:
    return SUMS // (4 * d * torch.get_num_threads()) // WHOLE * WHOLE
