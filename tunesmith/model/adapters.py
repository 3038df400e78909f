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
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.device import available_memory
from tunesmith.errors import ModelError
from tunesmith.model import fused_gated, fused_lora, saved, targets
from tunesmith.model.config import AdapterSettings
from tunesmith.model.load import require_free
from tunesmith.model.peft_parts import LoraConfig, PeftModel, TaskType, get_peft_model

# Weight, gradient and AdamW's two averages, in fp32.
_BYTES_PER_TRAINED = 16


def prepare(
    model: PreTrainedModel, settings: AdapterSettings, *, seed: int, base_fingerprint: str
) -> PreTrainedModel | PeftModel:
    """Make `model` trainable as `settings` say; the base keeps its number format, what is trained is fp32.

    The same seed gives the same bytes; torch's own random state is left as it was.

    Raises SettingsError: a target that doesn't exist (lists those that do), more layers than there are.
    ModelError: an adapter to continue that belongs to another base or differs from the job. PlanError where
    memory can't do.
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
    fused_gated.fuse(tuned)
    return tuned


def save(
    model: PreTrainedModel | PeftModel,
    renderer_save: Callable[[Path], None],
    folder: Path,
    *,
    meta: Mapping[str, Any],
) -> None:
    """Write an adapter in PEFT's format, or the whole model, with tokenizer, template and tunesmith.json.

    `folder` exists and is empty (disk.new_folder makes and renames it). What was written is read back and
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


def attach_several(model: PreTrainedModel, folders: Sequence[Path]) -> PeftModel:
    """Put several saved adapters on one base, for answers; the first one is at work until `switch` says else.

    Each answers as it would alone on the base, to the bit. Raises as `attach`, before any is put on.
    """
    found = [saved.adapter_folder(folder) for folder in folders]
    # While the base is bare: its layers are what the adapters' tensors are held against.
    configs = [_checked_config(model, folder, None) for folder in found]
    tuned: Any = model
    for at, (folder, config) in enumerate(zip(found, configs, strict=True)):
        tuned = _load_adapter(tuned, folder, config, trainable=False, name=_slot(at))
    switch(tuned, 0)
    fused_lora.fuse(tuned)
    return cast(PeftModel, tuned.eval())


def switch(model: nn.Module, at: int) -> None:
    """Let the adapter that `attach_several` put on as number `at` work, and no other."""
    cast(Any, model).set_adapter(_slot(at), inference_mode=True)


def _slot(at: int) -> str:
    # PEFT finds an adapter's tensors by its name anywhere in theirs: none may be a part of another.
    return f"adapter-{at:03}" if at else "default"


def trainable_count(model: nn.Module) -> tuple[int, int]:
    """(trained numbers, all numbers); tied weights count once, packed 4-bit ones each for itself."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(map(_numbers, parameters))


def _numbers(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()


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


def _new(model: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    layers = targets.chosen(model, settings)
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
        target_modules=targets.shortest_names(model, layers),
        use_rslora=settings.rslora,
        use_dora=settings.type == "dora",
        init_lora_weights=True if settings.init == "default" else settings.init,
        # GPT-2's Conv1D holds its weight as [in, out]; quantised it doesn't, but its adapter may go on.
        fan_in_fan_out=any(
            isinstance(layer, Conv1D) or getattr(layer, "source_cls", None) is Conv1D
            for layer in layers.values()
        ),
    )
    return cast(PeftModel, get_peft_model(model, config))


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
        trained = targets.last_layers(model, settings)
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
    if (chosen := set(targets.chosen(model, settings))) != tuned:
        wanted["targets"] = sorted({name.rpartition(".")[2] for name in chosen})
        if wanted["targets"] == own["targets"]:
            wanted["targets"], own["targets"] = sorted(chosen), sorted(tuned)
    if different := [key for key in own if own[key] != wanted[key]]:
        was = saved.read_meta(folder).get("adapter") or {}
        why = (
            f" It was trained with init={was['init']}, rank {was['rank']}, alpha {_shown(was['alpha'])}, "
            "and is kept as a plain LoRA of twice the rank and alpha, which fits the original base."
            if str(was.get("init", "default")) != "default"
            else ""
        )
        raise ModelError(
            f"The adapter to continue, {folder}, differs from the job.{why}",
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


def _load_adapter(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    config: LoraConfig,
    *,
    trainable: bool,
    name: str = "default",
) -> PeftModel:
    """The model with one more adapter, under a name of PEFT's."""
    # PEFT fills new layers with random numbers before it reads the file; nobody's random state should move.
    try:
        with torch.random.fork_rng(devices=_cuda(model)), _without_known_warnings():
            options: dict[str, Any] = {"is_trainable": trainable, "torch_device": str(model.device)}
            if isinstance(model, PeftModel):
                tuned = model
                tuned.load_adapter(str(folder), name, **options)
            else:
                tuned = PeftModel.from_pretrained(model, str(folder), name, config=config, **options)
    except Exception as error:  # whatever a hand-made config makes PEFT stumble over
        raise ModelError(
            f"The adapter {folder} can't be read: {type(error).__name__}: {error}.",
            fix="Copy the adapter again, or save it with a current version of peft.",
        ) from error
    if lost := saved.unread(tuned, folder, name):
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
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
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
