"""Fused LoRA = PEFT's own forward: outputs, gradients, and everything that PEFT does with a layer."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import nn

from tests.families import FAMILIES, tiny_model
from tests.model.tuning import BF16, logits, prepare, save, trained
from tunesmith.model import fused_lora

TOLERANCE = 1e-5  # relative norm of gradients, fp32


def step(model, passes: int = 2) -> dict[str, torch.Tensor]:
    """Gradients of a few accumulated passes, embeddings' included where they're trained."""
    model.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(3)
    for _ in range(passes):
        ids = torch.randint(0, 200, (2, 17), generator=generator)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    gap = sum(((g.double() - other[n].double()) ** 2).sum() for n, g in one.items())
    return float(torch.sqrt(gap / sum((g.double() ** 2).sum() for g in other.values())))


def compared(model) -> float:
    fused = step(model)
    fused_lora.unfuse(model)
    own = step(model)
    fused_lora.fuse(model)
    return difference(fused, own)


def moved(model):
    """B starts at zero, and then A has no gradient: a few steps first."""
    return trained(model).train()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_peft(base, family, rslora):
    model = moved(prepare(base(family), rslora=rslora))
    layers = [m for m in model.modules() if isinstance(m, lora.Linear)]
    assert layers
    assert all(type(layer) is fused_lora.FusedLinear for layer in layers)
    assert 0 < compared(model) < TOLERANCE  # 0 would mean that one was compared with itself
    model.eval()
    expected = logits(model)
    fused_lora.unfuse(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_the_input_and_a_bias_get_theirs_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 7, bias=True), nn.Tanh(), nn.Linear(7, 5, bias=False))
    model = get_peft_model(
        model, LoraConfig(r=3, lora_alpha=5, target_modules=["0", "2"], init_lora_weights=False)
    )
    results = []
    for change in (fused_lora.fuse, fused_lora.unfuse):
        change(model)
        x = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(1), requires_grad=True)
        model.zero_grad(set_to_none=True)
        y = model(x)
        (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
        results.append({"x": x.grad, "y": y.detach()} | {n: p.grad for n, p in model.named_parameters()
                                                        if p.requires_grad})  # fmt: skip
    assert difference(*results) < TOLERANCE


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bf16_it_is_as_close_to_fp32_as_peft(base, autocast):
    exact = step(moved(prepare(base("llama"))))
    start = {
        n: p.detach().clone() for n, p in moved(prepare(base("llama"))).named_parameters() if p.requires_grad
    }
    model = prepare(base("llama", BF16)).train()
    for name, parameter in model.named_parameters():
        if name in start:
            parameter.data.copy_(start[name])
    gaps = []
    for change in (fused_lora.unfuse, fused_lora.fuse):
        change(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            gradients = step(model)
        assert all(g.dtype is torch.float32 for g in gradients.values())
        gaps.append(difference(gradients, exact))
    assert gaps[1] < 0.05
    assert gaps[1] < gaps[0] * 1.25


def test_what_is_kept_for_the_backward_pass(base):
    # x once for q, k and v, h, and nothing in fp32 but what the model itself keeps.
    model = moved(prepare(base("llama", BF16), targets=["q_proj", "k_proj", "v_proj"]))
    layer = model.get_base_model().model.layers[1].self_attn
    x = torch.randn(1, 50, 48, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _ = layer.q_proj(x) + 0, layer.k_proj(x), layer.v_proj(x)
    weights = {p.data_ptr() for p in model.parameters()}
    activations = {t.data_ptr(): t for t in kept if t.data_ptr() not in weights and 50 in t.shape}
    assert {t.dtype for t in activations.values()} == {torch.bfloat16}
    assert sum(t.numel() for t in activations.values()) == 50 * 48 + 3 * 50 * 3


@pytest.mark.parametrize(
    "why", ["dropout", "dora", "two adapters", "merged", "disabled", "trained base", "lora bias"]
)
def test_anything_but_one_plain_adapter_is_left_to_peft(base, why, monkeypatch):
    values = {"dropout": {"dropout": 0.5}, "dora": {"type": "dora"}}.get(why, {})
    model = prepare(base("qwen2"), **values)
    if why == "two adapters":
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    if why == "lora bias":
        config = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True, init_lora_weights=False)
        model = get_peft_model(base("qwen2"), config)
        fused_lora.fuse(model)
    if why == "merged":
        model.merge_adapter()
    if why == "disabled":
        model.base_model.disable_adapter_layers()
    model.train()
    if why == "trained base":
        model.requires_grad_(True)
    used = []
    monkeypatch.setattr(fused_lora, "lora_linear", lambda *_: used.append(1))
    model(input_ids=torch.arange(9)[None], use_cache=False)
    assert not used


def test_dropout_is_fused_again_where_it_is_off(base, monkeypatch):
    model = prepare(base("llama"), dropout=0.5)
    calls = []
    real = fused_lora.lora_linear
    monkeypatch.setattr(fused_lora, "lora_linear", lambda *args: calls.append(1) or real(*args))
    model.train()(input_ids=torch.arange(9)[None])
    assert not calls
    model.eval()(input_ids=torch.arange(9)[None])
    assert calls


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_off_merged_unmerged_and_mixed_as_peft_has_it(base, family):
    model = moved(prepare(base(family))).eval()
    tuned, untouched = logits(model), logits(base(family))
    with model.disable_adapter():
        assert torch.equal(logits(model), untouched)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), tuned, atol=1e-4, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), tuned, atol=1e-4, rtol=0)
    ids = torch.arange(3, 43).reshape(2, 20)
    mixed = model(input_ids=ids, adapter_names=["default", "__base__"], use_cache=False).logits
    torch.testing.assert_close(mixed[0], tuned[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed[1], untouched[1], atol=1e-4, rtol=0)


def test_a_saved_adapter_says_nothing_of_it_and_loads_with_plain_peft(base, tmp_path):
    model = moved(prepare(base("llama"), rslora=True)).eval()
    folder = save(model, tmp_path / "adapter")
    config = (folder / "adapter_config.json").read_text()
    assert "used" not in config.lower()
    assert "tunesmith" not in config.lower()
    assert json.loads(config)["peft_type"] == "LORA"
    plain = PeftModel.from_pretrained(base("llama"), folder)
    assert not any(isinstance(m, fused_lora.FusedLinear) for m in plain.modules())
    torch.testing.assert_close(logits(plain.eval()), logits(model), atol=1e-5, rtol=0)


def test_recomputed_activations_give_the_same_gradients():
    model = moved(prepare(tiny_model("qwen3")))
    expected = step(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert difference(step(model), expected) < TOLERANCE
