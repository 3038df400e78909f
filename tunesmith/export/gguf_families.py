"""The model families that can be written as GGUF: what llama.cpp calls them, their keys, their tensors.

    transformers  llama.cpp   tensors that change
    llama         llama       q and k reordered for llama.cpp's rope
    mistral       llama       the same
    qwen2         qwen2       none (q, k, v have biases)
    qwen3         qwen3       none (q and k have norms)
    gemma2        gemma2      norms hold weight + 1
    gemma3_text   gemma3      norms hold weight + 1
    phi3          phi3        none (q, k, v are one; gate and up are one)

All others are refused: a wrong guess here writes a model that talks nonsense. Reference: llama.cpp's
conversion/*.py, and src/models/*.cpp for what is read back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from transformers import PretrainedConfig

from tunesmith.errors import ModelError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Change = Callable[[str, torch.Tensor, PretrainedConfig], torch.Tensor]


@dataclass(frozen=True)
class Family:
    """`change` makes llama.cpp's tensor of transformers' own; `refuse` names what can't be done."""

    arch: MODEL_ARCH
    change: Change
    keys: Callable[[GGUFWriter, PretrainedConfig], None]
    refuse: Callable[[PretrainedConfig], list[str]]
    notes: Callable[[PretrainedConfig], list[str]] = field(default=lambda _: [])


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model. Raises ModelError for one that can't be written, and says why."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"A {config.model_type} model can't be written as GGUF; these can: {', '.join(FAMILIES)}.",
            fix="Use --to merged, and llama.cpp's own convert_hf_to_gguf.py on that folder.",
        )
    if problems := family.refuse(config):
        raise ModelError(
            f"This {config.model_type} model can't be written as GGUF: llama.cpp computes it otherwise.",
            details=problems,
            fix="Use --to merged: transformers and vLLM run it as it is.",
        )
    return family


def head_size(config: PretrainedConfig) -> int:
    """Numbers per attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_of(config: PretrainedConfig) -> dict[str, Any]:
    """The rope settings of layers with full attention."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    return dict(rope.get("full_attention") or rope)


def write_keys(writer: GGUFWriter, config: PretrainedConfig, family: Family) -> None:
    """The hyperparameters, under the names that llama.cpp reads."""
    rope = rope_of(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_of(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(
            int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        )
    family.keys(writer, config)


def extra_tensors(config: PretrainedConfig) -> dict[str, Floats]:
    """Tensors that transformers computes when it loads a model: the factors of llama3's rope scaling."""
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return {}
    size = head_size(config)
    frequencies = rope["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    # 1 where a frequency turns often within the old context, `factor` where it turns seldom, between them
    # a smooth change of 1 / value: https://arxiv.org/abs/2407.21783, transformers' modeling_rope_utils.py.
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return {"rope_freqs.weight": (1.0 / ((1.0 - share) / factor + share)).astype(np.float32)}


def context_of(config: PretrainedConfig) -> int:
    """The context that the file may promise."""
    length = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    # llama.cpp has no windows for these two: up to the window's length there is no difference.
    return min(length, int(window)) if config.model_type in ("mistral", "phi3") and window else length


def _same(_: str, tensor: torch.Tensor, __: PretrainedConfig) -> torch.Tensor:
    return tensor


def _reordered(name: str, tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """q and k: transformers rotates number i with number i + half, llama.cpp's `llama` 2 i with 2 i + 1."""
    last = name.split(".")[-2]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(last)
    if heads is None:
        return tensor
    rows, *rest = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, *rest).transpose(1, 2).reshape(tensor.shape)


def _shifted(name: str, tensor: torch.Tensor, _: PretrainedConfig) -> torch.Tensor:
    """Norms: gemma multiplies with 1 + weight, llama.cpp with what the file holds."""
    return tensor.float() + 1.0 if name.endswith("norm.weight") else tensor


def _llama_keys(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_size(config))
    _head_keys(writer, config)


def _head_keys(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))


def _gemma_keys(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _head_keys(writer, config)
    writer.add_sliding_window(config.sliding_window)
    period = _window_period(config)
    if period is not None and period != _WINDOW_PERIODS[config.model_type]:
        writer.add_sliding_window_pattern(period)
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)
    sliding = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention") or {}
    if "rope_theta" in sliding:
        writer.add_rope_freq_base_swa(float(sliding["rope_theta"]))


def _phi3_keys(writer: GGUFWriter, config: PretrainedConfig) -> None:
    share = float(rope_of(config).get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(int(share * head_size(config)))
    writer.add_rope_scaling_orig_ctx_len(
        int(getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings)
    )
    writer.add_sliding_window(0)


_WINDOW_PERIODS: dict[str, int] = {"gemma2": 2, "gemma3_text": 6}  # llama.cpp's where the file says nothing


def _window_period(config: PretrainedConfig) -> int | None:
    """n where of every n layers all but the last look through the window; None where there is no such n."""
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    count: int = len(sliding)
    usual: int = _WINDOW_PERIODS[config.model_type]
    for period in (usual, *range(1, count + 2)):
        if sliding == [layer % period < period - 1 for layer in range(count)]:
            return int(period)
    return None


# What llama.cpp gives values of its own.
_OF_YARN = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}


def _plain(config: PretrainedConfig) -> list[str]:
    problems = []
    kind = rope_of(config).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        problems.append(f"its rope scaling is {kind!r}; default, linear, llama3 and yarn can be written")
    if kind == "yarn" and (own := sorted(set(rope_of(config)) & _OF_YARN)):
        problems.append(f"its yarn has settings of its own ({', '.join(own)}), which aren't written")
    if kind == "llama3" and config.model_type != "llama":
        problems.append("llama3 rope scaling is known of llama models only")
    act = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    wanted = "gelu_pytorch_tanh" if config.model_type.startswith("gemma") else "silu"
    if act != wanted:
        problems.append(f"its activation is {act!r}; llama.cpp computes {wanted} in this family")
    return problems


def _no_windows(config: PretrainedConfig) -> list[str]:
    kinds = getattr(config, "layer_types", None) or []
    sliding = "sliding_attention" in kinds and getattr(config, "sliding_window", None)
    return _plain(config) + (["some of its layers look through a sliding window"] if sliding else [])


def _gemma_refusals(config: PretrainedConfig) -> list[str]:
    problems = _plain(config)
    if _window_period(config) is None:
        problems.append("the order of its layers with and without a window isn't regular")
    if config.model_type == "gemma3_text" and "sliding_attention" not in config.layer_types:
        problems.append(
            "none of its layers has a sliding window, which llama.cpp takes for granted in gemma3"
        )
    large = {"gemma2": 46, "gemma3_text": 62}[config.model_type]
    # llama.cpp tells the 27B models by their number of layers, and scales theirs otherwise.
    scale = (
        config.hidden_size // config.num_attention_heads
        if config.num_hidden_layers == large
        else head_size(config)
    )
    if config.query_pre_attn_scalar != scale:
        problems.append(f"it scales scores by {config.query_pre_attn_scalar} ** -0.5, llama.cpp by {scale}")
    if getattr(config, "use_bidirectional_attention", None):
        problems.append("its tokens attend in both directions")
    if config.model_type == "gemma3_text" and getattr(config, "attn_logit_softcapping", None):
        problems.append("it caps attention scores, which llama.cpp's gemma3 doesn't")
    return problems


def _short_window(config: PretrainedConfig) -> list[str]:
    length = context_of(config)
    if length == config.max_position_embeddings:
        return []
    return [
        f"llama.cpp has no sliding window for {config.model_type}: the context is given as {length} "
        f"(the window), not {config.max_position_embeddings}; within it there is no difference"
    ]


FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, _reordered, _llama_keys, _plain),
    "mistral": Family(MODEL_ARCH.LLAMA, _reordered, _llama_keys, _plain, _short_window),
    "qwen2": Family(MODEL_ARCH.QWEN2, _same, lambda *_: None, _no_windows),
    "qwen3": Family(MODEL_ARCH.QWEN3, _same, _head_keys, _no_windows),
    "gemma2": Family(MODEL_ARCH.GEMMA2, _shifted, _gemma_keys, _gemma_refusals),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, _shifted, _gemma_keys, _gemma_refusals),
    "phi3": Family(MODEL_ARCH.PHI3, _same, _phi3_keys, _plain, _short_window),
}
"""By transformers' model_type."""
