"""What is trained: which layers, in which number format, from which seed; and targets that don't exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.families import FAMILIES
from tests.model.tuning import BF16, logits, prepare, save, trained, trained_names
from tunesmith.errors import ModelError, PlanError, SettingsError
from tunesmith.model import adapters, saved

FAMILY_TYPES = [(family, kind) for family in FAMILIES for kind in ("lora", "dora")]


@pytest.mark.parametrize(("family", "kind"), FAMILY_TYPES)
def test_all_means_every_linear_layer_but_the_head(base, family, kind):
    model = base(family)
    linear = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")} - {"lm_head"}
    if family == "qwen3_moe":  # PEFT takes the dense layer's names for the experts
        assert len(linear) == 3 * 4 + 3
        linear = {n for n in linear if "self_attn" in n}
    before = logits(model)
    tuned = prepare(model, type=kind)
    names = trained_names(tuned)
    assert {n.removeprefix("base_model.model.").partition(".lora_")[0] for n in names} == linear
    assert len(names) == len(linear) * (3 if kind == "dora" else 2)
    # a new adapter changes nothing yet
    torch.testing.assert_close(logits(tuned), before, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_adapter_is_fp32_and_the_base_stays_bf16(base, kind):
    tuned = prepare(base(device=BF16), type=kind)
    for name, parameter in tuned.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    before = {n: p.detach().clone() for n, p in tuned.named_parameters()}
    trained(tuned)
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ("down_proj", {"down_proj"}),
        ("q_proj,k_proj", {"q_proj", "k_proj"}),
    ],
)
def test_targets_by_name(base, targets, expected):
    tuned = prepare(base(), targets=targets)
    assert {n.partition(".lora_")[0].rpartition(".")[2] for n in trained_names(tuned)} == expected
    assert len(trained_names(tuned)) == 2 * 3 * len(expected)


@pytest.mark.parametrize("target", ["gate_proj", "model.layers.1.mlp.up_proj", "gate", "down_proj"])
def test_names_that_peft_takes_for_experts_are_refused(base, target):
    with pytest.raises(SettingsError, match="can't tune it in this family"):
        prepare(base("qwen3_moe"), targets=["q_proj", target])
    tuned = prepare(base("qwen3_moe"), targets=["q_proj"])
    assert not tuned.peft_config["default"].target_parameters
    assert len(trained_names(tuned)) == 2 * 3


def test_one_layer_by_its_full_name(base):
    tuned = prepare(base(), targets=["model.layers.1.mlp.up_proj"])
    assert len(trained_names(tuned)) == 2


def test_wrong_targets_are_all_named_with_the_layers_there_are(base):
    with pytest.raises(SettingsError) as caught:
        prepare(base(), targets=["q_proj", "query", "embed_tokens", "W_pack"])
    assert caught.value.details == (
        "query: the model has no layer of this name",
        "embed_tokens: not a linear layer (Embedding)",
        "W_pack: the model has no layer of this name",
    )
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in caught.value.fix


def test_the_head_of_a_tied_model_is_refused_and_of_an_untied_one_allowed(base):
    with pytest.raises(SettingsError, match="shares its weights with the embeddings"):
        prepare(base("qwen2"), targets=["lm_head"])
    assert len(trained_names(prepare(base("llama"), targets=["lm_head"]))) == 2


def test_the_scale_of_rslora_and_dropout_arrive(base):
    tuned = prepare(base(), rslora=True, dropout=0.25)
    layer = tuned.base_model.model.model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == pytest.approx(5 / 3**0.5)
    assert layer.lora_dropout["default"].p == 0.25
    layer = prepare(base()).base_model.model.model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    "values", [{}, {"type": "dora"}, {"init": "pissa"}, {"init": "pissa_niter_4"}], ids=str
)
def test_the_same_seed_gives_the_same_bytes_and_nobodys_random_state_moves(base, values, tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = save(prepare(base(), seed=3, **values), tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two = save(prepare(base(), seed=3, **values), tmp_path / "two")
    other = save(prepare(base(), seed=4, **values), tmp_path / "other")
    for file in (saved.WEIGHTS, saved.CONFIG):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    same = (one / saved.WEIGHTS).read_bytes() == (other / saved.WEIGHTS).read_bytes()
    assert same == (values == {"init": "pissa"})  # PiSSA's full decomposition draws no random numbers


def test_full_trains_every_weight_in_fp32_and_keeps_tied_weights_tied(base):
    tuned = prepare(base("qwen2", BF16), type="full")
    assert all(p.requires_grad and p.dtype is torch.float32 for p in tuned.parameters())
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    assert adapters.trainable_count(tuned)[0] == adapters.trainable_count(tuned)[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_freeze_trains_the_last_layers_and_nothing_else(base, family):
    tuned = prepare(base(family, BF16), type="freeze", last_layers=2)
    layers = "transformer.h" if family == "gpt2" else "model.layers"
    everything = dict(tuned.named_parameters())
    last = {n for n in everything if n.startswith((f"{layers}.1.", f"{layers}.2."))}
    assert trained_names(tuned) == last
    before = {n: p.detach().clone() for n, p in everything.items()}
    trained(tuned)
    for name, parameter in everything.items():
        assert parameter.dtype == (torch.float32 if name in last else torch.bfloat16)
        assert torch.equal(parameter, before[name]) == (name not in last), name


@pytest.mark.parametrize("values", [{"type": "full"}, {"type": "freeze", "last_layers": 2}], ids=str)
def test_a_model_too_large_to_train_is_refused_before_memory_is_taken(base, monkeypatch, values):
    monkeypatch.setattr(adapters, "available_memory", lambda _kind: 0)
    with pytest.raises(PlanError, match=rf"adapter\.type {values['type']} needs [\d.]+ GiB of memory, but"):
        prepare(base(), **values)


def test_more_layers_than_there_are(base):
    with pytest.raises(SettingsError, match="last_layers is 4, but the model has 3 layers"):
        prepare(base(), type="freeze", last_layers=4)


def test_counts_take_tied_weights_once(base):
    model = base("qwen2")
    total = sum(t.numel() for t in load_file(Path(model.name_or_path) / "model.safetensors").values())
    assert adapters.trainable_count(model)[1] == total
    tuned = prepare(model, targets=["q_proj"])
    lora = 3 * 3 * (60 + 60)  # layers x rank x (in + out)
    assert adapters.trainable_count(tuned) == (lora, total + lora)


def test_a_rank_that_pissa_cannot_reach(base):
    with pytest.raises(ModelError, match="too large for PiSSA: a target has only 24 rows"):
        prepare(base(), init="pissa", rank=25)
