"""A model folder of transformers as one GGUF file, tensor by tensor: no two of them are in memory at once.

    bf16, f16, f32                     every matrix in that format
    q8_0, q4_0, q4_1, q5_0, q5_1       every matrix in blocks of 32 numbers along a row

As in llama.cpp, vectors and norms stay in F32. With 4 and 5 bits the output matrix gets Q8_0, because every
token's score hangs on it (llama.cpp's own tool gives it Q6_K, which PyPI's gguf can't write). A matrix whose
rows aren't a multiple of 32 is written as F16, and named. K-quants aren't offered: `gguf` can't make them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
    quants,
)
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig

from tunesmith.disk import disk_errors, free_space, name_beside, sync_file
from tunesmith.errors import ModelError, RunError
from tunesmith.export.gguf_families import Family, extra_tensors, family_of, write_keys
from tunesmith.export.gguf_pre import Found
from tunesmith.export.gguf_tokens import Vocabulary
from tunesmith.model import weights
from tunesmith.model.load import quiet

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and those of all tensors."""

_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
}
_QUANTIZATION_VERSION = 2
_ROWS_BYTES = 64 * 2**20  # of float32 at once, while a matrix is quantised
_KEPT = ("output.weight",)  # in Q8_0 where the others have 4 or 5 bits


@dataclass(frozen=True)
class Written:
    """What was written; `notes` are for people."""

    file: Path
    bytes: int
    tensors: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """One tensor: its name in the file, its shape and number format there, and where it comes from."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    source: str | None = None  # the name in the folder; None for one that is computed
    values: np.ndarray[Any, Any] | None = None

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        block, width = GGML_QUANT_SIZES[self.kind]
        return int(math.prod(self.shape) // block * width)


def read_config(folder: Path) -> PretrainedConfig:
    """config.json of a model folder, as transformers understands it."""
    with quiet():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def write_gguf(
    folder: Path,
    file: Path,
    kind: str,
    vocabulary: Vocabulary,
    found: Found,
    *,
    name: str,
    license: str | None = None,
    progress: Progress = lambda _, __: None,
) -> Written:
    """Write the model of `folder` (merged, safetensors) as `file`, which is there whole or not at all.

    Raises ModelError for a family or tensor that can't be written, RunError where the disk is too small.
    """
    config = read_config(folder)
    family = family_of(config)
    plans, notes = _plans(folder, config, family, kind)
    total = sum(plan.bytes for plan in plans)
    needed = total + 64 * len(vocabulary.tokens) + 2**20
    if needed > (free := free_space(file)):
        raise RunError(
            f"{file.name} needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free there.",
            fix="Free some space, give a folder on another disk, or take a smaller --type.",
        )
    notes += family.notes(config)
    if vocabulary.padded:
        notes.append(f"{vocabulary.padded} embeddings have no token; the file calls them [PADn]")
    with disk_errors(file):
        temporary = name_beside(file)
        try:
            writer = GGUFWriter(temporary, MODEL_ARCH_NAMES[family.arch])
            _describe(writer, vocabulary.name(readable(name)), license, kind)
            write_keys(writer, config, family)
            vocabulary.write(writer, found.pre, found.space_prefix)
            try:
                _write(writer, folder, config, family, plans, lambda done: progress(done, total))
            finally:
                writer.close()
            sync_file(temporary)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return Written(file, file.stat().st_size, len(plans), notes)


def readable(name: str) -> str:
    """A name that transformers 5.23 can read: by this word in it, it takes a llama for what it can't read."""
    return re.sub("(?i)(mis)(tral)", r"\1-\2", name)


def embedding_rows(folder: Path) -> int:
    """How many tokens the model has embeddings for."""
    for name, tensor in weights.tensors(folder).items():
        if name.endswith("embed_tokens.weight"):
            return tensor.shape[0]
    raise ModelError(f"{folder.name} has no embed_tokens.weight.", fix="Give a merged causal language model.")


def _describe(writer: GGUFWriter, name: str, license: str | None, kind: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if license:
        writer.add_license(license)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(_QUANTIZATION_VERSION)


def _plans(
    folder: Path, config: PretrainedConfig, family: Family, kind: str
) -> tuple[list[_Plan], list[str]]:
    """Every tensor of the file, the embeddings first, and what people should know."""
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    found = weights.tensors(folder)
    tied = bool(getattr(config, "tie_word_embeddings", False)) or "lm_head.weight" not in found
    plans, unknown, narrow = [], [], []
    for source, tensor in found.items():
        if tied and source == "lm_head.weight":
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            unknown.append(source)
            continue
        chosen = _kind(name, tensor.shape, kind, tied)
        if chosen == GGMLQuantizationType.F16 and kind.startswith("q"):
            narrow.append(f"{name} (rows of {tensor.shape[-1]})")
        plans.append(_Plan(name, tensor.shape, chosen, source))
    if unknown:
        raise ModelError(
            f"{folder.name} has tensors that llama.cpp's {MODEL_ARCH_NAMES[family.arch]} doesn't know.",
            details=unknown,
            fix="Use --to merged for this model.",
        )
    for name, values in extra_tensors(config).items():
        plans.append(_Plan(name, values.shape, GGMLQuantizationType.F32, values=values))
    plans.sort(key=lambda plan: _order(plan.name))
    notes = []
    if narrow:
        listed = ", ".join(narrow[:3]) + (", …" if len(narrow) > 3 else "")
        notes.append(
            f"{len(narrow)} matrices are written as F16, because {kind} takes 32 numbers at once: {listed}"
        )
    return plans, notes


def _kind(name: str, shape: tuple[int, ...], kind: str, tied: bool) -> GGMLQuantizationType:
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind.upper()]
    if kind in ("q4_0", "q4_1", "q5_0", "q5_1") and (name in _KEPT or (tied and name == "token_embd.weight")):
        wanted = GGMLQuantizationType.Q8_0
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else GGMLQuantizationType.F16


def _order(name: str) -> tuple[int, int, str]:
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    return (layer if layer >= 0 else (-1 if name == "token_embd.weight" else 10**6), 0, name)


def _write(
    writer: GGUFWriter,
    folder: Path,
    config: PretrainedConfig,
    family: Family,
    plans: list[_Plan],
    progress: Callable[[int], None],
) -> None:
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    for plan in plans:
        block, width = GGML_QUANT_SIZES[plan.kind]
        numbers = np.dtype(plain.get(plan.kind, np.uint8))
        shape = plan.shape
        if plan.kind not in plain:
            shape = (*shape[:-1], shape[-1] // block * width)  # in bytes, as gguf wants what isn't plain
        writer.add_tensor_info(plan.name, shape, numbers, plan.bytes, raw_dtype=plan.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    files = {name: tensor.file for name, tensor in weights.tensors(folder).items()}
    for plan in plans:
        if plan.source is None:
            assert plan.values is not None
            data = plan.values
        else:
            with safe_open(files[plan.source], framework="pt") as handle:
                tensor = family.change(plan.source, handle.get_tensor(plan.source), config)
            data = _numbers(plan, tensor)
        writer.write_tensor_data(data)
        done += plan.bytes
        progress(done)


def _numbers(plan: _Plan, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor in its format in the file, a part of its rows at a time."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(16, _ROWS_BYTES // (4 * rows.shape[1]))
    parts = [_converted(plan, rows[start : start + step]) for start in range(0, rows.shape[0], step)]
    data = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return data.reshape(*plan.shape[:-1], -1)


def _converted(plan: _Plan, rows: torch.Tensor) -> np.ndarray[Any, Any]:
    values = rows.float()
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"{plan.source} has numbers that aren't finite.",
            fix="The tuned model is damaged: look at the run's losses (tunesmith runs show RUN).",
        )
    if plan.kind == GGMLQuantizationType.BF16:
        return rows.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    if plan.kind == GGMLQuantizationType.F16 and float(values.abs().max()) > torch.finfo(torch.float16).max:
        raise ModelError(
            f"{plan.source} has numbers beyond what F16 can hold (65504).", fix="Take --type bf16 or q8_0."
        )
    return quants.quantize(values.numpy(), plan.kind)  # type: ignore[no-any-return]
