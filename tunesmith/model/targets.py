"""Which layers are tuned: the names that a job gives, checked against the model.

LoRA on `all` takes every linear layer but the output head, and what PEFT can't tune as what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError, SettingsError
from tunesmith.model.config import AdapterSettings

# In a mixture PEFT 0.21 takes these names, of dense layers too, for the experts' before transformers 5.
_EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
# PEFT 0.21 refuses this layer in these families.
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_MAMBA_NAMES = ("out_proj",)


def check_names(outline: PreTrainedModel, settings: AdapterSettings) -> None:
    """Raise SettingsError for wrong targets or layers, by a model without weights (load.outline)."""
    if settings.uses_peft:
        chosen(outline, settings)
    elif settings.type == "freeze":
        last_layers(outline, settings)


def chosen(model: PreTrainedModel, settings: AdapterSettings) -> dict[str, nn.Module]:
    """The layers that the job names. Raises SettingsError that lists every wrong name and the right ones."""
    linear = linear_layers(model)
    if settings.targets == "all":
        return linear
    wanted = (settings.targets,) if isinstance(settings.targets, str) else settings.targets
    head, tied = model.get_output_embeddings(), bool(model.config.get_text_config().tie_word_embeddings)
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    problems = []
    for target in wanted:
        matches = {n: m for n, m in modules.items() if n == target or n.endswith("." + target)}
        usable = {n: m for n, m in matches.items() if isinstance(m, nn.Linear | Conv1D)}
        if target.rpartition(".")[2] in _refused(model):
            problems.append(f"{target}: PEFT can't tune it in this family; LoRA leaves {untuned(model)}")
        elif not matches:
            problems.append(f"{target}: the model has no layer of this name")
        elif not usable:
            problems.append(f"{target}: not a linear layer ({type(next(iter(matches.values()))).__name__})")
        elif tied and head in usable.values():
            problems.append(f"{target}: the output head shares its weights with the embeddings in this model")
        found |= usable
    if problems:
        names = sorted({name.rpartition(".")[2] for name in linear})
        raise SettingsError(
            "adapter.targets names layers that can't be tuned.",
            details=problems,
            fix=f"Use all, or names of linear layers; this model has {', '.join(names)}.",
        )
    return found


def shortest_names(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Last parts of names (q_proj) where they mean exactly these layers, else full names."""
    short = {name.rpartition(".")[2] for name in layers}
    meant = {
        name for name, _ in model.named_modules() if any(name == s or name.endswith("." + s) for s in short)
    }
    return sorted(short) if meant == set(layers) else sorted(layers)


def last_layers(model: nn.Module, settings: AdapterSettings) -> list[nn.Module]:
    """The layers that type freeze trains. Raises SettingsError where the model has fewer."""
    layers, wanted = decoder_layers(model), settings.last_layers or 1
    if wanted > len(layers):
        raise SettingsError(
            f"adapter.last_layers is {wanted}, but the model has {len(layers)} layers.",
            fix=f"Use at most {len(layers)}.",
        )
    return list(layers[-wanted:])


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its full name, except the output head and what PEFT refuses (`_refused`)."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    taken = _refused(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and name.rpartition(".")[2] not in taken
    }


def untuned(model: nn.Module) -> str | None:
    """Which weights LoRA on `all` leaves as they are, beside norms, embeddings and head; None: no others."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if experts := sum(p.numel() for p in expert_weights(model).values()):
        share = experts / sum(p.numel() for p in model.parameters())
        return f"the experts and their router, {share:.0%} of the model"
    if refused := _refused(model):
        return f"{', '.join(refused)} of the Mamba layers, whose kernels read these weights directly"
    return None


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all experts of a layer, [experts, out, in], by their full name; empty elsewhere."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model, with an adapter or without, in order. Raises ModelError where there are none."""
    count = cast(Any, model).config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"The layers of a {type(model).__name__} weren't found.", fix="Use adapter.type lora or full."
    )


def _refused(model: nn.Module) -> tuple[str, ...]:
    """Names of linear layers that PEFT doesn't take as what they are in this model."""
    if expert_weights(model):
        return _EXPERT_NAMES
    return _MAMBA_NAMES if getattr(getattr(model, "config", None), "model_type", None) in _MAMBA else ()
