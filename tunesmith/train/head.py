"""The loss over hidden states: the output head on some label tokens at a time, full logits never exist.

The gradient is formed on the way forward, while a chunk's logits are still in the cache: two products instead
of the three of computing them again, and nothing of size N x V is kept. That is possible because a loss is a
sum: the gradient that comes back is one number, a factor.

    z = cap tanh(scale (h W^T + bias + s (h A^T) B^T) / cap)        what of this a model has: `head_of`
    loss = sum over label tokens of  logsumexp(z) - (1 - e) z[label] - e mean(z)       e: label smoothing

Compiled training in bf16 takes a plain frozen head in one call where the processor has products
in bf16 (model/head_native.py).

A head that isn't understood (a family not listed, another module, a hook on it) has no `Head`; the caller
then asks the model for its logits at label positions (forward.label_logits).

Shapes: N label tokens, D hidden size, V vocabulary, R rank of a LoRA on the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.model import head_native
from tunesmith.model.fused_lora import at_work, product_dtype
from tunesmith.model.peft_parts import PeftModel, lora

ROWS = 256
"""Label tokens in a chunk: 49,152 logits of so many rows still fit a large cache."""
WEIGHT_ROWS = 1024
"""With a trained head: label tokens in one product of its gradient, which is then added in fp32."""

# Rows of the products are filled up to a multiple of this: oneDNN makes code for each shape and keeps it.
ROW_MULTIPLE = 64

# Proved by tests/train/test_head.py: the model's logits are its head on its decoder's last hidden state, with
# nothing but the head's own scale and cap in between.
PROVED = (
    "llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "gpt2",
    "gemma2", "smollm3", "olmo2", "granite", "starcoder2", "glm4", "phi", "gpt_neox", "cohere",
    "qwen3_moe", "olmoe",
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """What turns a hidden state into logits. `a` and `b` are a LoRA's matrices, `lora_scale` its factor."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    a: Tensor | None = None  # [R, D]
    b: Tensor | None = None  # [V, R]
    lora_scale: float = 0.0
    scale: float = 1.0
    cap: float | None = None


def head_of(model: nn.Module) -> tuple[nn.Module, Head] | None:
    """The decoder below the head, and the head; None where the head isn't understood."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    config = getattr(whole, "config", None)
    if getattr(config, "model_type", None) not in PROVED:
        return None
    decoder, layer = cast(nn.Module, whole.base_model), cast(Any, whole).get_output_embeddings()
    if decoder is whole or layer is None or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    scale, cap = _scale(config), getattr(config, "final_logit_softcapping", None)
    if type(layer) is nn.Linear:
        return decoder, Head(layer.weight, layer.bias, scale=scale, cap=cap)
    if not isinstance(layer, lora.Linear) or type(base := layer.get_base_layer()) is not nn.Linear:
        return None
    if layer.disable_adapters and not layer.merged:
        return decoder, Head(base.weight, base.bias, scale=scale, cap=cap)
    if (name := at_work(layer)) is None:
        return None
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return decoder, Head(base.weight, base.bias, a, b, layer.scaling[name], scale, cap)


def why_full(model: nn.Module) -> str | None:
    """Why the loss takes the logits of all labels of a pass at once; None where it goes chunk by chunk."""
    if head_of(model) is not None:
        return None
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    family = getattr(getattr(whole, "config", None), "model_type", None)
    if family not in PROVED:
        return f"the head of the {family} family isn't proved"
    return "the output head isn't a plain layer with at most a plain LoRA"


def head_loss(
    hidden: Tensor, targets: Tensor, head: Head, label_smoothing: float = 0.0, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, summed over label tokens; hidden [N, D], targets [N].

    The second result [N] is the loss of each by itself, not smoothed; it has no gradient. `fused` compiles
    what lies between the products into one loop (needs a C++ compiler); same results.
    """
    wanted = torch.is_grad_enabled()
    if _native(hidden, head, label_smoothing):
        found = _NativeLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head, targets, label_smoothing, wanted and hidden.requires_grad
        )
    else:
        plain = head.scale == 1.0 and head.cap is None
        function = _compiled() if fused else _in_place if plain else _chunk_loss
        chunk = partial(function, wanted=wanted, scale=head.scale, cap=head.cap, smoothing=label_smoothing)
        found = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, head.a, head.b, targets, head.lora_scale, chunk, wanted
        )
    return cast(tuple[Tensor, Tensor], found)


def _native(hidden: Tensor, head: Head, smoothing: float) -> bool:
    """Whether the head is one for the library, and it is in use."""
    return (
        head.bias is None
        and head.a is None
        and not head.weight.requires_grad
        and product_dtype(hidden) is hidden.dtype
        and head_native.fits(hidden, head.weight, head.cap, smoothing)
    )


def _chunk_loss(
    logits: Tensor, targets: Tensor, *, wanted: bool, scale: float, cap: float | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk of raw logits [n, V], which turn into their own gradient if that is wanted, and
    the loss [n] of each label.
    """
    z = logits.float()
    if scale != 1.0:
        z = z * scale
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    log_p = torch.log_softmax(z, -1)
    size = logits.shape[-1]
    each = -log_p.gather(1, targets[:, None])[:, 0]
    loss = (1 - smoothing) * each.sum()
    if smoothing:
        loss = loss - smoothing / size * log_p.sum()
    if wanted:
        label = torch.arange(size, device=logits.device) == targets[:, None]
        grad = log_p.exp() - torch.where(label, 1 - smoothing + smoothing / size, smoothing / size)
        if cap is not None:
            grad = grad * (1 - (z / cap) ** 2)
        logits.copy_(grad * scale)
    return loss, each


def _in_place(
    logits: Tensor, targets: Tensor, *, wanted: bool, scale: float, cap: float | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """`_chunk_loss` for a head without scale and cap, in few passes where nothing fuses them."""
    assert scale == 1.0
    assert cap is None
    size, label = logits.shape[-1], targets[:, None]
    p = torch.log_softmax(logits, -1, dtype=torch.float32)
    each = -p.gather(1, label)[:, 0]
    loss = (1 - smoothing) * each.sum()
    if smoothing:
        loss -= smoothing / size * p.sum()
    if wanted:
        p.exp_().scatter_add_(1, label, p.new_full((1, 1), smoothing - 1).expand_as(label))
        logits.copy_(p.sub_(smoothing / size) if smoothing else p)
    return loss, each


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_chunk_loss, dynamic=True)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        targets: Tensor,
        lora_scale: float,
        chunk_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            total, each, grads = _forward(
                hidden.to(dtype), (weight, bias, a, b), targets, lora_scale, chunk_loss,
                [wanted and needed for needed in ctx.needs_input_grad[:5]],
            )  # fmt: skip
        ctx.formats = [None if t is None else t.dtype for t in (hidden, weight, bias, a, b)]
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            None if grad is None else (grad * factors[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.formats, strict=True)
        ]
        return *grads, None, None, None, None


class _NativeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, smoothing: float, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        total, each, grad = head_native.head_loss(
            hidden, head.weight, targets, head.scale, head.cap, smoothing, wanted=wanted
        )
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * factors[0], None, None, None, None


def _forward(
    hidden: Tensor,
    masters: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    targets: Tensor,
    lora_scale: float,
    chunk_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The summed loss, each label's own [N], and the gradients of the sum for (hidden, weight, bias, a, b):
    fp32 for the weights' own.
    """
    weight, bias, a, b = (None if t is None else t.to(hidden.dtype) for t in masters)
    assert weight is not None
    total = torch.zeros((), device=hidden.device)
    each = torch.empty(len(targets), device=hidden.device)
    own = [
        None if t is None or not want else torch.zeros(t.shape, device=t.device)
        for t, want in zip(masters, wanted[1:], strict=True)
    ]
    rows = WEIGHT_ROWS if own[0] is not None else ROWS
    real = len(hidden)
    hidden = functional.pad(hidden, (0, 0, 0, -real % ROW_MULTIPLE))
    # One buffer for all chunks: fresh memory costs more than a product reads of it.
    buffer = hidden.new_empty(min(rows, len(hidden)), weight.shape[0])
    into = hidden.new_empty(hidden.shape) if wanted[0] else None
    for start in range(0, len(hidden), rows):
        h = hidden[start : start + rows]
        y = targets[start : start + rows]
        z = torch.mm(h, weight.t(), out=buffer[: len(h)])
        if bias is not None:
            z.add_(bias)
        low = None
        if a is not None and b is not None:
            low = h @ a.t()
            z.addmm_(low, b.t(), alpha=lora_scale)
        for at in range(0, len(y), ROWS):
            end = min(at + ROWS, len(y))
            loss, each[start + at : start + end] = chunk_loss(z[at:end], y[at:end])
            total += loss  # from here on z is its own gradient
        z[len(y) :] = 0
        if into is not None:
            torch.mm(z, weight, out=into[start : start + rows])
        if own[0] is not None:
            own[0] += z.t() @ h
        if own[1] is not None:
            own[1] += z.sum(0, dtype=torch.float32)
        if low is not None and a is not None and b is not None:
            back = z @ b
            if into is not None:
                into[start : start + rows].addmm_(back, a, alpha=lora_scale)
            if own[2] is not None:
                own[2].add_((back.t() @ h).float(), alpha=lora_scale)
            if own[3] is not None:
                own[3].add_((z.t() @ low).float(), alpha=lora_scale)
    return total, each, [None if into is None else into[:real], *own]


def _scale(config: Any) -> float:
    """Granite divides its logits by a number, Cohere multiplies them by one."""
    if config.model_type == "granite":
        return 1 / float(config.logits_scaling)
    return float(config.logit_scale) if config.model_type == "cohere" else 1.0
