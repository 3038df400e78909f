"""The attention of training: over a pack of segments, its cost the sum of their squares, never the pack's.

`segment_attention(model)` switches a model to it; generation keeps what the model was loaded with. The
segments (data/batch.py) travel as the attention mask, [1, 1, S, 3]: transformers hands a mask of four
dimensions to every layer as it is, and an implementation that doesn't know what they are stops at their shape
instead of letting rows see each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.model import attention_cuda, attention_kernels, attention_masked, attention_native
from tunesmith.model.families import SEGMENTS, can_pack
from tunesmith.model.segments import plan


def can_segment(model: nn.Module) -> tuple[bool, str]:
    """(True, "") where training can use this attention, else (False, why, in one line)."""
    possible, why = can_pack(model.config)
    if not possible:
        return False, why
    if rate := _rates(model).get("attention"):
        return False, f"the model drops {rate:.0%} of its attention"
    device = next(model.parameters()).device
    if device.type == "cuda":
        kind, why = _cuda_kind(model, shared=False)
        return kind is not None, "" if kind else why
    if device.type not in ("cpu", "meta"):  # meta: a plan of shapes alone
        return False, f"there is no kernel of ours for {device.type}"
    return True, ""


def describe(model: nn.Module, dtype: torch.dtype, *, sharing: bool) -> str | None:
    """One line on the kernel that a GPU computes this attention with; None on a CPU, which has but ours."""
    if next(model.parameters()).device.type != "cuda":
        return None
    kind, why = _cuda_kind(model, shared=sharing, dtype=dtype)
    return attention_cuda.describe(kind, why) if kind else None


def can_share(model: nn.Module) -> tuple[bool, str]:
    """(True, "") where rows may share a prefix: noise would be drawn once instead of once per row."""
    possible, why = can_segment(model)
    if not possible:
        return False, why
    if _rates(model) or any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return False, "with dropout each row draws its own noise"
    return True, ""


@contextmanager
def segment_attention(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Train on packs of segments inside; forward and backward passes, which may run layers again."""
    config: Any = model.config
    before = config._attn_implementation
    if on:
        config._attn_implementation = SEGMENTS
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.library.custom_op("tunesmith::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    """q [T, H, D], k and v [T, K, D], segments [S, 3] -> out [T, H, D], lse [T, H] in fp32.

    lse is the logarithm of the softmax's denominator. A token sees the last `window` positions of its row,
    itself among them (0: all). Scores are q k `scale`, capped as `softcap` tanh(score / softcap) (0: not).
    """
    blocks = plan(segments, q.shape[1], k.shape[1])
    if softcap or 0 < window < blocks.longest_row:
        return attention_masked.forward(q, k, v, blocks, scale, window, softcap)
    if attention_native.fits(q):
        return attention_native.forward(q, k, v, segments, scale)
    return attention_kernels.forward(q, k, v, blocks, scale)


@attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("tunesmith::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their shapes."""
    blocks = plan(segments, q.shape[1], k.shape[1])
    if softcap or 0 < window < blocks.longest_row:
        return attention_masked.backward(dout, q, k, v, out, lse, blocks, scale, window, softcap)
    if attention_native.fits(q):
        return attention_native.backward(dout, q, k, v, out, lse, segments, scale)
    return attention_kernels.backward(dout, q, k, v, out, lse, blocks, scale)


@attention_backward.register_fake
def _(_dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, segments, ctx.scale, ctx.window, ctx.softcap = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, segments)


def _backward(ctx: Any, dout: Tensor | None, _dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 7
    q, k, v, out, lse, segments = ctx.saved_tensors
    grads = attention_backward(dout, q, k, v, out, lse, segments, ctx.scale, ctx.window, ctx.softcap)
    return (*grads, None, None, None, None)


attention.register_autograd(_backward, setup_context=_save)


def _attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]."""
    assert attention_mask is not None, "no segments given"
    assert attention_mask.dtype is torch.int64, "a mask in place of segments"
    assert not dropout, "attention dropout isn't supported"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Over fp32 masters queries and keys come in fp32 (rotary, norms), values in bf16. Autocast, which would
    # bring them together, doesn't know this operation.
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    if query.is_cuda:
        given = (attention_mask, scale, sliding_window or 0, softcap or 0.0)
        return attention_cuda.attend(q, k, v, *given)[None], None
    out, _lse = attention(q, k, v, attention_mask[0, 0], scale, sliding_window or 0, softcap or 0.0)
    return out[None], None


def _cuda_kind(
    model: nn.Module, *, shared: bool, dtype: torch.dtype = torch.bfloat16
) -> tuple[attention_cuda.Kind | None, str]:
    config: Any = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    softcap = getattr(config, "attn_logit_softcapping", None) or 0.0
    machine = attention_cuda.machine(next(model.parameters()).device.index)
    return attention_cuda.choose(machine, dtype, size, softcap=softcap, shared=shared)


def _rates(model: nn.Module) -> dict[str, float]:
    """The dropout rates of a model's config that aren't zero, that of its attention by this name."""
    config: Any = model.config
    names = {"attention_dropout": "attention", "attn_pdrop": "attention"}
    others = ("resid_pdrop", "embd_pdrop", "hidden_dropout", "residual_dropout", "embedding_dropout")
    names |= {name: name for name in others}
    return {kind: rate for name, kind in names.items() if (rate := getattr(config, name, None))}


AttentionInterface.register(SEGMENTS, _attend)
AttentionMaskInterface.register(SEGMENTS, lambda *_args, **_kwargs: None)
