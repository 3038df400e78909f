"""Tuned weights as they lie on the disk: an adapter's folder or a whole model's, written, checked, read back.

An adapter's folder holds adapter_config.json and adapter_model.safetensors (PEFT's format), the tokenizer
with its template, and tunesmith.json: the base it was trained on, with its fingerprint, and the settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.model import weights
from tunesmith.model.checkpoints import check_no_checkpoint
from tunesmith.model.load import quiet
from tunesmith.model.peft_parts import LoraConfig, PeftModel, get_peft_model_state_dict

META = "tunesmith.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def adapter_folder(path: Path) -> Path:
    """The folder with an adapter: `path` itself, or a run's adapter/. Raises ModelError if there is none."""
    folder = path if (path / CONFIG).is_file() else path / "adapter"
    if not (folder / CONFIG).is_file():
        check_no_checkpoint(path)
        why = "it doesn't exist" if not path.is_dir() else f"it has no {CONFIG}, nor an adapter/ with one"
        if (path / "model").is_dir() or (path / "config.json").is_file():
            why = "it is a whole model"
        raise ModelError(
            f"{path} isn't an adapter: {why}.", fix="Give the folder of a run or of a PEFT adapter."
        )
    if not (folder / WEIGHTS).is_file():
        if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in weights.PICKLES):
            raise ModelError(
                f"The adapter {folder} has only pickled weights ({pickles[0]}), which can run any code.",
                fix="Where you trust it, load and save it with a current peft: it writes safetensors.",
            )
        raise ModelError(f"The adapter {folder} has no {WEIGHTS}.", fix="Copy the whole folder again.")
    return folder


def read_meta(folder: Path) -> dict[str, Any]:
    """tunesmith.json of an adapter or model folder; empty for one that another tool made."""
    file = folder / META
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is damaged: {error}.", fix="Restore it, or train again.") from None
    return content if isinstance(content, dict) else {}


def read_lora_config(folder: Path) -> LoraConfig:
    """An adapter's config. Raises ModelError for another type than LoRA and for a broken file."""
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("peft_type")
        if kind != "LORA":
            raise ModelError(
                f"{folder} is an adapter of type {kind!r}; tunesmith reads LORA (with DoRA, rsLoRA, PiSSA).",
                fix="Merge it into its base with peft, and use the merged model.",
            )
        # These make PEFT import a module by the name that the file gives.
        if content.get("megatron_config") is not None:
            raise ModelError(
                f"{file} asks for Megatron layers.", fix="Use an adapter of a transformers model."
            )
        config = LoraConfig.from_pretrained(str(folder))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{file} can't be read: {type(error).__name__}: {error}.", fix="Copy the adapter again."
        ) from None
    if config.bias != "none":
        raise ModelError(
            f"The adapter {folder} was trained with biases of its base as well (bias: {config.bias}), which "
            "tunesmith doesn't read.",
            fix="Merge it into its base with peft, and use the merged model.",
        )
    return cast(LoraConfig, config)


def base_of(folder: Path, config: LoraConfig) -> str:
    """What an adapter says that it was trained on."""
    return str(read_meta(folder).get("model") or config.base_model_name_or_path or "unknown")


def check_base(folder: Path, base_fingerprint: str | None) -> None:
    """Raise ModelError if the adapter was trained on another base than the one of this fingerprint."""
    meta = read_meta(folder)
    trained_on = meta.get("base_fingerprint")
    if base_fingerprint and trained_on and trained_on != base_fingerprint:
        raise ModelError(
            f"The adapter {folder} was trained on another base: {meta.get('model')} "
            f"(fingerprint {str(trained_on)[:12]}), not on this one ({base_fingerprint[:12]}).",
            fix=f"Use it with its own base: model: {meta.get('model')}.",
        )


def tuned_layers(folder: Path) -> set[str]:
    """Full names of the layers that an adapter's file holds LoRA matrices for."""
    keys = weights.read_header(folder / WEIGHTS)
    return {k.removeprefix(_PREFIX).partition(".lora_A.")[0] for k in keys if ".lora_A." in k}


def stands_beside_others(folder: Path) -> bool:
    """Whether an adapter holds nothing but matrices beside layers, so that PEFT can switch it and others.

    What has copies of whole layers, tokens of its own and the like is better left to a base of its own.
    """
    parts = (".lora_A.", ".lora_B.", ".lora_magnitude_vector")
    config = read_lora_config(folder)
    special = [getattr(config, name, None) for name in ("target_parameters", "alora_invocation_tokens")]
    return not any(special) and all(
        any(part in key for part in parts) for key in weights.read_header(folder / WEIGHTS)
    )


def mismatches(model: nn.Module, folder: Path) -> list[str]:
    """One line for each tensor of an adapter that doesn't fit the base; empty where all fit."""
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied head has its own name, too
    lines = []
    for key, tensor in weights.read_header(folder / WEIGHTS).items():
        name, dot, part = key.removeprefix(_PREFIX).partition(".lora_")
        layer = modules.get(name)
        if not dot:
            there = parameters.get(name)
            if there is None or tuple(there.shape) != tensor.shape:
                lines.append(f"{name}: {_shape(tensor.shape)} in the adapter, {_shape(there)} in the base")
        elif layer is None:
            lines.append(f"{name}: the base has no such layer")
        elif (sizes := _sizes(layer)) is None:
            lines.append(f"{name}: a {type(layer).__name__} in the base")
        else:
            line = _misfit(part, tensor.shape, *sizes)
            lines += [f"{name}: {line}"] if line else []
    return lines


def unread(model: PeftModel, folder: Path, name: str = "default") -> list[str]:
    """Tensors that are only in the file or only in the adapter that was loaded from it, or that differ."""
    stored = load_file(folder / WEIGHTS)
    loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    lines = [f"{key}: only in the file" for key in sorted(stored.keys() - loaded.keys())]
    lines += [f"{key}: missing in the file" for key in sorted(loaded.keys() - stored.keys())]
    return lines + [
        f"{key}: read differently"
        for key in sorted(stored.keys() & loaded.keys())
        if not torch.equal(loaded[key].cpu(), stored[key].to(loaded[key].dtype))
    ]


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """An adapter's tensors, as PEFT names them, in a new folder."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def tidy_adapter(folder: Path) -> None:
    """Make the written folder depend on nothing but the adapter: sorted names, and no empty model card."""
    # PEFT keeps target names in a set, whose order changes from process to process.
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if isinstance(content.get("target_modules"), list):
        content["target_modules"].sort()
    (folder / CONFIG).write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "README.md").unlink(missing_ok=True)


def verify_adapter(model: PeftModel, folder: Path, initial: Mapping[str, torch.Tensor] | None) -> None:
    """Read an adapter back and compare it with the model's. Raises ModelError with the tensors that differ.

    A PiSSA adapter (`initial`: its start) is saved as [A; A0] and [B, -B0]: what was added to the base.
    """
    stored = load_file(folder / WEIGHTS)
    wanted = {
        key: tensor.detach().cpu()
        for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    for name, start in (initial or {}).items():
        key = name.replace(".default.", ".")
        if ".lora_A." in key:
            wanted[key] = torch.cat([wanted[key], start.cpu()], dim=0)
        elif ".lora_B." in key:
            wanted[key] = torch.cat([wanted[key], -start.cpu()], dim=1)
    _raise_differences(folder / WEIGHTS, stored, wanted)


def write_model(model: PreTrainedModel, folder: Path, *, shard_bytes: int | None = None) -> None:
    """A whole model as safetensors, read back and compared; in files of `shard_bytes` at most, if given."""
    _make_generation_config_savable(model)
    with quiet():
        model.save_pretrained(folder, **({"max_shard_size": shard_bytes} if shard_bytes else {}))
    if len({p.dtype for p in model.parameters()}) > 1:
        # After freeze, the trained layers are fp32 in a bf16 model. transformers would read all of it in the
        # format that config.json names, and round what was learnt.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = model.state_dict()
    for name in [name for name in state if ".experts." in name]:
        state |= _single_experts(name, state[name])
    written: set[str] = set()
    for file in weights.weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                # A family may rename tensors while saving; those are transformers' own to keep right.
                if key in state:
                    _raise_differences(file, {key: handle.get_tensor(key)}, {key: state[key].detach().cpu()})
                    written.add(key)
    # Tied weights are written once, experts one by one: what begins in the same place is the same tensor.
    shared = {state[key].data_ptr() for key in written}
    if written and (
        lost := [key for key in state if key not in written and state[key].data_ptr() not in shared]
    ):
        raise ModelError(
            f"{folder} lacks weights of the model.", details=lost, fix="Report this; keep the checkpoint."
        )


def _single_experts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views of an expert weight [experts, out, in], by the names that each expert's part has in files."""
    prefix, _, last = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last, ())
    return (
        {
            f"{prefix}.{number}.{part}.weight": piece
            for number, expert in enumerate(tensor)
            for part, piece in zip(parts, expert.chunk(len(parts)), strict=True)
        }
        if parts
        else {}
    )


def _raise_differences(
    file: Path, stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    lines = [f"{key}: missing" for key in sorted(wanted.keys() - stored.keys())]
    lines += [f"{key}: not expected" for key in sorted(stored.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & stored.keys()):
        # Bytes are compared, so that NaN equals itself.
        same = stored[key].dtype == wanted[key].dtype and stored[key].shape == wanted[key].shape
        if not (same and torch.equal(_bytes(stored[key]), _bytes(wanted[key]))):
            lines.append(f"{key}: differs")
    if lines:
        raise ModelError(
            f"{file} doesn't hold what was to be saved.", details=lines, fix="Check the disk, and save again."
        )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _make_generation_config_savable(model: PreTrainedModel) -> None:
    """transformers refuses to save contradictory sampling settings: hours of training must not end there."""
    config = model.generation_config
    if not isinstance(config, GenerationConfig):
        return
    try:
        config.validate(strict=True)
    except ValueError:
        ends = {k: getattr(config, k, None) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**{k: v for k, v in ends.items() if v is not None})


def _sizes(layer: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a layer that LoRA can sit on."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    return None


def _misfit(part: str, shape: tuple[int, ...], inputs: int, outputs: int) -> str:
    """Why one tensor of a LoRA layer doesn't fit a base layer [out, in], or nothing."""
    if part.startswith(("A", "embedding_A")):
        return "" if shape[-1] == inputs else f"{shape[-1]} inputs in the adapter, {inputs} in the base"
    if part.startswith(("B", "embedding_B")):
        return "" if shape[0] == outputs else f"{shape[0]} outputs in the adapter, {outputs} in the base"
    if part.startswith("magnitude_vector"):
        count = math.prod(shape)
        return "" if count == outputs else f"{count} magnitudes in the adapter, {outputs} outputs in the base"
    return f"unknown tensor lora_{part}"


def _shape(thing: tuple[int, ...] | torch.Tensor | None) -> str:
    if thing is None:
        return "nothing"
    return str(list(thing if isinstance(thing, tuple) else thing.shape))
