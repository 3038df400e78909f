"""Merged weights give the logits of the adapter over its base, in every form that an adapter can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tunesmith as ts
from tests.families import save_tiny
from tests.infer.made_run import made_run
from tests.model.tuning import BF16, FP32, logits, prepare, save, trained
from tunesmith.errors import ModelError
from tunesmith.export.merge import UNTIED, merge
from tunesmith.model import adapters, saved
from tunesmith.model.load import load_model
from tunesmith.model.source import resolve

TINY = 1e-4  # of logits of size 1 to 10, in fp32


def _base(folder: Path, device: Any = FP32) -> Any:
    return load_model(resolve(str(folder)), device)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {}),
        ("qwen2", {}),  # biases, tied
        ("gemma3", {}),
        ("gpt2", {}),  # weights the other way round
        ("qwen3_moe", {}),
        ("llama", {"type": "dora"}),
        ("gpt2", {"type": "dora"}),
        ("qwen2", {"rslora": True}),
        ("llama", {"init": "pissa"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "lora",
)
def test_merged_weights_answer_as_the_adapter_over_its_base(
    tmp_path: Path, family: str, values: dict[str, Any]
) -> None:
    base = save_tiny(family, tmp_path / "base")
    folder = save(trained(prepare(_base(base), **values)), tmp_path / "adapter", family)
    untuned, wanted = logits(_base(base)), logits(adapters.attach(_base(base), folder))
    notes: list[str] = []
    model = merge(adapters.attach(_base(base), folder), notes.append)
    torch.testing.assert_close(logits(model), wanted, atol=TINY, rtol=TINY)
    assert (wanted - untuned).abs().max() > 100 * TINY
    assert not notes
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]


def test_a_layer_is_merged_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    folder = save(trained(prepare(_base(base))), tmp_path / "adapter")
    tuned = adapters.attach(_base(base, BF16), folder)
    layer: Any = next(m for n, m in tuned.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    assert a.dtype == b.dtype == torch.float32
    weight = layer.get_base_layer().weight.detach().clone()
    wanted = (weight.double() + scale * (b.double() @ a.double())).to(torch.bfloat16)
    in_bf16 = weight + (scale * (b @ a)).to(torch.bfloat16)
    model: Any = merge(tuned)
    found = model.model.layers[0].self_attn.q_proj.weight
    assert found.dtype is torch.bfloat16
    # The sum in fp32 and in fp64 may round to neighbours where they fall between two numbers of bf16.
    assert (found != wanted).float().mean() < 1e-3
    assert (in_bf16 != wanted).float().mean() > 0.05, "rounding the update first is something else"


TIED = [
    ("head", {"target_modules": ["lm_head"]}),
    ("embeddings", {"target_modules": ["embed_tokens"]}),
    ("both", {"target_modules": ["lm_head", "embed_tokens", "q_proj"]}),
    ("whole head", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("whole embeddings", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # as the adapter is made
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
@pytest.mark.parametrize("options", [o for _, o in TIED], ids=[name for name, _ in TIED])
def test_a_tuned_head_or_embedding_of_a_tied_model_stays_tuned_and_leaves_the_other_alone(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    base, folder = save_tiny(family, tmp_path / "base"), tmp_path / "adapter"
    _adapter_of_peft(base, folder, options)
    untuned, wanted = logits(_base(base)), logits(adapters.attach(_base(base), folder))
    assert (wanted - untuned).abs().max() > 0.01
    notes: list[str] = []
    model = merge(adapters.attach(_base(base), folder), notes.append)
    torch.testing.assert_close(logits(model), wanted, atol=TINY, rtol=TINY)
    assert notes == [UNTIED]
    saved.write_model(model, tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert again.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(again.eval()), wanted, atol=TINY, rtol=TINY)


def test_an_untied_model_says_nothing_of_ties(tmp_path: Path) -> None:
    base = save_tiny("gemma3", tmp_path / "base", tie_word_embeddings=False)
    folder = tmp_path / "adapter"
    _adapter_of_peft(base, folder, {"target_modules": ["lm_head"]})
    wanted = logits(adapters.attach(_base(base), folder))
    notes: list[str] = []
    torch.testing.assert_close(
        logits(merge(adapters.attach(_base(base), folder), notes.append)), wanted, atol=TINY, rtol=TINY
    )
    assert not notes


def test_an_adapter_that_is_no_number_is_refused(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    tuned = prepare(_base(base))
    with torch.no_grad():
        for part, value in (("lora_A", 1e3), ("lora_B", 3e38)):
            next(p for n, p in tuned.named_parameters() if part in n)[0, 0] = value
    folder = save(tuned, tmp_path / "adapter")
    with pytest.raises(ModelError, match="aren't finite"):
        merge(adapters.attach(_base(base), folder))


@pytest.mark.parametrize("adapter", [{}, {"type": "full"}], ids=["lora", "full"])
def test_a_weight_that_a_number_format_can_t_hold_is_named(tmp_path: Path, adapter: dict[str, Any]) -> None:
    """1e6 is infinite in f16; it is in a norm, which LoRA leaves alone."""
    base = save_tiny("llama", tmp_path / "base")
    if not adapter:
        _overflow(base / "model.safetensors")
    run = made_run(tmp_path / "run", base, adapter=adapter)
    if adapter:
        _overflow(run.model / "model.safetensors")
    with pytest.raises(ModelError, match=r"don't fit into float16.*: model\.norm\.weight\.") as refused:
        ts.export(run, "merged", dtype="f16")
    assert "bf16" in refused.value.fix
    assert not list(run.export.iterdir())


def _overflow(file: Path) -> None:
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, file, {"format": "pt"})


def _adapter_of_peft(base: Path, folder: Path, options: dict[str, Any]) -> None:
    """An adapter that PEFT itself made and saved, tuned by chance."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tuned = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options),
        )
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape)
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
