"""Optimizers by name = those of torch, over the right tensors; schedules and warm-up."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from tests.families import tiny_model
from tests.model.tuning import prepare
from tunesmith.errors import MissingExtraError, ModelError, SettingsError
from tunesmith.settings import build
from tunesmith.train.config import TrainSettings
from tunesmith.train.optim import (
    Together,
    build_optimizer,
    build_schedule,
    check_installed,
    check_schedule,
    check_tensors,
    notes,
    sort_tensors,
    warmup_steps,
)

NAMES = TrainSettings.model_fields["optimizer"].annotation.__args__  # type: ignore[union-attr]


def settings(**values: object) -> TrainSettings:
    return build(TrainSettings, values)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.linear = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 2)
        self.frozen.requires_grad_(False)


def test_weight_decay_is_for_matrices_only() -> None:
    model = Small()
    optimizer = build_optimizer(model, settings(weight_decay=0.1))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.1 for p in g["params"]}
    rest = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert decayed == {id(model.linear.weight)}
    assert rest == {
        id(p) for p in (model.embedding.weight, model.linear.bias, model.norm.weight, model.norm.bias)
    }


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    ids = torch.arange(7, 39).view(2, 16)
    seen = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(loss.detach()))
    return seen


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_the_loss(name: str, full: bool) -> None:
    model = prepare(tiny_model("llama"), type="full") if full else prepare(tiny_model("llama"), rank=4)
    rate = 0.5 if name == "sgd" else 1e-2 if full else 5e-2
    seen = losses(model, build_optimizer(model, settings(optimizer=name, learning_rate=rate)), 12)
    assert seen[-1] < 0.8 * seen[0]


def by_torch(model: nn.Module, name: str, decay: float) -> list[torch.optim.Optimizer]:
    """The same, written out."""
    kinds = sort_tensors(model)
    groups = [
        {"params": [*kinds.matrices, *kinds.head], "weight_decay": decay},
        {"params": kinds.rest, "weight_decay": 0.0},
    ]
    if name == "sgd":
        return [torch.optim.SGD(groups, lr=0.01, momentum=0.6)]
    if name == "adafactor":
        return [torch.optim.Adafactor(groups, lr=0.01, eps=(None, 1.0))]
    if name == "muon":
        groups[0]["params"] = kinds.head
        adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-6)
        muon = torch.optim.Muon(
            kinds.matrices, lr=0.01, weight_decay=decay, momentum=0.6, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, adamw]
    return [torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-6)]


def given(name: str) -> dict[str, object]:
    """Settings that differ from the defaults, so that one that doesn't arrive is seen."""
    own: dict[str, object] = {"optimizer": name, "learning_rate": 0.01, "weight_decay": 0.2}
    if name in ("adamw", "adamw_8bit", "muon"):
        own |= {"betas": [0.8, 0.9], "epsilon": 1e-6}
    return own | ({"momentum": 0.6} if name in ("sgd", "muon") else {})


def stepped(optimizers: list[torch.optim.Optimizer], model: nn.Module, steps: int) -> dict[str, torch.Tensor]:
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return {n: p.detach() - start[n] for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw_8bit"])
def test_updates_equal_those_of_torch(name: str) -> None:
    models = [prepare(tiny_model("llama"), type="full") for _ in range(2)]
    own = stepped([build_optimizer(models[0], settings(**given(name)))], models[0], 4)
    reference = stepped(by_torch(models[1], name, 0.2), models[1], 4)
    for key, update in reference.items():
        torch.testing.assert_close(own[key], update, atol=1e-7, rtol=1e-5)


def test_eight_bits_are_near_adamw_and_said_to_be() -> None:
    models = [prepare(tiny_model("llama"), type="full") for _ in range(2)]
    eight = settings(**given("adamw_8bit"))
    optimizer = build_optimizer(models[0], eight)
    own = stepped([optimizer], models[0], 20)
    reference = stepped(by_torch(models[1], "adamw", 0.2), models[1], 20)
    state = {id(p): s for part in optimizer.parts for p, s in part.state.items()}  # type: ignore[attr-defined]
    for key, parameter in models[0].named_parameters():
        off = float((own[key] - reference[key]).norm() / reference[key].norm())
        if key.endswith(("norm.weight", "embed_tokens.weight")) or parameter.numel() < 4096:
            # Embeddings, norms and what is small keep fp32 averages.
            assert off < 1e-5, key
        else:
            assert state[id(parameter)]["state1"].dtype is torch.uint8
            assert 0 < off < 0.05, key
    assert "Approximate" in notes(models[0], eight)[0]
    assert notes(models[0], settings()) == []


def test_muon_takes_the_matrices_and_says_who_takes_the_rest() -> None:
    model = prepare(tiny_model("llama"), type="full")
    muon, adamw = build_optimizer(model, settings(optimizer="muon")).parts  # type: ignore[attr-defined]
    names = {id(p): n for n, p in model.named_parameters()}
    taken = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    others = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert taken | others == set(names.values())
    assert not taken & others
    assert others == {n for n in names.values() if "norm" in n or "embed" in n or "lm_head" in n}
    (note,) = notes(model, settings(optimizer="muon"))
    assert f"{len(taken)} matrices; {len(others)} other tensors" in note
    lora = prepare(tiny_model("llama"))
    assert type(build_optimizer(lora, settings(optimizer="muon"))) is torch.optim.Muon
    assert notes(lora, settings(optimizer="muon")) == []


def test_muon_refuses_what_is_no_matrix() -> None:
    model = nn.Conv1d(3, 4, 5)
    with pytest.raises(ModelError, match="takes matrices"):
        check_tensors(model, settings(optimizer="muon"))
    check_tensors(model, settings(optimizer="adamw"))


@pytest.mark.parametrize("name", ["muon", "adamw_8bit"])
def test_two_optimizers_follow_one_schedule_and_go_on_where_they_were(name: str) -> None:
    chosen = settings(**given(name), schedule="linear", warmup=2)

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = prepare(tiny_model("llama"), type="full")
        return model, build_optimizer(model, chosen)

    model, optimizer = fresh()
    assert isinstance(optimizer, Together)
    schedule = build_schedule(optimizer, chosen, 6)
    for _ in range(3):
        assert {g["lr"] for p in optimizer.parts for g in p.param_groups} == {schedule.get_last_lr()[0]}
        stepped([optimizer], model, 1)
        schedule.step()
    other, again = fresh()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(update.norm() > 0 for update in stepped([optimizer], model, 2).values())
    stepped([again], other, 2)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match="bitsandbytes") as caught:
        check_installed(settings(optimizer="adamw_8bit"))
    assert "tunesmith[quant]" in str(caught.value)
    check_installed(settings())


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"), [(0.05, 100, 5), (0.05, 101, 6), (0, 50, 0), (10, 50, 10)]
)
def test_warmup_is_a_share_below_one_else_steps(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(warmup, steps) == expected


def rates(name: str, steps: int, **values: object) -> list[float]:
    chosen = settings(schedule=name, learning_rate=1.0, **values)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, chosen, steps)
    seen = []
    for _ in range(steps):
        seen.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return seen


def test_linear_goes_up_and_down_and_no_step_is_wasted() -> None:
    # Points 1 to 6 of a schedule of 7: 1/2, 2/2, then (7 - t) / 5.
    assert rates("linear", 6, warmup=2) == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_a_single_step_learns(steps: int) -> None:
    assert min(rates("cosine", steps, warmup=0.05)) > 0.05


@pytest.mark.parametrize("name", TrainSettings.model_fields["schedule"].annotation.__args__)  # type: ignore[union-attr]
def test_every_schedule_can_be_built(name: str) -> None:
    options = {"cosine_with_min_lr": {"min_lr": 0.1}, "warmup_stable_decay": {"num_decay_steps": 3}}
    warmup = 0 if name == "constant" else 2
    seen = rates(name, 10, warmup=warmup, schedule_options=options.get(name, {}))
    assert max(seen) <= 1.0 + 1e-6
    assert min(seen) > 0
    assert seen[0] < 0.51 or name == "constant"


def test_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(SettingsError, match="whole training has 8"):
        rates("linear", 8, warmup=8)


def test_an_option_that_a_schedule_does_not_take_is_refused() -> None:
    with pytest.raises(SettingsError, match="linear"):
        rates("linear", 8, warmup=0, schedule_options={"num_cycle": 2})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inverse_sqrt", {"timescale": 0}),
        ("polynomial", {"power": -1}),
        ("polynomial", {"lr_end": 1.0}),
    ],
)
@pytest.mark.parametrize("steps", [1, 20, 1_000_000])
def test_a_schedule_that_fails_on_the_way_is_refused_before(
    name: str, options: dict[str, float], steps: int
) -> None:
    with pytest.raises(SettingsError, match=name):
        check_schedule(settings(schedule=name, schedule_options=options, learning_rate=0.1), steps)


@pytest.mark.parametrize("name", TrainSettings.model_fields["schedule"].annotation.__args__)  # type: ignore[union-attr]
def test_a_sound_schedule_passes(name: str) -> None:
    options = {"cosine_with_min_lr": {"min_lr": 1e-5}, "warmup_stable_decay": {"num_decay_steps": 3}}
    warmup = {} if name == "constant" else {"warmup": 2}
    check_schedule(settings(schedule=name, schedule_options=options.get(name, {}), **warmup), 5000)
