"""From a source to a tokenizer and a model in memory, by transformers, quietly and without a network.

A GGUF file is dequantised to bf16 once and kept as a transformers folder under home()/models: later loads
take about a second, and an adapter's base stays loadable with plain `peft`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.utils import logging as hf_logging

from tunesmith.device import DTYPES, Device, available_memory
from tunesmith.disk import disk_errors, new_folder
from tunesmith.errors import ModelError, PlanError
from tunesmith.model import gguf_file, quantize, weights
from tunesmith.model.config import QuantizationSettings
from tunesmith.model.source import Source
from tunesmith.places import home

log = logging.getLogger("tunesmith")

# What may differ between two copies of the same model: who wrote the file, and in which number format.
_VOLATILE = (
    "transformers_version",
    "_name_or_path",
    "_model_name_or_path",
    "dtype",
    "torch_dtype",
    "use_cache",
)
_SAMPLE = 512
DTYPES_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ModelError where its files are missing or broken."""
    folder = local_folder(source)
    known = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tokenizer_config.json",
    )
    if not any((folder / file).is_file() for file in known):
        raise ModelError(
            f"{source.name} has no tokenizer (none of {', '.join(known)}).",
            fix="Copy the tokenizer's files of this model into its folder.",
        )
    with quiet(), _explained(source, "its tokenizer can't be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(
    source: Source,
    device: Device,
    *,
    dtype: torch.dtype | None = None,
    quantization: QuantizationSettings | None = None,
) -> PreTrainedModel:
    """The model in eval mode on its device, its weights in `dtype` (None: the device's) or quantised.

    Its `name_or_path` is what `peft` writes as base: the hub id, or a folder of this machine.

    Raises PlanError where memory can't hold it; ModelError where it can't be read or quantised, or lacks
    weights; MissingExtraError and SettingsError of `quantization`.
    """
    dtype = dtype or device.dtype
    options: dict[str, Any] = {}
    if quantization is not None:
        options["quantization_config"] = quantize.bitsandbytes_config(quantization, device)
        options["device_map"] = {"": str(device.torch_device)}
    folder = local_folder(source)
    with quiet(), _explained(source, "its weights can't be loaded"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_memory(source, folder, config, device, dtype, quantization)
        architecture = AutoModelForCausalLM._model_mapping[type(config)]
        capped = getattr(config, "attn_logit_softcapping", None)  # gemma2: SDPA would refuse, or not cap
        model, report = architecture.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="eager" if capped or not architecture._supports_sdpa else "sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    # transformers fills a missing weight with random numbers and goes on; that is never what a person wants.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source.name}: its files lack {len(missing)} weights of a {type(model).__name__}.",
            details=missing,
            fix="Download or copy the model again; its config.json and its weights must belong together.",
        )
    base_name = source.id if source.kind == "hub" and source.id else str(folder)
    model.name_or_path = base_name
    model.config._name_or_path = base_name
    if quantization is not None:
        quantize.take_over(model, quantize.compute_dtype(quantization, device))
        return cast(PreTrainedModel, model.eval())  # on its device already
    return cast(PreTrainedModel, model.to(device.torch_device).eval())


def stored_dtype(source: Source) -> torch.dtype | None:
    """The number format that a model's config names for its weights, None where it names none."""
    config = _read_json(local_folder(source) / "config.json")
    return DTYPES_BY_NAME.get(str(config.get("dtype") or config.get("torch_dtype")))


def outline(source: Source) -> PreTrainedModel:
    """The model without its weights (on torch's meta device): the names and sizes of its layers."""
    folder = local_folder(source)  # a GGUF file may be dequantised for it, which the meta device forbids
    with _explained(source, "its config.json can't be used"), quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))


def local_folder(source: Source) -> Path:
    """The transformers folder of a source; for a GGUF file the dequantised copy, made on the first call."""
    return _dequantised(source) if source.kind in ("embedded", "gguf") else source.path


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens the model can read, prompt and answer together; None where its configuration names no limit."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def end_ids(model: PreTrainedModel | Source) -> set[int]:
    """The token ids that end an answer, as the model's generation config (or else its config) names them."""
    if isinstance(model, Source):
        folder = local_folder(model)
        config = _read_json(folder / "config.json")
        found = _read_json(folder / "generation_config.json").get("eos_token_id")
        if found is None:
            found = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    else:
        found = getattr(model.generation_config, "eos_token_id", None)
        if found is None:
            found = getattr(model.config.get_text_config(), "eos_token_id", None)
    return set() if found is None else {int(found)} if isinstance(found, int) else {int(i) for i in found}


def fingerprint(source: Source) -> str:
    """sha256 that tells one base from another in a moment, by config and a sample of every tensor.

    The same weights give the same value however they are split into files, but two fine-tunes of one model
    differ: 512 bytes of the start and of the middle of each tensor are read.
    """
    folder = local_folder(source)
    config = {k: v for k, v in weights.read_config(folder, source.name).items() if k not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(weights.tensors(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        with tensor.file.open("rb") as handle:
            for start in (tensor.start, (tensor.start + tensor.end) // 2):
                handle.seek(start)
                digest.update(handle.read(min(_SAMPLE, tensor.end - start)))
    return digest.hexdigest()


def require_free(what: str, needed: int, free: int, kind: str = "memory") -> None:
    """Raise PlanError with both figures unless `needed` bytes of memory (or `kind`) are free."""
    if needed > free:
        raise PlanError(
            f"{what} needs {needed / 2**30:.1f} GiB of {kind}, but {max(0, free) / 2**30:.1f} GiB are free.",
            fix="Use a smaller model, close other programs, or use a larger machine."
            if kind == "memory"
            else "Free some space, or set TUNESMITH_HOME to a folder on another disk.",
        )


def first_use(source: Source) -> str | None:
    """A sentence for who waits: a copy in bf16 is made on first use. None where there is nothing to make."""
    if source.kind not in ("embedded", "gguf") or _is_whole(target := _copy_of(source)):
        return None
    return f"{source.path.name} is unpacked to bf16, once; this may take a minute. Kept in {target.parent}."


def _copy_of(source: Source) -> Path:
    return home() / "models" / f"{source.path.stem}-{_file_key(source.path)}"


def _dequantised(source: Source) -> Path:
    header = gguf_file.check(source.path)
    target = _copy_of(source)
    if _is_whole(target):
        return target
    with _lock(target):
        # Another process may have made it while this one waited.
        if not _is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            _dequantise(source, header, target)
    return target


def _is_whole(folder: Path) -> bool:
    """Whether the copy is there and undamaged: it can always be made again."""
    try:
        weights.check(folder, folder.name)
    except (ModelError, OSError):
        return False
    return True


def _dequantise(source: Source, header: gguf_file.Header, target: Path) -> None:
    if header.architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"{source.name} has the architecture {header.architecture!r}, which transformers can't read "
            "from GGUF.",
            fix="Use the original model (safetensors) instead of the GGUF file.",
        )
    # bf16 result, and beside it one tensor at a time in fp32; the file itself is mapped.
    require_free("Dequantising " + source.name, header.parameters * 3, available_memory())
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    require_free(
        f"The dequantised copy of {source.name} in {target.parent}", header.parameters * 2, free, "disk space"
    )
    log.info("Dequantising %s to bf16, once; kept in %s.", source.path.name, target)
    # Other files of its folder are read too, and left open transformers would ask whether to run their code.
    place = {"gguf_file": source.path.name, "local_files_only": True, "trust_remote_code": False}
    # The progress bar of this reader is tqdm's own and has no switch.
    silence = redirect_stderr(io.StringIO())
    with silence, quiet(), _explained(source, "this GGUF file can't be read by transformers"):
        tokenizer = AutoTokenizer.from_pretrained(source.path.parent, **place)
        model = AutoModelForCausalLM.from_pretrained(
            source.path.parent,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **place,
        )
    with new_folder(target) as folder, quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _file_key(path: Path) -> str:
    """16 hex digits of a file's length and 64 blocks of it: milliseconds, even for a large file."""
    size, block = path.stat().st_size, 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        for start in sorted({size * part // 64 for part in range(64)} | {max(0, size - block)}):
            handle.seek(start)
            digest.update(handle.read(block))
    return digest.hexdigest()[:16]


def _check_memory(
    source: Source,
    folder: Path,
    config: PretrainedConfig,
    device: Device,
    dtype: torch.dtype,
    quantization: QuantizationSettings | None,
) -> None:
    if quantization is None:
        needed = weights.parameter_bytes(weights.tensors(folder), dtype.itemsize)
    else:
        outline = quantize.outline(config)
        quantize.check_support(source.name, config, outline)
        needed = quantize.held_bytes(outline, quantization, dtype.itemsize)
    require_free(f"Loading {source.name}", needed, available_memory(device.kind))


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold a lock file beside `target`, so that two processes at once do the work once."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = (target.parent / f".{target.name}.lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks: the work is then done twice, and one result is kept.
            log.info("no lock in %s", target.parent)
        yield


@contextmanager
def _explained(source: Source, what: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a model into one message."""
    try:
        yield
    except (ModelError, PlanError):
        raise
    except torch.OutOfMemoryError as error:
        raise PlanError(
            f"{source.name} doesn't fit into the memory of the GPU.", fix="Use a smaller model."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):  # transformers' advice would be to run that code
            raise ModelError(
                f"{source.name} comes with Python code of its own (auto_map in a JSON file beside it); "
                "tunesmith never runs a model's code.",
                fix="Move the .gguf file into a folder of its own."
                if source.kind == "gguf"
                else "Use a version that transformers has built in (often marked -hf), or another model.",
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(
            f"{source.name}: {what}: {lines[0]}",
            details=lines[1:],
            fix="Get the model again; if it stays so, it needs another version of transformers or of a "
            "package named above.",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of transformers inside; the caller's own settings come back."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
