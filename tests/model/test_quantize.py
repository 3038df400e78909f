"""Quantised bases: our products equal those with the unpacked weights, forward and backward."""

from __future__ import annotations

import copy
import sys

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers import AutoConfig, Qwen3MoeConfig
from transformers.pytorch_utils import Conv1D

from tests.families import FAMILIES, tiny_model
from tests.model.test_fused_lora import TOLERANCE, difference, moved, step
from tests.model.tuning import BF16, FP32, logits, prepare, save
from tunesmith.errors import MissingExtraError, ModelError, SettingsError
from tunesmith.model import adapters, fused_lora, quantize, targets
from tunesmith.model.config import QuantizationSettings
from tunesmith.model.load import load_model
from tunesmith.model.source import resolve
from tunesmith.settings import build

# A mixture's experts aren't linear layers, and it is refused.
DENSE = tuple(name for name in FAMILIES if name != "qwen3_moe")
KINDS = ({"type": "nf4"}, {"type": "nf4", "double_quant": False}, {"type": "int8"})

# The 16 values of NF4, from the appendix of arXiv 2305.14314.
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]
)  # fmt: skip


@pytest.fixture
def quantised(folders):
    """Loads a family's base quantised, as a job does."""

    def load(family: str = "llama", device=FP32, **settings):
        return load_model(
            resolve(str(folders[family])), device, quantization=build(QuantizationSettings, settings)
        )

    return load


def unpacked(model: nn.Module) -> nn.Module:
    """The same model with plain linear layers of the weights that the quantised ones stand for."""
    copied = copy.deepcopy(model)
    for name, layer in quantize.quantised_layers(copied).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(layer.dense().detach().clone(), requires_grad=False)
        if layer.bias is not None:
            plain.bias = layer.bias
        copied.set_submodule(name, plain)
    copied.is_loaded_in_4bit = copied.is_loaded_in_8bit = False
    return copied


def by_hand(layer) -> torch.Tensor:
    """NF4 unpacked from its definition: two codes a byte, the high half first, times the block's scale."""
    state = layer.weight.quant_state
    scales = state.absmax
    if state.nested:
        inner = state.state2
        blocks = inner.code[scales.long()].split(inner.blocksize)
        scales = torch.cat([b * s for b, s in zip(blocks, inner.absmax, strict=True)]) + state.offset
    codes = layer.weight.data.flatten().long()
    values = NF4[
        torch.stack([codes >> 4, codes & 15], dim=1).flatten()[: layer.in_features * layer.out_features]
    ]
    blocks = values.split(state.blocksize)
    return torch.cat([b * s for b, s in zip(blocks, scales, strict=True)]).view(
        layer.out_features, layer.in_features
    )


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_is_what_its_paper_says(quantised, double_quant):
    layers = quantize.quantised_layers(quantised(type="nf4", double_quant=double_quant))
    assert len(layers) == 3 * 7
    for layer in layers.values():
        torch.testing.assert_close(layer.dense(), by_hand(layer), atol=1e-6, rtol=1e-6)


def test_int8_is_bitsandbytes_own(quantised):
    for layer in quantize.quantised_layers(quantised(type="int8")).values():
        own = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        torch.testing.assert_close(layer.dense(), own, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * ("double_quant" in kind), id=str(kind)) for kind in KINDS],
)
@pytest.mark.parametrize("family", DENSE)
def test_gradients_equal_those_through_the_unpacked_copy(quantised, family, kind):
    base = quantised(family, **kind)
    plain = moved(prepare(unpacked(base)))
    model = prepare(base)
    layers = [m for m in model.modules() if isinstance(m, quantize.FusedQuantised)]
    assert len(layers) == len(quantize.quantised_layers(model)) > 0
    model.load_state_dict({n: p for n, p in plain.named_parameters() if p.requires_grad}, strict=False)
    # An evaluation first: bitsandbytes' own layers would repack their weights in it, and lose their gradient.
    model.eval()
    expected = logits(plain.eval())
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    same = step(plain.train())
    fused_lora.unfuse(plain)
    wanted = step(plain)
    assert 0 < difference(step(model.train()), wanted) < TOLERANCE  # 0 would be one compared with itself
    assert difference(step(model), same) == 0  # the same function over the same weights
    fused_lora.unfuse(model)
    assert not any(isinstance(m, fused_lora.Fused) for m in model.modules())
    assert difference(step(model), wanted) < TOLERANCE


def test_bitsandbytes_own_layer_loses_its_gradient_after_an_evaluation():
    # The trap that our products avoid; where it is mended, this test says so.
    if not bnb.functional.has_avx512bf16():
        pytest.skip("bitsandbytes doesn't repack weights on this machine")
    layer = bnb.nn.Linear4bit(64, 96, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(5, 64)
    with torch.no_grad():
        layer.eval()(x)
    x.requires_grad_(True)
    y = layer.train()(x)
    torch.testing.assert_close(y, x @ weight.t(), atol=0.1, rtol=0.1)
    if y.requires_grad:
        with pytest.warns(UserWarning, match="autograd kernel"):
            y.sum().backward()
    assert x.grad is None or not torch.allclose(x.grad, weight.sum(0).expand(5, -1), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS[::2], ids=str)
@pytest.mark.parametrize("values", [{"type": "dora"}, {"dropout": 0.3}, {"rslora": True}], ids=str)
def test_what_is_not_fused_has_the_right_gradients_too(quantised, kind, values):
    base = quantised("qwen2", **kind)
    plain, model = moved(prepare(unpacked(base), **values)), prepare(base, **values)
    model.load_state_dict({n: p for n, p in plain.named_parameters() if p.requires_grad}, strict=False)
    results = []
    for tuned in (plain, model):
        torch.manual_seed(1)  # of dropout
        results.append(step(tuned.train()))
    assert difference(results[1], results[0]) < TOLERANCE


def test_nothing_of_the_weights_size_is_kept_for_the_backward_pass(quantised):
    model = prepare(quantised(type="nf4"))
    layer = next(m for m in model.modules() if isinstance(m, quantize.FusedQuantised))
    base, kept = layer.get_base_layer(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, base.in_features, requires_grad=True))
    assert kept
    assert not any(t.is_floating_point() and t.numel() >= base.in_features * base.out_features for t in kept)


@pytest.mark.parametrize("kind", KINDS[::2], ids=str)
def test_the_head_and_the_embeddings_stay_as_they_are(quantised, kind):
    for family in ("llama", "qwen2"):
        model = quantised(family, **kind)
        assert type(model.get_output_embeddings()) is nn.Linear
        assert type(model.get_input_embeddings()) is nn.Embedding
        assert quantize.quantised_layers(model).keys() == targets.linear_layers(model).keys()


@pytest.mark.parametrize(("kind", "least", "most"), [("nf4", 0.05, 0.15), ("int8", 0.001, 0.02)])
def test_the_error_is_measured_against_the_files(quantised, folders, kind, least, most):
    for family in ("llama", "gpt2"):
        model = quantised(family, type=kind)
        error = quantize.relative_error(model, folders[family])
        assert error is not None
        assert least < error < most
        exact = {
            n: m.weight.detach()
            for n, m in tiny_model(family).named_modules()
            if isinstance(m, nn.Linear | Conv1D)
        }
        layers = quantize.quantised_layers(model)
        pairs = [(m.dense(), exact[n].t() if m.source_cls is Conv1D else exact[n]) for n, m in layers.items()]
        gap = sum(float((one - other).square().sum()) for one, other in pairs)
        size = sum(float(other.square().sum()) for _, other in pairs)
        assert error == pytest.approx((gap / size) ** 0.5, rel=0.1)  # a sample of the layers


def test_products_are_in_the_format_asked_for(quantised):
    def formats(**settings):
        model = quantised("llama", **settings)
        return {layer.layout.dtype for layer in quantize.quantised_layers(model).values()}

    assert formats(type="nf4") == {torch.float32}
    assert formats(type="nf4", compute_dtype="bf16") == {torch.bfloat16}
    assert formats(type="nf4", device=BF16) == {torch.bfloat16}
    assert formats(type="int8", device=BF16, compute_dtype="fp32") == {torch.float32}
    model = prepare(quantised("llama", device=BF16, type="nf4", compute_dtype="fp32"))
    assert logits(model).isfinite().all()
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        formats(type="nf4", compute_dtype="fp16")


def test_an_adapter_goes_to_the_16_bit_base_and_back(quantised, base, tmp_path):
    for family in ("llama", "gpt2"):
        model = moved(prepare(quantised(family, type="nf4"))).eval()
        folder = save(model, tmp_path / family, family)
        again = adapters.attach(quantised(family, type="nf4"), folder, base_fingerprint="f" * 64)
        assert torch.equal(logits(again), logits(model))
        whole = adapters.attach(base(family), folder, base_fingerprint="f" * 64)
        assert not quantize.quantised_layers(whole)
        # Another base, by 4 bits: near, and not the same.
        assert 0 < float((logits(whole) - logits(model)).norm() / logits(model).norm()) < 0.5
        merged = whole.merge_and_unload()
        torch.testing.assert_close(
            logits(merged), logits(adapters.attach(base(family), folder)), atol=1e-4, rtol=0
        )


def test_merging_into_a_quantised_base_is_refused(quantised):
    for kind in KINDS[::2]:
        model = prepare(quantised("llama", **kind))
        with pytest.raises(ModelError, match="without quantization"):
            model.merge_adapter()


def test_switched_off_the_base_answers(quantised):
    untouched = logits(quantised(type="nf4"))
    model = moved(prepare(quantised(type="nf4"))).eval()
    assert not torch.equal(logits(model), untouched)
    with adapters.adapter_off(model):
        assert torch.equal(logits(model), untouched)


def test_recomputed_activations_give_the_same_gradients(quantised):
    for kind in KINDS[::2]:
        model = moved(prepare(quantised("qwen3", **kind)))
        expected = step(model)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        assert difference(step(model), expected) < TOLERANCE


def test_experts_of_a_mixture_are_not_linear_layers():
    config = Qwen3MoeConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, moe_intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    found = quantize.outline(config)
    with pytest.raises(ModelError, match="qwen3_moe family can't be quantised") as caught:
        quantize.check_support("a model", config, found)
    assert "gate_up_proj" in str(caught.value)


@pytest.mark.parametrize("family", DENSE)
def test_memory_is_known_before_anything_is_loaded(folders, quantised, family):
    config = AutoConfig.from_pretrained(folders[family])
    found = quantize.outline(config)
    quantize.check_support(family, config, found)
    model = quantised(family, type="nf4")
    layers = quantize.quantised_layers(model)
    assert found.quantised == sum(m.in_features * m.out_features for m in layers.values())
    apart = {id(m.weight) for m in layers.values()}
    assert found.others == sum(p.numel() for p in model.parameters() if id(p) not in apart)
    for settings in KINDS:
        held = quantize.held_bytes(found, build(QuantizationSettings, settings), 4)
        layers = quantize.quantised_layers(quantised(family, **settings)).values()
        pieces = sum(t.numel() * t.element_size() for m in layers for t in m.pieces[:2])
        assert held == pytest.approx(pieces + found.others * 4, rel=0.05)  # int8: but for its scales


def test_without_the_package_it_says_what_to_install(quantised, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError) as caught:
        quantised(type="nf4")
    assert "tunesmith[quant]" in str(caught.value)
    assert "-e '.[quant]'" in str(caught.value)
    assert caught.value.exit_code == 2
