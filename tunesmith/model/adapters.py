"""What is tuned: LoRA and its kin, every weight, or only the last layers; and how it is saved and used again.

PEFT's parts: the adapter layers of LoRA, rsLoRA, DoRA and PiSSA with their forward, the adapter file format,
the conversion of a PiSSA adapter into a LoRA for the original base, and switching an adapter off. Ours: which
layers are tuned, the checks of names, ranks and bases, seeds, number formats, full and freeze, a faster
forward for plain LoRA (fused_lora.py), and the check that what was saved reads back equal (saved.py).

What is trained is held in fp32, whatever the base is held in: an update is often smaller than bf16 can add.
PEFT sees to that for adapters (autocast_adapter_dtype).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.device import available_memory
from tunesmith.errors import ModelError
from tunesmith.model import fused_lora, saved
from tunesmith.model.config import AdapterSettings
from tunesmith.model.load import require_free

# Weight, gradient and AdamW's two averages, in fp32.
_BYTES_PER_TRAINED = 16
# In a mixture PEFT 0.21 takes these names, of dense layers too, for the experts' before transformers 5.
_EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
# PEFT 0.21 refuses this layer in these families.
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_MAMBA_NAMES = ("out_proj",)


def prepare(
    model: PreTrainedModel, settings: AdapterSettings, *, seed: int, base_fingerprint: str
) -> PreTrainedModel | PeftModel:
    """Make `model` trainable as `settings` say; the base keeps its number format, what is trained is fp32.

    The same seed gives the same bytes; torch's own random state is left as it was.

    Raises ModelError: a target that doesn't exist (lists those that do), more layers than there are, an
    adapter to continue that belongs to another base or differs from the job. PlanError where memory can't do.
    """
    if not settings.uses_peft:
        return _unfreeze(model, settings)
    with _seeded(model, seed), _without_known_warnings():
        tuned = (
            _continued(model, settings, base_fingerprint) if settings.continue_from else _new(model, settings)
        )
    if settings.init != "default":
        tuned.pissa_initial = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.requires_grad}
    fused_lora.fuse(tuned)
    return tuned


def save(
    model: PreTrainedModel | PeftModel,
    renderer_save: Callable[[Path], None],
    folder: Path,
    *,
    meta: Mapping[str, Any],
) -> None:
    """Write an adapter in PEFT's format, or the whole model, with tokenizer, template and tunesmith.json.

    `folder` exists and is empty (rundir.new_folder makes and renames it). What was written is read back and
    compared, bit by bit; a difference raises ModelError.
    """
    if isinstance(model, PeftModel):
        _save_adapter(model, folder, meta)
    else:
        saved.write_model(model, folder)
    renderer_save(folder)
    (folder / saved.META).write_text(json.dumps(dict(meta), ensure_ascii=False, indent=1), encoding="utf-8")


def attach(model: PreTrainedModel, folder: Path, *, base_fingerprint: str | None = None) -> PeftModel:
    """Put a saved adapter (its folder, or its run's) on a base, for answers: nothing is trainable, eval mode.

    Raises ModelError: no adapter there, only a pickle, a type that isn't LoRA, or another base, by
    fingerprint (where both are known) and by the shape of every tensor.
    """
    folder = saved.adapter_folder(folder)
    config = _checked_config(model, folder, base_fingerprint)
    tuned = _load_adapter(model, folder, config, trainable=False).eval()
    fused_lora.fuse(tuned)  # the forward that it was trained with: the same bits
    return tuned


def trainable_count(model: nn.Module) -> tuple[int, int]:
    """(trained numbers, all numbers); tied weights count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The base answers inside; without an adapter nothing changes."""
    if not isinstance(model, PeftModel):
        yield
    elif (initial := getattr(model, "pissa_initial", None)) is not None:
        # PiSSA took the adapter's start out of the base's weights: base = what is left + that start.
        now = {name: p.detach().clone() for name, p in model.named_parameters() if name in initial}
        _put(model, initial)
        try:
            yield
        finally:
            _put(model, now)
    else:
        with model.disable_adapter():
            yield


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
        share = experts / trainable_count(model)[1]
        return f"the experts and their router, {share:.0%} of the model"
    if refused := _refused(model):
        return f"{', '.join(refused)} of the Mamba layers, whose kernels read these weights directly"
    return None


def _refused(model: nn.Module) -> tuple[str, ...]:
    """Names of linear layers that PEFT doesn't take as what they are in this model."""
    if expert_weights(model):
        return _EXPERT_NAMES
    return _MAMBA_NAMES if getattr(getattr(model, "config", None), "model_type", None) in _MAMBA else ()


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all experts of a layer, [experts, out, in], by their full name; empty elsewhere."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name}


def _new(model: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    layers = _targets(model, settings)
    if settings.init != "default":
        smallest = min(int(n) for layer in layers.values() for n in cast(torch.Tensor, layer.weight).shape)
        if settings.rank > smallest:
            raise ModelError(
                f"adapter.rank {settings.rank} is too large for PiSSA: a target has only {smallest} rows.",
                fix=f"Use a rank of at most {smallest}, or init=default.",
            )
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=_shortest_names(model, layers),
        use_rslora=settings.rslora,
        use_dora=settings.type == "dora",
        init_lora_weights=True if settings.init == "default" else settings.init,
        # GPT-2's Conv1D holds its weight as [in, out].
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    return cast(PeftModel, get_peft_model(model, config))


def _targets(model: PreTrainedModel, settings: AdapterSettings) -> dict[str, nn.Module]:
    """The layers that the job names. Raises ModelError that lists every wrong name and the right ones."""
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
        raise ModelError(
            "adapter.targets names layers that can't be tuned.",
            details=problems,
            fix=f"Use all, or names of linear layers; this model has {', '.join(names)}.",
        )
    return found


def _shortest_names(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Last parts of names (q_proj) where they mean exactly these layers, else full names."""
    short = {name.rpartition(".")[2] for name in layers}
    meant = {
        name for name, _ in model.named_modules() if any(name == s or name.endswith("." + s) for s in short)
    }
    return sorted(short) if meant == set(layers) else sorted(layers)


def _unfreeze(model: PreTrainedModel, settings: AdapterSettings) -> PreTrainedModel:
    """All weights trainable, or those of the last decoder layers; what is trained becomes fp32."""
    if settings.continue_from:
        raise ModelError(
            f"adapter.continue_from goes with lora and dora, not with {settings.type}.",
            fix=f"Give the earlier model as model: {settings.continue_from}/model.",
        )
    trained: list[nn.Module] = [model]
    if settings.type == "freeze":
        model.requires_grad_(False)
        layers, wanted = decoder_layers(model), settings.last_layers or 1
        if wanted > len(layers):
            raise ModelError(
                f"adapter.last_layers is {wanted}, but the model has {len(layers)} layers.",
                fix=f"Use at most {len(layers)}.",
            )
        trained = list(layers[-wanted:])
    parameters = [p for module in trained for p in module.parameters()]
    held = sum(p.numel() * p.element_size() for p in parameters)
    needed = sum(p.numel() for p in parameters) * _BYTES_PER_TRAINED - held
    if model.device.type != "meta":  # there only shapes are asked for (train/dryrun.py)
        require_free(
            f"Training with adapter.type {settings.type}", needed, available_memory(model.device.type)
        )
    for module in trained:
        module.float().requires_grad_(True)
    model.tie_weights()
    return model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model, with an adapter or without, in order. Raises ModelError where there are none."""
    count = cast(Any, model).config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"The layers of a {type(model).__name__} weren't found.", fix="Use adapter.type lora or full."
    )


def _continued(model: PreTrainedModel, settings: AdapterSettings, base_fingerprint: str) -> PeftModel:
    """An earlier adapter, to be trained further as it is: a job that differs from it is refused."""
    folder = saved.adapter_folder(Path(settings.continue_from or "").expanduser())
    config = _checked_config(model, folder, base_fingerprint)
    tuned = saved.tuned_layers(folder)
    own = {
        "type": "dora" if config.use_dora else "lora",
        "rank": config.r,
        "alpha": config.lora_alpha,
        "rslora": config.use_rslora,
        "init": "default",
        "targets": sorted({name.rpartition(".")[2] for name in tuned}),
    }
    wanted = settings.model_dump(include=set(own)) | {"targets": own["targets"]}
    if (targets := set(_targets(model, settings))) != tuned:
        wanted["targets"] = sorted({name.rpartition(".")[2] for name in targets})
        if wanted["targets"] == own["targets"]:
            wanted["targets"], own["targets"] = sorted(targets), sorted(tuned)
    if different := [key for key in own if own[key] != wanted[key]]:
        raise ModelError(
            f"The adapter to continue, {folder}, differs from the job.",
            details=[
                f"{k}: the adapter has {_shown(own[k])}, the job {_shown(wanted[k])}" for k in different
            ],
            fix="Set " + ", ".join(f"adapter.{key}={_shown(own[key])}" for key in different) + ".",
        )
    config.lora_dropout = settings.dropout
    return _load_adapter(model, folder, config, trainable=True)


def _checked_config(model: PreTrainedModel, folder: Path, base_fingerprint: str | None) -> LoraConfig:
    """The adapter's config, after everything that could be wrong with it was looked at."""
    config = saved.read_lora_config(folder)
    saved.check_base(folder, base_fingerprint)
    if problems := saved.mismatches(model, folder):
        raise ModelError(
            f"The adapter {folder} belongs to another base than {model.name_or_path}.",
            details=problems,
            fix=f"Use it with its own base: {saved.base_of(folder, config)}.",
        )
    return config


def _load_adapter(model: PreTrainedModel, folder: Path, config: LoraConfig, *, trainable: bool) -> PeftModel:
    # PEFT fills new layers with random numbers before it reads the file; nobody's random state should move.
    try:
        with torch.random.fork_rng(devices=_cuda(model)), _without_known_warnings():
            tuned = PeftModel.from_pretrained(
                model, str(folder), config=config, is_trainable=trainable, torch_device=str(model.device)
            )
    except Exception as error:  # whatever a hand-made config makes PEFT stumble over
        raise ModelError(
            f"The adapter {folder} can't be read: {type(error).__name__}: {error}.",
            fix="Copy the adapter again, or save it with a current version of peft.",
        ) from error
    if lost := saved.unread(tuned, folder):
        raise ModelError(
            f"The adapter {folder} couldn't be read completely.",
            details=lost,
            fix="Save it again with a current version of peft.",
        )
    return cast(PeftModel, tuned)


def _save_adapter(model: PeftModel, folder: Path, meta: Mapping[str, Any]) -> None:
    config = model.peft_config["default"]
    config.base_model_name_or_path = model.get_base_model().name_or_path
    config.revision = meta.get("revision") if meta.get("kind") == "hub" else None
    initial: dict[str, torch.Tensor] | None = getattr(model, "pissa_initial", None)
    # save_embedding_layers would ask the hub for the base's config.
    options: dict[str, Any] = {"save_embedding_layers": False}
    start = folder / "start"
    if initial is not None:
        saved.write_tensors(start, {name.replace(".default.", "."): p for name, p in initial.items()})
        options["path_initial_model_for_weight_conversion"] = str(start)
    with torch.random.fork_rng(devices=_cuda(model)), _without_known_warnings():
        model.save_pretrained(str(folder), **options)
    shutil.rmtree(start, ignore_errors=True)
    saved.tidy_adapter(folder)
    saved.verify_adapter(model, folder, initial)


def _put(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=_cuda(model)):
        torch.manual_seed(seed)
        yield


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    """Warnings of PEFT's that say nothing to a person: an old name, and what is checked or done here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated")
        warnings.filterwarnings("ignore", message="PiSSA changes the base weights")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


def _cuda(model: nn.Module) -> list[torch.device]:
    return [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(value) + "]"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
