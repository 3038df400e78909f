"""What a training takes, by arithmetic: memory by part, disk, operations.

    memory      process + weights + gradients + optimizer + activations + kernels (CPU) or allocator (GPU)
    operations  per token laid out: 2 for each weight forward, 2 for the input's gradient, 2 for each trained
                weight's; of experts those that a token chooses; the output head only where a label is;
                attention by the squares of the rows

Sizes of weights, gradients, optimizer states and files are exact. Activations are those of the tensors of
a real step (train/dryrun.py). What a process, an allocator and the kernels hold beside tensors is
guessed; a probe replaces it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.model import adapters, targets
from tunesmith.model.cache import padded
from tunesmith.train.config import Job
from tunesmith.train.head import head_of

# Bytes of optimizer states for each trained number. Muon keeps one average for matrices; Adafactor keeps
# rows and columns, next to nothing (0.01 stands for them).
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.03, "sgd": 4.0, "muon": 4.0, "adafactor": 0.01}
# Bytes for each number of a quantised linear layer: 4 bits and an fp32 scale for 64 of them (Dettmers et
# al. 2023, arXiv 2305.14314, section 3: double quantisation takes the scales from 0.5 to 0.127 bits);
# int8: a scale a row.
QUANTISED_BYTES = {"nf4": 0.5 + 4 / 64, "nf4 double": 0.5 + 0.127 / 8, "int8": 1.0}

# Of a checkpoint: generators' states, state.json, the manifest, headers; a guess for few tensors.
CHECKPOINT_REST = 24 * 1024

# Guesses, not calibrated against runs: what tokenizer, data and kernels add to the imports, and what the
# allocator holds beyond living tensors.
PROCESS = 150e6
ALLOCATOR = 0.2
# oneDNN keeps what it made for each length of a pack (bf16 products), for so many lengths at most;
# a guess from before packs had few lengths (training.PACK_MULTIPLE), too high perhaps.
KERNELS_PER_LENGTH, LENGTHS_KEPT = 25e6, 75
CUDA_PROCESS, CUDA_ALLOCATOR = 0.6e9, 0.08
TOKENS_AT_ONCE = 4096  # of prompts that are read together (infer/batching.py)
# Compiled layers keep less for the backward pass, but the compiler itself stays in memory. Guesses too.
COMPILED_ACTIVATIONS, COMPILER = 0.9, 350e6
# With the kernels in C++: of six runs of the 135M model (LoRA on two kinds of rows and all weights, forward
# passes of 1,024 and 3,008 tokens) the foretold peak is then 16 % too high at most, 10 % too low.
KERNELS_ACTIVATIONS = 0.38


@dataclass(frozen=True)
class Sizes:
    """A model's numbers: `trained` in fp32, `quantised` in 4 or 8 bits, the rest in the base's format."""

    parameters: int
    trained: int
    base_bytes: int  # of what is neither trained nor quantised
    quantised: int
    largest_quantised: int
    linear: int  # of those that a token passes, head, embeddings and experts not chosen left out
    head: int
    adapter: int


def sizes(model: nn.Module, quantised: bool) -> Sizes:
    """Count a model (train/dryrun.build) exactly; tied weights once."""
    trained, parameters = adapters.trainable_count(model)
    head = _head(model)
    linear = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module.weight is not head
        and not module.weight.requires_grad
    }
    packed = sum(w.numel() for w in linear.values()) if quantised else 0
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    width = next((p.element_size() for p in model.parameters() if not p.requires_grad), 4)
    matrices = sum(
        m.weight.numel()
        for m in model.modules()
        if isinstance(m, nn.Linear | Conv1D) and m.weight is not head
    )
    in_lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    return Sizes(
        parameters=parameters,
        trained=trained,
        base_bytes=frozen - packed * width,
        quantised=packed,
        largest_quantised=max((w.numel() for w in linear.values()), default=0) if quantised else 0,
        linear=matrices - in_lora + _chosen_experts(model),
        head=head.numel() if head is not None else 0,
        adapter=in_lora,
    )


def memory(
    found: Sizes,
    *,
    activations: int,
    optimizer: str,
    quantisation: str | None,
    kind: str,
    process: int,
    lengths: int,
    bf16: bool,
    compiled: bool,
    kernels: bool,
    width: int,
) -> dict[str, int]:
    """Bytes by part at the peak.

    `activations`: of the largest microbatch; `lengths`: sizes that one has; `kernels`: whether compiled
    layers have those in C++, which stand for oneDNN's.
    """
    weights = found.base_bytes + 4.0 * found.trained
    if quantisation:
        weights += found.quantised * QUANTISED_BYTES[quantisation]
        activations += (
            found.largest_quantised * width
        )  # one layer at a time as a copy in the product's format
    if compiled:
        activations = int(activations * (KERNELS_ACTIVATIONS if kernels else COMPILED_ACTIVATIONS))
    states = found.trained * OPTIMIZER_BYTES[optimizer]
    parts = {
        "process": process + (PROCESS if kind != "cuda" else CUDA_PROCESS) + (COMPILER if compiled else 0),
        "weights": weights,
        "gradients": 4.0 * found.trained,
        "optimizer": states,
        "activations": activations,
    }
    if kind == "cuda":
        parts["allocator"] = CUDA_ALLOCATOR * activations
    else:
        parts["allocator"] = ALLOCATOR * activations
        theirs = bf16 and not kernels
        parts["kernels"] = KERNELS_PER_LENGTH * min(lengths, LENGTHS_KEPT) if theirs else 0
    return {name: int(value) for name, value in parts.items()}


def answering(
    config: Mapping[str, Any], *, vocabulary: int, prompts: Sequence[int], new: int, rows: int, width: int
) -> int:
    """Bytes of keys and values, scores, and of reading prompts, while `rows` answers are computed at once.

    `prompts`: tokens of each; `new`: of an answer at most; `width`: bytes of a number.
    """
    if not prompts:
        return 0
    heads, layers = attention_shape(config)
    count = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    kept = heads * int(config.get("num_key_value_heads") or count) // count
    at_once = min(rows, len(prompts))
    store = at_once * padded(max(prompts) + new) * 2 * layers * kept * width
    hidden, inner = layer_shape(config)
    reading = min(sum(prompts), TOKENS_AT_ONCE + max(prompts))
    return store + at_once * vocabulary * 8 + reading * (6 * hidden + 3 * inner) * width


def operations(
    found: Sizes,
    *,
    tokens: int,
    labels: int,
    squares: int,
    width: int,
    layers: int,
    checkpointing: bool | int,
    full: bool,
) -> float:
    """Of forward and backward passes over so many tokens, laid out, and labels.

    `squares`: the sum of the squares of row lengths; `width`: heads x head size.
    """
    body = tokens * (found.linear * (6 if full else 4) + found.adapter * 6)
    head = labels * found.head * (6 if full else 4)
    # Scores and values, causal: half of 2 x 2 x l^2 forward, 2.5 times that backward (scores are made again).
    attention = squares * width * layers * 2 * 3.5
    again = tokens * 2 * (found.linear + found.adapter) + squares * width * layers * 2
    return float(body + head + attention + (again / int(checkpointing) if checkpointing else 0))


def run_bytes(job: Job, model: nn.Module, *, steps: int, validated: bool, parameters: int) -> dict[str, int]:
    """Bytes in the run folder: of one checkpoint, of those that are kept, of the final weights."""
    weights = checkpoint_bytes((n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad)
    train = job.train
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    one = weights + round(OPTIMIZER_BYTES[train.optimizer] * trained) + CHECKPOINT_REST
    often = (steps // train.save_every if train.save_every else 0) + 1
    chosen = validated if train.by_loss else train.evaluate is not None
    every = train.eval_every if train.by_loss or train.evaluate is None else train.evaluate.every
    often += steps // every if chosen and every else 0
    kept = min(often, train.keep + (1 if chosen else 0))
    return {
        "checkpoint": one,
        "checkpoints": one * kept,
        "final": weights if job.adapter.uses_peft else parameters * 4,
    }


def checkpoint_bytes(named: Iterable[tuple[str, Sequence[int]]]) -> int:
    """The exact size of a safetensors file of fp32 tensors, by name and shape.

    Source: https://huggingface.co/docs/safetensors (length, header as JSON, data; the header is filled up
    with spaces to a multiple of 8; the library writes tensors of one format in the order of their names).
    """
    at, entries = 0, {}
    for name, shape in sorted(named):
        end = at + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    header = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-header // 8) * 8 + at


def product_rate(
    dtype: torch.dtype, hidden: int, inner: int, device: torch.device, seconds: float = 0.3
) -> float:
    """Operations per second of a product as large as a layer's, measured here: the best of some tries."""
    rows = 1024
    x = torch.randn(rows, hidden, device=device).to(dtype)
    w = torch.randn(hidden, inner, device=device).to(dtype)
    best, end = math.inf, time.monotonic() + seconds
    with torch.no_grad():
        for turn in range(10_000):
            start = time.monotonic()
            _ = (x @ w)[0, 0].item()
            if turn:
                best = min(best, time.monotonic() - start)
            if turn > 2 and time.monotonic() > end:
                break
    return 2.0 * rows * hidden * inner / best


def attention_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """(heads x head size, layers) of a configuration."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    return heads * size, int(config.get("num_hidden_layers") or config.get("n_layer") or 1)


def layer_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """(hidden size, inner size) of a configuration's layers."""
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 1024)
    return hidden, int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)


def _head(model: nn.Module) -> torch.Tensor | None:
    if (known := head_of(model)) is not None:
        return known[1].weight
    whole: Any = model
    layer = whole.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight: torch.Tensor | None = getattr(layer, "weight", None)
    return weight


def _chosen_experts(model: nn.Module) -> int:
    """Numbers of the experts that a token passes."""
    whole = sum(p.numel() for p in targets.expert_weights(model).values())
    if not whole:
        return 0
    config: Any = model.config
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    return int(whole * (getattr(config, "num_experts_per_tok", None) or count) / count)
