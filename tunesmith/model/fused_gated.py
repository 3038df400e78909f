"""Gated feed-forward blocks whose three layers have plain LoRA, as one function where a kernel computes that.

Only inside gated_native.using: everywhere else, and wherever a block isn't exactly that, its own forward runs
over its layers as they are. A block is known by its class's forward: the very operations of `_as_usual`,
whatever the family calls it.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, ClassVar, NamedTuple, cast

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from tunesmith.model import gated_native
from tunesmith.model.fused_lora import FusedLinear, applies_to_all, at_work, product_dtype


def fuse(model: nn.Module) -> None:
    """Give every such block below `model` the fused forward."""
    for block in model.modules():
        if not isinstance(block, FusedGated) and _is_gated(block):
            kind: Any = type(block)
            block.__class__ = _fused(kind)


def unfuse(model: nn.Module) -> None:
    """Back to their own forward everywhere."""
    for block in model.modules():
        if isinstance(block, FusedGated):
            own: Any = block.plain
            block.__class__ = own


class FusedGated:
    """Marks a block with the fused forward; `plain` is the class that it was."""

    plain: ClassVar[type[nn.Module]]
    act_fn: Any
    gate_proj: Any
    up_proj: Any
    down_proj: Any

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        if not gated_native.in_use() or not _is_silu(self.act_fn):
            own: Tensor = cast(Any, super()).forward(x)
            return own
        found = [_plain_lora(layer) for layer in (self.gate_proj, self.up_proj, self.down_proj)]
        loras = [lora for lora in found if lora is not None]
        rows = x.to(product_dtype(x))
        weights = [lora.weight for lora in loras]
        ranks = [len(lora.a) for lora in loras]
        known = len(loras) == len(found) and applies_to_all()
        if not known or not gated_native.fits(rows, weights, ranks):
            out: Tensor = cast(Any, super()).forward(x)
            return out
        return gated_native.gated(
            rows,
            weights,
            [lora.a for lora in loras],
            [lora.b for lora in loras],
            [lora.scale for lora in loras],
        )


class _LoRA(NamedTuple):
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float


def _plain_lora(layer: nn.Module) -> _LoRA | None:
    """What a layer computes that is frozen, without a bias, with one adapter at work; else None.

    Asked in every pass: PEFT may have merged it, taken it out, or hung something on it since.
    """
    if type(layer) is not FusedLinear or type(base := layer.get_base_layer()) is not nn.Linear:
        return None
    if base.bias is not None or base.weight.requires_grad:
        return None
    if _has_hooks(layer) or _has_hooks(base):
        return None
    if (name := at_work(layer)) is None:
        return None
    return _LoRA(base.weight, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _has_hooks(part: nn.Module) -> bool:
    return any((part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks))


def _is_silu(act_fn: nn.Module) -> bool:
    return type(act_fn) in (nn.SiLU, SiLUActivation) and not _has_hooks(act_fn)


def _as_usual(self: Any, x: Tensor) -> Tensor:
    down_proj: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj


def _is_gated(block: nn.Module) -> bool:
    """Whether this is such a block over layers with LoRA."""
    forward, usual = getattr(type(block).forward, "__code__", None), _as_usual.__code__
    return (
        forward is not None
        and (forward.co_code, forward.co_names, forward.co_argcount)
        == (usual.co_code, usual.co_names, usual.co_argcount)
        and _is_silu(cast(Any, block).act_fn)
        and all(
            type(getattr(block, name, None)) is FusedLinear for name in ("gate_proj", "up_proj", "down_proj")
        )
    )


@cache
def _fused(plain: Hashable) -> Any:
    assert isinstance(plain, type)
    return type(f"Fused{plain.__name__}", (FusedGated, plain), {"plain": plain})
