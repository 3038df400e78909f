"""Bases held in 4 or 8 bits: NF4 (QLoRA) and int8 weights by bitsandbytes, multiplied here.

    y = x W'^T + b + s (x A^T) B^T         W' = unpack(codes, scales), in the product's number format

bitsandbytes quantises and unpacks; transformers puts its layers into the model. The products are ours: W' is
unpacked in the forward pass and again in the backward pass, and nothing of its size is kept in between. That
is one rule for training, evaluation and answers, on any device. bitsandbytes' own layers have several: on a
CPU they repack 4-bit weights at the first evaluation, and have no gradient afterwards (`gemv_4bit` has no
autograd kernel); int8 layers also round the activations, in some of the passes.

Embeddings and output head stay as they are. Source: Dettmers et al. 2023, arXiv 2305.14314 (NF4, double
quantisation); 2022, arXiv 2208.07339 (int8). Shapes: D and E are a layer's input and output
size, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from tunesmith.device import DTYPES, Device
from tunesmith.errors import MissingExtraError, ModelError, SettingsError
from tunesmith.model import linear_native, weights
from tunesmith.model.config import QuantizationSettings
from tunesmith.model.fused_lora import Fused, at_work, low_rank_first
from tunesmith.model.peft_parts import see_bitsandbytes

BLOCK, SCALES_BLOCK = 64, 256
"""Weights to a 4-bit scale, and scales to a scale of theirs, as bitsandbytes has it."""
LEAST_SHARE = 0.5
_SAMPLED_LAYERS = 8


class Layout(NamedTuple):
    """How a layer's pieces become its weight [E, D]; `dtype` is that of the product."""

    kind: str
    shape: tuple[int, int]
    dtype: torch.dtype


@dataclass(frozen=True)
class Outline:
    """How many numbers of a model would be quantised, how many decoder weights not, and all others."""

    quantised: int
    left_out: dict[str, int]
    others: int


def bitsandbytes_config(settings: QuantizationSettings, device: Device) -> BitsAndBytesConfig:
    """What transformers needs to load a base so. Raises MissingExtraError, SettingsError."""
    if not installed():
        raise MissingExtraError(f"quantization {settings.type}", "bitsandbytes", "quant")
    see_bitsandbytes()
    if settings.type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type,
        bnb_4bit_use_double_quant=settings.double_quant is not False,
        bnb_4bit_compute_dtype=compute_dtype(settings, device),
    )


def installed() -> bool:
    """Whether bitsandbytes is there."""
    try:
        return find_spec("bitsandbytes") is not None
    except ValueError:  # switched off in sys.modules
        return False


def compute_dtype(settings: QuantizationSettings, device: Device) -> torch.dtype:
    """The number format of products with quantised weights. Raises SettingsError for fp16 on a CPU."""
    if settings.compute_dtype == "auto":
        return device.dtype
    if settings.compute_dtype == "fp16" and device.kind == "cpu":
        raise SettingsError(
            "quantization.compute_dtype fp16 needs a GPU; this machine computes on its CPU.",
            fix="Use quantization.compute_dtype=auto, bf16 or fp32.",
        )
    return DTYPES[settings.compute_dtype]


def outline(config: PretrainedConfig) -> Outline:
    """What quantisation would do to a model, from its config alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kept = set(get_keys_to_not_convert(model))
    layers = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and name not in kept
    }
    apart = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    apart |= {f"{name}.weight" for name in kept}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    quantised = sum(size for name, size in sizes.items() if name in layers)
    left = {
        name: p.numel()
        for name, p in model.named_parameters()
        if p.ndim > 1 and name not in layers and name not in apart
    }
    return Outline(quantised, left, sum(sizes.values()) - quantised)


def check_support(name: str, config: PretrainedConfig, found: Outline) -> None:
    """Raise ModelError for a family most of whose weights aren't in layers that bitsandbytes can hold."""
    left = sum(found.left_out.values())
    if found.quantised < LEAST_SHARE * (found.quantised + left):
        share = left / (found.quantised + left) if left else 1.0
        kinds = sorted({key.removesuffix(".weight").rpartition(".")[2] for key in found.left_out})
        raise ModelError(
            f"{name}: the {config.model_type} family can't be quantised: {share:.0%} of its layers' weights "
            "aren't in linear layers.",
            details=kinds,
            fix="Leave quantization out, or use a model of another family.",
        )


def held_bytes(found: Outline, settings: QuantizationSettings, width: int) -> int:
    """Bytes of the loaded model; numbers that aren't quantised take `width`."""
    if settings.type == "int8":
        each = 1.0
    elif settings.double_quant is not False:
        each = 0.5 + (1 + 4 / SCALES_BLOCK) / BLOCK
    else:
        each = 0.5 + 4 / BLOCK
    return int(found.quantised * each) + found.others * width


def take_over(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every layer of bitsandbytes in a loaded model our products, in `dtype`."""
    own = _layer_classes()
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if (to := own.get(type(layer))) is not None:
            layer.pieces, layer.layout = _pieces(layer, dtype)
            layer.__class__ = to


def quantised_layers(model: nn.Module) -> dict[str, Quantised]:
    """Every quantised layer by its name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Quantised)}


def relative_error(model: nn.Module, folder: Path) -> float | None:
    """|W' - W| / |W| over a few layers, against the model's files; None where names differ there."""
    stored = weights.tensors(folder)
    pairs = list(_stored_pairs(model, stored))
    error = size = 0.0
    for layer, key in pairs[:: max(1, len(pairs) // _SAMPLED_LAYERS)][:_SAMPLED_LAYERS]:
        with safe_open(stored[key].file, framework="pt") as handle:
            exact = handle.get_tensor(key).float()
        if layer.source_cls is Conv1D:
            exact = exact.t()
        error += float((layer.dense(torch.float32).cpu() - exact).square().sum())
        size += float(exact.square().sum())
    return (error / size) ** 0.5 if size else None


def unpack(layout: Layout, pieces: tuple[Tensor, ...]) -> Tensor:
    """The weight [E, D] in the layout's format.

    NF4: codes, scales, and for scales that are quantised themselves their offset, table and scales.
    int8: codes and one scale a row.
    """
    if layout.kind == "int8":
        codes, scales = pieces
        # By 127, as bitsandbytes quantised: the largest of a row is 127.
        return codes.float().mul_(scales[:, None] / 127).to(layout.dtype)
    codes, scales, *nested = pieces
    if nested:
        offset, table, outer = nested
        scales = torch.ops.bitsandbytes.dequantize_blockwise(
            scales, outer, table, SCALES_BLOCK, torch.float32
        )
        scales = scales + offset
    # Block by block: with rows of 32 or 48 columns, say, bitsandbytes' AVX-512 kernel takes wrong scales.
    flat = torch.ops.bitsandbytes.dequantize_4bit(
        codes, scales, BLOCK, "nf4", (scales.numel(), BLOCK), layout.dtype
    )
    e, d = layout.shape
    out: Tensor = flat.flatten()[: e * d].view(e, d)
    return out


class Quantised:
    """What our products add to a layer of bitsandbytes."""

    fused_lora: type
    pieces: tuple[Tensor, ...]
    layout: Layout
    bias: Tensor | None
    source_cls: type

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [E, D] that the layer stands for."""
        return unpack(self.layout._replace(dtype=dtype or self.layout.dtype), self.pieces)

    # PEFT asks a layer with a weight of this name (HQQ's) to unpack itself: DoRA needs its norms.
    W_q = property(lambda self: self.weight)

    def dequantize(self) -> Tensor:
        """The same, as PEFT asks for it."""
        return self.dense()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., E], in the format of x."""
        dtype = self.layout.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        out: Tensor = _Product.apply(x.to(dtype), bias, self.layout, *self.pieces)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)


class FusedQuantised(Fused):
    """What the fused forward adds to PEFT's LoRA layer over a quantised one."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., D] -> [..., E], in the format of x."""
        name = None if args or kwargs else at_work(self)
        if name is None:
            plain: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return plain
        base = self.get_base_layer()
        dtype = base.layout.dtype
        bias = None if base.bias is None else base.bias.to(dtype)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        out: Tensor = _LoRAProduct.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), bias, a, b, self.scaling[name], base.layout, *base.pieces
        )
        return out.to(x.dtype)

    def merge(self, *_: Any, **__: Any) -> None:
        """Refused: what was learnt is smaller than what 4 or 8 bits can tell apart."""
        raise ModelError(
            "An adapter can't be merged into a quantised base: much of it would be rounded away.",
            fix="Load the base without quantization, put the adapter on it, and merge there.",
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layout: Layout, *pieces: Tensor) -> Tensor:
        ctx.save_for_backward(*pieces)
        ctx.layout = layout
        return F.linear(x, unpack(layout, pieces), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx = grads[0] @ unpack(ctx.layout, ctx.saved_tensors)
        return dx, None, None, *(None for _ in ctx.saved_tensors)


class _LoRAProduct(torch.autograd.Function):
    """fused_lora's function with a weight that is unpacked twice instead of kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        layout: Layout,
        *pieces: Tensor,
    ) -> Tensor:
        rows, weight = x.reshape(-1, x.shape[-1]), unpack(layout, pieces)
        ctx.native = linear_native.fits(rows, weight)
        if ctx.native:
            y, h = linear_native.forward(rows, weight, bias, a, b, scale)
            ctx.save_for_backward(rows, a, b, h, *pieces)
        else:
            small_a, small_b = a.to(x.dtype), b.to(x.dtype)
            h = rows @ small_a.t()
            y = low_rank_first(h, small_b.t(), scale, rows, weight.t(), bias)
            ctx.save_for_backward(rows, small_a, small_b, h, *pieces)
        ctx.scale, ctx.shape, ctx.formats, ctx.layout = scale, x.shape, (a.dtype, b.dtype), layout
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, b, h, *pieces = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        if ctx.native:
            weight, wanted = unpack(ctx.layout, tuple(pieces)), ctx.needs_input_grad[0]
            back, *small = linear_native.backward(dy, rows, weight, a, b, h, ctx.scale, wanted)
            own = (grad.to(dtype) for grad, dtype in zip(small, ctx.formats, strict=True))
            return back.view(ctx.shape) if wanted else None, None, *own, None, None, *(None for _ in pieces)
        dh = dy @ b
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            weight = unpack(ctx.layout, tuple(pieces))
            dx = low_rank_first(dh, a, ctx.scale, dy, weight).view(ctx.shape)
        if ctx.needs_input_grad[2]:
            da = (dh.t() @ rows).to(ctx.formats[0]) * ctx.scale
        if ctx.needs_input_grad[3]:
            db = (dy.t() @ h).to(ctx.formats[1]) * ctx.scale
        return dx, None, da, db, None, None, *(None for _ in pieces)


@cache
def _layer_classes() -> dict[type, type]:
    """Our class for each of bitsandbytes', which are there only where it is installed."""
    import bitsandbytes as bnb
    from peft.tuners.lora import bnb as peft_bnb

    classes: dict[type, type] = {}
    for layer, lora_layer in (
        (bnb.nn.Linear4bit, peft_bnb.Linear4bit),
        (bnb.nn.Linear8bitLt, peft_bnb.Linear8bitLt),
    ):
        fused = type(lora_layer.__name__, (FusedQuantised, lora_layer), {"plain": lora_layer})
        classes[layer] = type(layer.__name__, (Quantised, layer), {"fused_lora": fused})
    return classes


def _pieces(layer: Any, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Layout]:
    """A layer's tensors, as plain ones that share memory with it, and how to read them."""
    weight, shape = layer.weight, (layer.out_features, layer.in_features)
    if weight.dtype is torch.int8:
        return (weight.data, weight.SCB), Layout("int8", shape, dtype)
    state = weight.quant_state
    assert (state.quant_type, state.blocksize) == ("nf4", BLOCK), "as bitsandbytes_config asks"
    whole = state.absmax.numel() * BLOCK // 2  # two codes a byte; the last block is filled up
    codes = weight.data.flatten()
    pieces: tuple[Tensor, ...] = (F.pad(codes, (0, whole - codes.numel())), state.absmax)
    if state.nested:
        assert state.state2.blocksize == SCALES_BLOCK
        pieces = (*pieces, state.offset, state.state2.code, state.state2.absmax)
    return pieces, Layout("nf4", shape, dtype)


def _stored_pairs(model: nn.Module, stored: dict[str, weights.Tensor]) -> Iterator[tuple[Quantised, str]]:
    """Quantised layers with the name of their weight in the model's files, where the family keeps it."""
    for name, layer in quantised_layers(model).items():
        # Some files leave out the name of the decoder in front.
        for key in (f"{name}.weight", f"{name.partition('.')[2]}.weight"):
            if key in stored:
                e, d = layer.layout.shape
                if stored[key].shape == ((d, e) if layer.source_cls is Conv1D else (e, d)):
                    yield layer, key
                    break
