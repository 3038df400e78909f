"""Tiny random models and tokenizers of every family the tests cover, made in code.

tiny_tokenizer(family)   byte-level BPE with that family's special tokens and a chat template of its style
tiny_model(family)       random weights in fp32; heads, kv heads, layers and widths all differ, so that
                         a mixed-up dimension can't pass unseen
save_tiny(family, folder)   both as a normal transformers folder (safetensors)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "gpt2", "qwen3_moe")
CHAT_FAMILIES = tuple(name for name in FAMILIES if name != "gpt2")
"""Those with a chat template of their own; gpt2 stands for the base models."""


WHOLE_TILES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""Sizes of a model of the llama kind whose steps are taken in C++ where the machine can."""


def tiny_model(family: str, seed: int = 0, **dimensions: float) -> PreTrainedModel:
    """A random model in fp32, in eval mode; the same weights for the same seed. `dimensions`: other sizes."""
    spec = _SPECS[family]
    tokenizer = tiny_tokenizer(family)
    size = len(tokenizer) if len(tokenizer) % 8 else len(tokenizer) + 1
    ends = [tokenizer.convert_tokens_to_ids(token) for token in spec.ends]
    config = spec.config(
        vocab_size=size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id,
        **{"initializer_range": 0.1, **spec.dimensions, **dimensions},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # SDPA can't cap scores; model/load.py chooses the same.
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    return model.eval()


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer, a fresh copy each time; gpt2 has no chat template."""
    return copy.deepcopy(_tokenizer(family))


def save_tiny(family: str, folder: Path, seed: int = 0, **dimensions: float) -> Path:
    """Write model and tokenizer as a transformers folder; returns it."""
    tiny_model(family, seed, **dimensions).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class _Spec:
    config: Callable[..., PretrainedConfig]
    dimensions: dict[str, Any]
    special: tuple[str, ...]  # all marked special, in this order
    ends: tuple[str, ...]  # what ends generation, as the family's generation_config has it
    eos: str
    bos: str | None = None
    pad: str | None = None
    adds_bos: bool = False  # the tokenizer itself puts BOS in front of plain text
    plain_added: tuple[str, ...] = ()  # added tokens that aren't special
    template: str | None = None
    strip_right: tuple[str, ...] = field(default=())  # special tokens that swallow the white space after them


# Each template is the family's format, written for these tests.
_LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

_QWEN2 = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Only replies after the last question keep their thinking, and the last one always gets a block of it.
_QWEN3 = """\
{%- set ns = namespace(last_question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- set answer = message.content %}
        {%- if '</think>' in message.content %}
            {%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_question and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

_GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

# No header of its own: the reply follows the end of the question, after a space.
_MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Only user and assistant roles are supported, and they must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + '[/INST]' }}
    {%- else %}{{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""

# Ends with the end of text when no reply is asked for, so a short render doesn't begin a long one.
_PHI3 = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

_SPECS = {
    "llama": _Spec(
        config=LlamaConfig,
        dimensions={
            "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
        },
        special=(
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
        ),
        ends=("<|end_of_text|>", "<|eot_id|>"),
        eos="<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True, template=_LLAMA,
    ),
    "qwen2": _Spec(
        config=Qwen2Config,
        dimensions={
            "hidden_size": 60, "intermediate_size": 92, "num_hidden_layers": 3, "num_attention_heads": 6,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
        },
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ends=("<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>", pad="<|endoftext|>", template=_QWEN2,
    ),
    "qwen3": _Spec(
        config=Qwen3Config,
        dimensions={
            "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 14, "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain_added=("<think>", "</think>"),
        ends=("<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>", pad="<|endoftext|>", template=_QWEN3,
    ),
    "gemma2": _Spec(
        config=Gemma2Config,
        # Caps low enough to bend the scores of random weights.
        dimensions={
            "hidden_size": 54, "intermediate_size": 76, "num_hidden_layers": 3, "num_attention_heads": 6,
            "num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 10,
            "max_position_embeddings": 512, "sliding_window": 8, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        ends=("<eos>", "<end_of_turn>"),
        eos="<eos>", bos="<bos>", pad="<pad>", adds_bos=True, template=_GEMMA,
    ),
    "gemma3": _Spec(
        config=Gemma3TextConfig,
        dimensions={
            "hidden_size": 44, "intermediate_size": 68, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16,
            "max_position_embeddings": 512, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        ends=("<eos>", "<end_of_turn>"),
        eos="<eos>", bos="<bos>", pad="<pad>", adds_bos=True, template=_GEMMA,
    ),
    "mistral": _Spec(
        config=MistralConfig,
        dimensions={
            "hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 6,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": None,
        },
        special=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        ends=("</s>",),
        eos="</s>", bos="<s>", adds_bos=True, template=_MISTRAL,
    ),
    "phi3": _Spec(
        config=Phi3Config,
        dimensions={
            "hidden_size": 56, "intermediate_size": 84, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
        },
        special=("<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        strip_right=("<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        ends=("<|endoftext|>", "<|end|>"),
        eos="<|endoftext|>", bos="<s>", pad="<|endoftext|>", template=_PHI3,
    ),
    "gpt2": _Spec(
        config=GPT2Config,
        dimensions={
            "n_embd": 52, "n_layer": 3, "n_head": 4, "n_positions": 512,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        special=("<|endoftext|>",),
        ends=("<|endoftext|>",),
        eos="<|endoftext|>", bos="<|endoftext|>",
    ),
    "qwen3_moe": _Spec(
        config=Qwen3MoeConfig,
        # A dense layer between two of experts; bf16 products of experts want sizes in eights.
        dimensions={
            "hidden_size": 40, "intermediate_size": 72, "moe_intermediate_size": 24, "num_experts": 5,
            "num_experts_per_tok": 2, "norm_topk_prob": True, "mlp_only_layers": [1],
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14,
            "max_position_embeddings": 512, "tie_word_embeddings": False,
        },
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain_added=("<think>", "</think>"),
        ends=("<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>", pad="<|endoftext|>", template=_QWEN3,
    ),
    "olmoe": _Spec(
        config=OlmoeConfig,
        dimensions={
            "hidden_size": 48, "intermediate_size": 40, "num_experts": 7, "num_experts_per_tok": 3,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
            "max_position_embeddings": 512, "clip_qkv": 2.0,
        },
        special=("<|endoftext|>",),
        ends=("<|endoftext|>",),
        eos="<|endoftext|>", bos="<|endoftext|>",
    ),
}  # fmt: skip

_TEXT = [
    "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "下面是一首唐詩絕句的前兩句，請續寫後兩句，只輸出詩句。学生请假需要提前三天向辅导员提交申请。",
    "你好，请问图书馆几点开门？图书馆每天早上八点开门，晚上十点关门。谢谢你的回答，请再说一遍。",
    "The library opens at eight in the morning and closes at ten in the evening. How do I ask for leave?",
    "A student asks the office for leave three days before. Write the answer in one line, then stop here.",
    "What is the weather like today? The sun is out, and the wind is from the west. Be helpful and short.",
]


@cache
def _bpe() -> str:
    """One BPE for all families, as JSON: the 256 bytes and few merges, so it splits Chinese characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=419, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    return str(tokenizer.to_str())


@cache
def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    spec = _SPECS[family]
    backend = Tokenizer.from_str(_bpe())
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t in spec.strip_right) for t in spec.special]
    )
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in spec.plain_added])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if spec.adds_bos and spec.bos is not None:
        bos = processors.TemplateProcessing(
            single=f"{spec.bos} $A", special_tokens=[(spec.bos, backend.token_to_id(spec.bos))]
        )
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    roles = {"bos_token": spec.bos, "eos_token": spec.eos, "pad_token": spec.pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        **{role: token for role, token in roles.items() if token is not None},
    )
    tokenizer.chat_template = spec.template
    return tokenizer
