"""The adapter put into the weights of its base: W' = round(W + s B A), in fp32 and rounded once.

PEFT's own merge computes each layer (LoRA, rsLoRA, DoRA, embeddings, Conv1D), on a copy of the layer's weight
in fp32; only one layer at a time is held so. What shares its weight with another layer gets one of its own
first: a tuned output head must not change the embeddings, nor the embeddings the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.peft_parts import PeftModel, lora

UNTIED = (
    "Embeddings and output head shared their weights in the base; one of them was tuned, so each has its own "
    "now (tie_word_embeddings: false). The model is larger by one of them."
)


def merge(tuned: PeftModel, note: Callable[[str], None] = lambda _: None) -> PreTrainedModel:
    """The base with the adapter in its weights, in the number format that the base is held in; `tuned` is
    used up.

    Raises ModelError where a merged weight isn't finite.
    """
    layers = [(name, module) for name, module in tuned.named_modules() if isinstance(module, lora.LoraLayer)]
    with torch.no_grad():
        for name, layer in layers:
            _merge_layer(name, layer)
        kept = _formats(tuned)
        model = cast(PreTrainedModel, cast(Any, tuned.base_model).unload())
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(False)
            if parameter.is_floating_point():  # copies of whole layers that were trained are fp32
                parameter.data = parameter.data.to(kept.get(parameter_name, model.dtype))
        check_finite(model)
        if _untie(model):
            note(UNTIED)
    return model


def _merge_layer(name: str, layer: Any) -> None:
    base = layer.get_base_layer()
    own = base.weight
    # A new Parameter, so that a layer that shares this weight keeps it as it was.
    base.weight = nn.Parameter(own.detach().to(torch.float32), requires_grad=False)
    bias = getattr(base, "bias", None)
    if bias is not None:
        base.bias = nn.Parameter(bias.detach().to(torch.float32), requires_grad=False)
    try:
        layer.merge(safe_merge=True)
    except ValueError:
        raise ModelError(
            f"The adapter's layer {name} merges into numbers that aren't finite.",
            fix="The adapter is broken: use an earlier checkpoint, or train again.",
        ) from None
    base.weight = nn.Parameter(base.weight.data.to(own.dtype), requires_grad=False)
    if bias is not None:
        base.bias = nn.Parameter(base.bias.data.to(bias.dtype), requires_grad=False)


def check_finite(model: PreTrainedModel) -> None:
    """Raise ModelError that names the weights that hold what is no finite number."""
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not torch.isfinite(parameter).all()
    ]
    if broken:
        raise ModelError(
            f"Weights don't fit into {str(model.dtype).removeprefix('torch.')}, or are broken: "
            f"{', '.join(broken[:5])}" + (f" and {len(broken) - 5} more." if len(broken) > 5 else "."),
            fix="Use --dtype bf16 or f32.",
        )


def _formats(tuned: PeftModel) -> dict[str, torch.dtype]:
    """The number format that each weight has in the base, by its name there."""
    found = {}
    for name, parameter in tuned.get_base_model().named_parameters():
        if ".modules_to_save." not in name:
            found[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = parameter.dtype
    return found


def _untie(model: PreTrainedModel) -> bool:
    """Whether a base that tied embeddings and head holds two different ones now; its config then says so."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    text = model.config.get_text_config()
    if outer is None or not text.tie_word_embeddings or inner.weight is outer.weight:
        return False
    if torch.equal(cast(Any, inner.weight), cast(Any, outer.weight)):
        outer.weight = inner.weight
        return False
    for config in (model.config, text):
        config.tie_word_embeddings = False
    model.tie_weights()  # makes transformers' own list of tied weights anew: empty now
    return True
