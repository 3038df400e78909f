"""Out of memory: how it looks, what is asked for beforehand, and what is known to be untouched after it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import lacks_memory
from tunesmith.failpoints import reach
from tunesmith.train.optim import Together

PLACES = {
    "forward": "the forward pass",
    "backward": "the backward pass",
    "optimizer": "the optimizer's step",
}


class OutOfMemory(Exception):
    """Memory ran out in a part of a step (of PLACES), over these examples, before any weight was moved."""

    def __init__(self, place: str, rows: Sequence[int]) -> None:
        super().__init__(f"out of memory in {PLACES[place]}")
        self.place, self.rows = PLACES[place], tuple(rows)


@contextmanager
def watched(place: str, rows: Sequence[int]) -> Iterator[None]:
    """Turn a lack of memory inside into OutOfMemory."""
    try:
        reach(f"memory.{place}")
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemory(place, rows) from None


def reserve(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> None:
    """Ask once for what a step of the optimizer takes, and give it back: better now than when half the
    weights are moved.

    That is two averages for each tensor that has none yet, and temporary copies: of all tensors at once on a
    GPU, of one at a time on a CPU.
    """
    sizes = [p.numel() * p.element_size() for p in trained]
    new = sum(2 * size for p, size in zip(trained, sizes, strict=True) if not _state(optimizer, p))
    on_gpu = any(p.device.type != "cpu" for p in trained)
    copies = 2 * sum(sizes) if on_gpu else 3 * max(sizes, default=0)
    if new + copies:
        torch.empty(new + copies, dtype=torch.uint8, device=trained[0].device)


def versions(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Numbers that stay the same while no weight and no state is written; None where nothing tells."""
    if not all(type(part).__module__.startswith("torch.optim") for part in _parts(optimizer)):
        return None  # kernels of another library write past torch's counters
    states = [
        value._version
        for p in trained
        for value in _state(optimizer, p).values()
        if isinstance(value, Tensor)
    ]
    # States that a step has only just made, and not yet written to, are at version 0.
    return (*(p._version for p in trained), sum(states))


def give_back() -> None:
    """Let go of what a failed pass still held."""
    gc.collect()
    # The C library keeps what is freed, in pieces that a large tensor doesn't fit into.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():  # untested here
        torch.cuda.empty_cache()


def _parts(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, Together) else (optimizer,)


def _state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Any]:
    return next((part.state[tensor] for part in _parts(optimizer) if tensor in part.state), {})
