"""Chunked head = full head: loss and gradients, whatever the head is made of; full logits never exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.families import FAMILIES, tiny_model
from tests.model.tuning import prepare, trained
from tests.train.test_equality import rows
from tunesmith.data.batch import collate
from tunesmith.model.families import can_pack
from tunesmith.train import head
from tunesmith.train.forward import label_logits
from tunesmith.train.losses import label_loss
from tunesmith.train.objectives import sft

TOLERANCE = 1e-5  # relative norm of gradients, fp32
TINY = {
    "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 205, "max_position_embeddings": 512, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Families beyond tests/families.py, with what makes their heads their own.
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 1.5},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},
    "gpt_neox": {},
    "smollm3": {},
    "olmo2": {},
    "starcoder2": {},
    "glm4": {"head_dim": 16},
    "olmoe": {"num_experts": 5, "num_experts_per_tok": 2},
}


def build(family: str, *, untied: bool = False) -> PreTrainedModel:
    if family in FAMILIES:
        model = tiny_model(family)
        if untied and model.config.tie_word_embeddings:
            config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": False})
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        return model.train()
    config = AutoConfig.for_model(family, **{**TINY, **MORE[family]})
    config.tie_word_embeddings &= not untied
    torch.manual_seed(1)
    # Eager: SDPA can't cap gemma2's scores.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one not full, in tests of some dozen labels."""
    monkeypatch.setattr(head, "ROWS", 7)
    monkeypatch.setattr(head, "WEIGHT_ROWS", 21)
    monkeypatch.setattr(head, "ROW_MULTIPLE", 5)


def step(
    model: PreTrainedModel, *, full: bool, smoothing: float = 0.0, factor: float = 0.37, packing: bool = True
):
    """Summed loss, and gradients, of one pass; `full` is the way with all logits at once."""
    packing = packing and can_pack(model.config)[0]
    batch = collate(rows(200, (5, 23, 11, 40)), packing=packing, pad_id=0)
    model.zero_grad(set_to_none=True)
    if full:
        logits = label_logits(model, batch)
        (loss, count), each = label_loss(logits, batch.targets, smoothing), row_by_row(logits, batch.targets)
    else:
        assert head.head_of(model) is not None
        loss, count = sft(smoothing).loss(model, batch)
        each = batch.label_losses
    assert count == len(batch.targets)
    (loss * factor).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, each


def row_by_row(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each label token, computed by itself."""
    return torch.stack(
        [-torch.log_softmax(z.double(), 0)[y] for z, y in zip(logits.detach(), targets, strict=True)]
    ).float()


def difference(one: Any, other: Any) -> float:
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert one[1].keys() == other[1].keys()
    torch.testing.assert_close(one[2].float(), other[2].float(), rtol=1e-5, atol=1e-5)
    assert not one[2].requires_grad
    gap = sum(((g.double() - other[1][n].double()) ** 2).sum() for n, g in one[1].items())
    return float(torch.sqrt(gap / sum((g.double() ** 2).sum() for g in other[1].values())))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_trained_with_everything_else(family: str, smoothing: float) -> None:
    # Tied (qwen2, qwen3, gemma, gpt2), untied (llama, phi3, mistral), with bias (phi), capped, scaled.
    model = build(family)
    assert (
        difference(step(model, full=False, smoothing=smoothing), step(model, full=True, smoothing=smoothing))
        < TOLERANCE
    )


@pytest.mark.parametrize(
    ("family", "smoothing"), [*((name, 0.0) for name in (*FAMILIES, "granite", "phi")), ("gemma2", 0.2)]
)
def test_frozen_under_lora(family: str, smoothing: float) -> None:
    model = trained(prepare(build(family))).train()
    one = step(model, full=False, smoothing=smoothing)
    assert not any("lm_head" in name or "embed" in name for name in one[1])
    assert difference(one, step(model, full=True, smoothing=smoothing)) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "smoothing"), [("llama", 0.0), ("llama", 0.2), ("phi", 0.0), ("gemma2", 0.1), ("granite", 0.0)]
)
def test_with_lora_on_the_head(family: str, smoothing: float) -> None:
    # Beside a bias (phi), under a cap (gemma2) and a factor (granite), whose heads are untied for this.
    model = trained(prepare(build(family, untied=True), targets=["q_proj", "lm_head"])).train()
    one = step(model, full=False, smoothing=smoothing)
    assert sum("lm_head" in name for name in one[1]) == 2
    assert difference(one, step(model, full=True, smoothing=smoothing)) < TOLERANCE
    with model.disable_adapter():
        parts = head.head_of(model)
        assert parts is not None
        assert parts[1].a is None


def test_padded_rows() -> None:
    model = build("qwen2")
    assert (
        difference(step(model, full=False, packing=False), step(model, full=True, packing=False)) < TOLERANCE
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bf16_is_as_close_to_fp32_as_the_full_head(family: str) -> None:
    exact = step(build(family), full=True)
    for change in ({"autocast": True}, {"autocast": False}):
        model = build(family)
        if not change["autocast"]:
            model = model.bfloat16()
        gaps = []
        for full in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=change["autocast"]):
                found = step(model, full=full)
            assert found[0] == pytest.approx(exact[0], rel=0.01)
            gaps.append(difference((exact[0], found[1], exact[2]), exact))
        assert gaps[1] < 0.05
        assert gaps[1] < gaps[0] * 1.25


def test_without_gradients_there_is_the_loss_alone() -> None:
    model = build("llama")
    batch = collate(rows(200, (5, 23, 11)), packing=True, pad_id=0)
    with torch.no_grad():
        loss, _ = sft().loss(model, batch)
        full, _ = label_loss(label_logits(model, batch), batch.targets)
    assert not loss.requires_grad
    products = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal products
            products += func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out)
            return func(*args, **(kwargs or {}))

    states = torch.randn(20, 48)
    with torch.no_grad(), Count():
        head.head_loss(states, batch.targets[:20], head.Head(model.lm_head.weight))
    assert products == 3  # 7 + 7 + 6 label tokens, and nothing for a gradient
    assert float(loss) == pytest.approx(float(full), rel=1e-6)


class Widest(TorchDispatchMode):
    """The largest number of rows of any tensor that is as wide as the vocabulary."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.width, self.rows, self.weight = len(weight), 0, weight.data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor) or tensor.data_ptr() == self.weight:
                continue  # the head's own matrix, turned
            if tensor.shape[-1:] == (self.width,):
                self.rows = max(self.rows, tensor.numel() // self.width)
        return out


@pytest.mark.parametrize("full", [True, False])
def test_full_logits_never_exist(full: bool) -> None:
    model = trained(prepare(build("phi"))).train()
    labels = len(collate(rows(200, (5, 23, 11, 40)), packing=True, pad_id=0).targets)
    assert labels > 3 * head.ROWS
    with Widest(model.get_output_embeddings().weight) as seen:
        step(model, full=full)
    if full:
        assert seen.rows >= labels  # the watch sees them where they are
    else:
        assert seen.rows == head.ROWS


def test_heads_that_are_not_understood_go_the_other_way() -> None:
    model = build("llama")
    assert head.head_of(model) is not None
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert head.head_of(model) is None
    handle.remove()
    model.config.model_type = "new"
    assert head.head_of(model) is None
    model = build("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert head.head_of(model) is None
    tuned = prepare(build("llama"), targets=["lm_head"], dropout=0.1).train()
    assert head.head_of(tuned) is None
    assert head.head_of(tuned.eval()) is not None
    # And what goes the other way still trains.
    loss, _ = sft().loss(tuned.train(), collate(rows(200, (5, 9)), packing=True, pad_id=0))
    loss.backward()


def test_every_proved_family_is_tested_here() -> None:
    assert {build(family).config.model_type for family in [*FAMILIES, *MORE]} == set(head.PROVED)
