"""Steps in C++: as close to the fp32 model as bf16 allows, for every family, adapter, window and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tunesmith.infer.decoding import Decoder, New
from tunesmith.model import decode_native, native
from tunesmith.model.fused_lora import fuse
from tunesmith.model.peft_parts import LoraConfig, get_peft_model

pytestmark = pytest.mark.skipif(
    not native.supported() or native.compiler() is None,
    reason="needs Linux, a C++ compiler and a processor with products in bf16",
)

# Unequal in everything; a vocabulary and a number of heads that fill no tile, groups of 2 and 3 heads.
SIZES: dict[str, Any] = {
    "vocab_size": 427, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
    "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "one head": (LlamaConfig, {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "large heads": (LlamaConfig, {"head_dim": 96, "attention_bias": True}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {"head_dim": 64}),
    "mistral": (MistralConfig, {"sliding_window": 9}),
    "phi3": (Phi3Config, {"partial_rotary_factor": 0.5, "head_dim": 16 * 2}),
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0, 1]}),
}


def made(name: str) -> PreTrainedModel:
    config, others = MODELS[name]
    sizes = {**SIZES, **others}
    if name == "phi3":
        sizes["hidden_size"] = sizes["num_attention_heads"] * sizes.pop("head_dim")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config(**sizes), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases that do something
                parameter.data += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def tuned(model: PreTrainedModel, targets: Any = "all-linear") -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        found = get_peft_model(model, LoraConfig(r=5, lora_alpha=8, target_modules=targets))
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    fuse(found)
    return found.eval()


def errors(model: Any, rows: list[list[int]], prompt: int, adapter: list[bool]) -> tuple[Tensor, Tensor]:
    """Mean errors of the scores of each step, in C++ and of the model in bf16, against the model in fp32."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = torch.tensor(rows)

    def scores() -> Tensor:
        with torch.no_grad():
            found = model(whole).logits[:, prompt:].float()
            if not all(adapter):
                with model.disable_adapter():
                    off = model(whole).logits[:, prompt:].float()
                found = torch.where(torch.tensor(adapter)[:, None, None], found, off)
        return found

    exact = scores()
    inner.to(torch.bfloat16)
    for name, parameter in model.named_parameters():  # masters stay in fp32
        if "lora_" in name:
            parameter.data = parameter.data.float()
    rounded = scores()
    decoder = Decoder(inner, 64 * len(rows) + 64)
    assert decoder.slow is None
    shared = decoder.cache.reserve(3)
    begins = [decoder.cache.reserve(len(row)) for row in rows]

    def spans(row: int, end: int) -> tuple[tuple[int, int], ...]:
        begin = begins[row]
        assert begin is not None
        assert shared is not None
        return ((shared, shared + 3), (begin, begin + end - 3)) if adapter[row] else ((begin, begin + end),)

    new = [New(rows[0][:3], ((shared, shared + 3),), True, wanted=False)] if shared is not None else []
    for row, ids in enumerate(rows):
        new.append(New(ids[3 if adapter[row] else 0 : prompt], spans(row, prompt), adapter[row]))
    decoder.read(new)
    steps = [
        decoder.step([ids[at] for ids in rows], [spans(r, at + 1) for r in range(len(rows))], adapter).clone()
        for at in range(prompt, len(rows[0]))
    ]
    ours = torch.stack(steps, dim=1)
    return (ours - exact).abs().mean(), (rounded - exact).abs().mean()


def drawn(count: int, length: int) -> list[list[int]]:
    """Rows of tokens that all begin with the same three."""
    chance = torch.Generator().manual_seed(count)
    rows = torch.randint(3, 427, (count, length), generator=chance)
    rows[:, :3] = torch.tensor([5, 6, 7])
    found: list[list[int]] = rows.tolist()
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("adapter", ["without", "with", "mixed"])
def test_a_step_is_that_of_the_model(name: str, adapter: str) -> None:
    model = made(name)
    if adapter != "without":
        model = tuned(model)
    ours, theirs = errors(model, drawn(3, 50), 11, [True, adapter != "mixed", True])
    assert ours < 1.1 * theirs
    assert theirs < 0.2, "the comparison says something"


@pytest.mark.parametrize("count", [1, 16, 17, 33, 70])
def test_any_number_of_rows(count: int) -> None:
    ours, theirs = errors(tuned(made("llama"), ["q_proj", "down_proj"]), drawn(count, 20), 9, [True] * count)
    assert ours < 1.1 * theirs


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    model = made("llama").to(torch.bfloat16)
    rows = drawn(20, 12)

    def last(chosen: list[int]) -> Tensor:
        decoder = Decoder(model, 64 * len(chosen))
        begins = [decoder.cache.reserve(12) or 0 for _ in chosen]
        for at in range(12):
            spans = [((begin, begin + at + 1),) for begin in begins]
            found = decoder.step([rows[r][at] for r in chosen], spans, [True] * len(chosen))
        return found

    assert torch.equal(last(list(range(20)))[7], last([7])[0])


def test_the_number_of_threads_changes_nothing() -> None:
    model = tuned(made("llama"))
    inner: Any = model.get_base_model()  # type: ignore[operator]
    inner.to(torch.bfloat16)
    rows = drawn(5, 90)

    def scores(threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            decoder = Decoder(inner, 128 * len(rows))
            begins = [decoder.cache.reserve(100) or 0 for _ in rows]
            first = decoder.read([New(row, ((b, b + 90),)) for row, b in zip(rows, begins, strict=True)])
            return torch.cat([first, decoder.step([9] * 5, [((b, b + 91),) for b in begins], [True] * 5)])
        finally:
            torch.set_num_threads(before)

    one = scores(1)
    for _ in range(3):
        # Three for two key heads: threads read what others have just written.
        assert torch.equal(scores(3), one)


def test_what_it_does_not_know_is_left_to_the_modules() -> None:
    model = made("llama")
    assert "bf16" in str(decode_native.why_not(model))
    model.to(torch.bfloat16)
    assert decode_native.why_not(model) is None
    odd = made("llama").to(torch.bfloat16)
    odd.config.hidden_act = "gelu"
    assert decode_native.why_not(odd) is not None
    doubled: Any = tuned(made("llama")).to(torch.bfloat16)
    doubled.add_adapter("other", LoraConfig(r=4, target_modules="all-linear", use_dora=True))
    doubled.set_adapter("other")
    assert decode_native.why_not(doubled.get_base_model()) is not None
