"""Configurations of well-known models, so that a training can be planned before anything is downloaded.

Only what decides sizes stands here, written down from what is published of each model and not compared with
the hub since. A test builds every one and compares its parameters with the published count. A model's own
config.json always wins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Endings that change nothing about a model's size.
_ENDINGS = ("-instruct-2507", "-thinking-2507", "-instruct", "-base", "-chat", "-it", "-v0.3", "-hf")


class _Sizes(NamedTuple):
    parameters: int  # as published, for the test
    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool
    context: int
    head_size: int = 0  # 0: hidden / heads


# Largest first within each line, so that the next smaller one follows.
_KNOWN = {
    "Qwen/Qwen2.5-72B": _Sizes(72_706_203_648, "qwen2", 8192, 80, 64, 8, 29568, 152064, False, 32768),
    "Qwen/Qwen2.5-32B": _Sizes(32_763_876_352, "qwen2", 5120, 64, 40, 8, 27648, 152064, False, 32768),
    "Qwen/Qwen2.5-14B": _Sizes(14_770_033_664, "qwen2", 5120, 48, 40, 8, 13824, 152064, False, 32768),
    "Qwen/Qwen2.5-7B": _Sizes(7_615_616_512, "qwen2", 3584, 28, 28, 4, 18944, 152064, False, 32768),
    "Qwen/Qwen2.5-3B": _Sizes(3_085_938_688, "qwen2", 2048, 36, 16, 2, 11008, 151936, True, 32768),
    "Qwen/Qwen2.5-1.5B": _Sizes(1_543_714_304, "qwen2", 1536, 28, 12, 2, 8960, 151936, True, 32768),
    "Qwen/Qwen2.5-0.5B": _Sizes(494_032_768, "qwen2", 896, 24, 14, 2, 4864, 151936, True, 32768),
    "Qwen/Qwen3-32B": _Sizes(32_762_123_264, "qwen3", 5120, 64, 64, 8, 25600, 151936, False, 40960, 128),
    "Qwen/Qwen3-14B": _Sizes(14_768_307_200, "qwen3", 5120, 40, 40, 8, 17408, 151936, False, 40960, 128),
    "Qwen/Qwen3-8B": _Sizes(8_190_735_360, "qwen3", 4096, 36, 32, 8, 12288, 151936, False, 40960, 128),
    "Qwen/Qwen3-4B": _Sizes(4_022_468_096, "qwen3", 2560, 36, 32, 8, 9728, 151936, True, 40960, 128),
    "Qwen/Qwen3-1.7B": _Sizes(1_720_574_976, "qwen3", 2048, 28, 16, 8, 6144, 151936, True, 40960, 128),
    "Qwen/Qwen3-0.6B": _Sizes(596_049_920, "qwen3", 1024, 28, 16, 8, 3072, 151936, True, 40960, 128),
    "meta-llama/Llama-3.1-70B": _Sizes(
        70_553_706_496, "llama", 8192, 80, 64, 8, 28672, 128256, False, 131072
    ),
    "meta-llama/Llama-3.1-8B": _Sizes(8_030_261_248, "llama", 4096, 32, 32, 8, 14336, 128256, False, 131072),
    "meta-llama/Llama-3.2-3B": _Sizes(3_212_749_824, "llama", 3072, 28, 24, 8, 8192, 128256, True, 131072),
    "meta-llama/Llama-3.2-1B": _Sizes(1_235_814_400, "llama", 2048, 16, 32, 8, 8192, 128256, True, 131072),
    "mistralai/Mistral-7B": _Sizes(7_248_023_552, "mistral", 4096, 32, 32, 8, 14336, 32768, False, 32768),
    "google/gemma-2-9b": _Sizes(9_241_705_984, "gemma2", 3584, 42, 16, 8, 14336, 256000, True, 8192, 256),
    "google/gemma-2-2b": _Sizes(2_614_341_888, "gemma2", 2304, 26, 8, 4, 9216, 256000, True, 8192, 256),
    "HuggingFaceTB/SmolLM2-1.7B": _Sizes(
        1_711_376_384, "llama", 2048, 24, 32, 32, 8192, 49152, True, 8192
    ),
    "HuggingFaceTB/SmolLM2-360M": _Sizes(361_821_120, "llama", 960, 32, 15, 5, 2560, 49152, True, 8192),
    "HuggingFaceTB/SmolLM2-135M": _Sizes(134_515_008, "llama", 576, 30, 9, 3, 1536, 49152, True, 8192),
}  # fmt: skip


def names() -> list[str]:
    """Every model of the table."""
    return list(_KNOWN)


def published(name: str) -> int:
    """Parameters of a model of the table, as its page says."""
    return _KNOWN[name].parameters


def find(model_id: str) -> dict[str, Any] | None:
    """A configuration as config.json would have it, by hub id; endings such as -Instruct don't matter."""
    if (name := _name(model_id)) is None:
        return None
    sizes = _KNOWN[name]
    return {
        "model_type": sizes.kind,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_size or sizes.hidden // sizes.heads,
        "intermediate_size": sizes.inner,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": sizes.context,
        # transformers' default ids may lie beyond a vocabulary.
        "pad_token_id": 0,
    }


def smaller(model_id: str) -> list[str]:
    """Smaller models of the same line, the largest first, with the ending that `model_id` has."""
    if (name := _name(model_id)) is None:
        return []
    ending = model_id[len(name) :]
    line = [other for other in _KNOWN if _line(other) == _line(name)]
    return [other + ending for other in line if published(other) < published(name)]


def _name(model_id: str) -> str | None:
    wanted = model_id.lower()
    while True:
        for name in _KNOWN:
            if name.lower() == wanted:
                return name
        shorter = next((wanted.removesuffix(e) for e in _ENDINGS if wanted.endswith(e)), None)
        if shorter is None:
            return None
        wanted = shorter


def _line(name: str) -> str:
    """`Qwen/Qwen2.5-7B` -> `Qwen/Qwen2.5`; both Llama 3 are one."""
    line = name.rpartition("-")[0]
    return "meta-llama/Llama-3" if line.startswith("meta-llama/Llama-3") else line
