"""Plain LoRA as one autograd function: the base's product and the low-rank one in a single pass.

    y = x W^T + b + s (x A^T) B^T          W, b frozen; A and B are fp32 masters

PEFT's own forward takes six operations for this, keeps each one's input for the backward pass, turns x into
fp32 on the way, and adds to a result that is already rounded to bf16. Here x, h = x A^T and the two small
matrices are kept; the backward pass is written out:

    dh = dy B        dx = dy W + s dh A        dA = s dh^T x        dB = s dy^T h

PEFT builds, saves, merges, disables and mixes adapters as before: a layer only gets this subclass of its
class. Whatever isn't exactly one plain adapter at work (dropout, DoRA, several adapters, merged, disabled, a
bias of its own, a trained base) goes through PEFT's forward. Quantised bases bring their own class
(quantize.py).

Source: Hu et al. 2021, arXiv 2106.09685. Shapes: T tokens, D and E the layer's input and output size, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.model import linear_native
from tunesmith.model.peft_parts import lora


def fuse(model: nn.Module) -> None:
    """Give every plain LoRA layer below `model` the fused forward."""
    for layer in model.modules():
        if not isinstance(layer, lora.LoraLayer) or isinstance(layer, Fused):
            continue
        base = layer.get_base_layer()
        # Exactly PEFT's class on exactly these bases: a layer of another kind may be a subclass of nn.Linear.
        if type(layer) is lora.Linear and type(base) in (nn.Linear, Conv1D):
            layer.__class__ = FusedLinear
        elif (own := getattr(base, "fused_lora", None)) is not None:
            layer.__class__ = own


def unfuse(model: nn.Module) -> None:
    """Back to PEFT's forward everywhere."""
    for layer in model.modules():
        if isinstance(layer, Fused):
            layer.__class__ = layer.plain


def why_not(model: nn.Module) -> str | None:
    """Why some LoRA layer goes through PEFT's forward in training, for the first one that does; else None."""
    for layer in model.modules():
        if not isinstance(layer, lora.Linear):
            continue
        if not isinstance(layer, FusedLinear):
            return f"{type(layer.get_base_layer()).__name__} layers have no other"
        for name in layer.active_adapters:
            if name in layer.lora_variant:
                kind = type(layer.lora_variant[name]).__name__.removesuffix("LinearVariant")
                return f"{kind.replace('Dora', 'DoRA')} has no other"
            if isinstance(dropout := layer.lora_dropout[name], nn.Dropout) and dropout.p > 0:
                return "with adapter.dropout each layer draws its own noise"
        if len(layer.active_adapters) > 1 or layer.merged:
            return "it is one of several, or merged"
    return None


def at_work(layer: lora.Linear) -> str | None:
    """The name of the one plain adapter that acts on this layer's input now; None for anything else."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name: str = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    dropout = layer.lora_dropout[name]
    if isinstance(dropout, nn.Dropout) and dropout.p > 0 and layer.training:
        return None
    return name


def is_idle(layer: lora.Linear) -> bool:
    """Whether the layer is its base alone now: adapters are off, or those at work have no matrices here."""
    if layer.disable_adapters:
        return True
    return not layer.merged and not any(name in layer.lora_A for name in layer.active_adapters)


def own_masters(model: nn.Module) -> set[int]:
    """Ids of the fp32 masters that fused layers bring into the base's number format by themselves."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Fused)]
    return {
        id(part[name].weight)
        for layer in layers
        if (name := at_work(layer)) and not layer.base_layer.weight.requires_grad
        for part in (layer.lora_A, layer.lora_B)
    }


def product_dtype(x: Tensor) -> torch.dtype:
    """The number format in which a product with x is taken: autocast's, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def can_mix(model: nn.Module) -> bool:
    """Whether tokens with and without the adapter may be in one forward pass (`only_for`)."""
    layers = [layer for layer in model.modules() if isinstance(layer, lora.LoraLayer)]
    return bool(layers) and all(type(layer) is FusedLinear and at_work(layer) for layer in layers)


_tokens: Tensor | None = None


def applies_to_all() -> bool:
    """Whether adapters act on all tokens now, as they do outside `only_for`."""
    return _tokens is None


@contextmanager
def only_for(tokens: Tensor | None) -> Iterator[None]:
    """The adapter acts only on tokens that are 1 in `tokens` [T], not on those that are 0; None: on all.

    For answers alone, and only where `can_mix` holds: no gradients are taken inside.
    """
    global _tokens
    before, _tokens = _tokens, tokens
    try:
        yield
    finally:
        _tokens = before


class Fused:
    """Marks a LoRA layer with a fused forward; `plain` is PEFT's class that it was."""

    plain: ClassVar[type]
    base_layer: Any
    lora_A: Any
    lora_B: Any
    scaling: Any
    get_base_layer: Any


class FusedLinear(Fused, lora.Linear):  # type: ignore[misc]
    """PEFT's LoRA layer with the fused forward, where that applies."""

    plain = lora.Linear

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., D] -> [..., E]."""
        name = None if args or kwargs else at_work(self)
        base = self.get_base_layer()
        dtype = product_dtype(x)
        if name is None or base.weight.requires_grad or base.weight.dtype is not dtype:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        if _tokens is not None:
            rows = x.to(dtype).flatten(0, -2)
            h = rows @ a.to(dtype).t() * _tokens.to(dtype)[:, None]
            y = low_rank_first(h, b.to(dtype).t(), self.scaling[name], rows, weight.t(), base.bias)
            return y.view(*x.shape[:-1], -1)
        x = x.to(dtype)
        linear = linear_native.lora_linear if linear_native.fits(x, weight) else lora_linear
        return linear(x, weight, base.bias, a, b, self.scaling[name])


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x [..., D], weight [E, D] and bias [E] in x's format; a [R, D], b [E, R] in any -> [..., E]."""
    out: Tensor = _LoRALinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return out


# The compiler turns addmm_ into addmm, which copies its first operand: 4 % of a step. It leaves this alone.
# Registered by hand: a `custom_op` that writes into an argument costs 0.1 ms a call, as much as the product.
_library = torch.library.Library("tunesmith", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("add_product_(Tensor(a!) total, Tensor left, Tensor right) -> ()")  # type: ignore[no-untyped-call]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.addmm_(left, right)


_library.impl("add_product_", _add_product, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("tunesmith::add_product_", lambda *_: None)


def low_rank_first(
    h: Tensor, small: Tensor, scale: float, rows: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """scale h small + rows weight + bias; h [T, R], small [R, N], rows [T, K], weight [K, N].

    The low-rank part, which is small, is rounded by itself; the large one is added to it in fp32 and rounded
    with it. The other way round what is below half a step of bf16, as most of a LoRA at first, would be lost.
    """
    h = h * scale
    total = h @ small if bias is None else torch.addmm(bias, h, small)
    if torch.compiler.is_compiling():
        torch.ops.tunesmith.add_product_(total, rows, weight)
    else:
        total.addmm_(rows, weight)
    return total


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # Once per call: for small matrices that costs less than keeping copies in step with their masters.
        small_a, small_b = a.to(x.dtype), b.to(x.dtype)
        h = rows @ small_a.t()
        y = low_rank_first(h, small_b.t(), scale, rows, weight.t(), bias)
        ctx.save_for_backward(rows, weight, small_a, small_b, h)
        ctx.scale, ctx.shape, ctx.formats = scale, x.shape, (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, h = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dh = dy @ b
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = low_rank_first(dh, a, ctx.scale, dy, weight).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            da = (dh.t() @ rows).to(ctx.formats[0]) * ctx.scale
        if ctx.needs_input_grad[4]:
            db = (dy.t() @ h).to(ctx.formats[1]) * ctx.scale
        return dx, None, None, da, db, None
