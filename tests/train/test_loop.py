"""The loop: guards, early stopping, best and last, repeatability, and what its lines of metrics say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.families import tiny_model
from tests.train.test_equality import rows
from tunesmith.data.batch import Batch, collate
from tunesmith.data.pack import Step, plan_epoch, plan_eval
from tunesmith.device import Device
from tunesmith.errors import TrainError
from tunesmith.model.attention import can_segment
from tunesmith.rundir import create
from tunesmith.settings import build
from tunesmith.train import epochs
from tunesmith.train.config import TrainSettings
from tunesmith.train.listener import Silent
from tunesmith.train.loop import Outcome, run_loop
from tunesmith.train.neftune import Neftune
from tunesmith.train.objectives import Objective, sft
from tunesmith.train.seeds import seed_everything
from tunesmith.train.track import Tracking
from tunesmith.train.training import Training

STEP_KEYS = {
    "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "unique_tokens", "label_tokens", "rows",
    "tokens_per_second", "peak_memory_bytes", "seconds",
}  # fmt: skip
CPU = Device(torch.device("cpu"), torch.float32, "CPU")


def training(folder: Path, model: PreTrainedModel | None = None, **changes: Any) -> Training:
    """A loop over eight rows on a tiny model; keywords that aren't settings replace its parts."""
    model = model or tiny_model("llama")
    examples = rows(model.config.vocab_size)
    parts: dict[str, Any] = {
        "model": model,
        "objective": sft(),
        "train": examples,
        "valid": (),
        "device": CPU,
        "packing": True,
        "pad_id": 0,
        "run": changes.get("run") or create(folder / "run"),
        "listener": Silent(),
        "tracking": Tracking([]),
        "sample": lambda _: None,
        "sharing": False,
        "segments": changes.get("packing", True) and can_segment(model)[0],
    }
    own = {key: changes.pop(key) for key in list(changes) if key in parts}
    settings = build(TrainSettings, {"max_steps": 3, "warmup": 0, "batch_size": 4, **changes})
    return Training(settings=settings, **{**parts, **own})


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_lines_of_metrics(tmp_path: Path) -> None:
    job = training(tmp_path, epochs=2, max_steps=None, valid=rows(400, (6, 12)), eval_every=2)
    outcome = run_loop(job)
    lines = job.run.metrics()
    steps = [line for line in lines if "loss" in line]
    assert outcome.step == len(steps) == 4
    assert all(line.keys() == STEP_KEYS for line in steps)
    assert [line["epoch"] for line in steps] == [0.5, 1.0, 1.5, 2.0]
    assert [line["step"] for line in lines if "valid_loss" in line] == [0, 2, 4]
    assert sum(line["rows"] for line in steps) == 16
    assert sum(line["tokens"] for line in steps) == 2 * sum(len(e.input_ids) for e in job.train)
    assert sum(line["label_tokens"] for line in steps) == 2 * sum(sum(e.label_mask) for e in job.train)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0.5, "max_steps": None}, [0.25, 0.5]),
        ({"epochs": 1.25, "max_steps": None}, [0.25, 0.5, 0.75, 1.0, 1.25]),
        ({"max_steps": 3}, [0.25, 0.5, 0.75]),
        ({"max_steps": 6}, [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]),
        ({"max_steps": 1, "batch_size": None, "tokens_per_step": 50}, [0.3333]),
    ],
)
def test_the_epoch_told_is_the_share_of_the_rows_seen(
    tmp_path: Path, settings: dict[str, Any], told: list[float]
) -> None:
    job = training(tmp_path, valid=rows(400, (6, 12)), **{"batch_size": 2, **settings})
    run_loop(job)
    lines = job.run.metrics()
    assert [line["epoch"] for line in lines if "loss" in line] == told
    assert [line["epoch"] for line in lines if "valid_loss" in line][-1] == told[-1]
    state = json.loads((job.run.saved_steps()[-1] / "state.json").read_text(encoding="utf-8"))
    assert state["epoch"] == pytest.approx(told[-1], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"batch_size": 2, "accumulate": 3, "epochs": 1, "max_steps": None}, [6, 2]),
        ({"batch_size": 8, "epochs": 0.5, "max_steps": None}, [8]),
        ({"batch_size": 1, "epochs": 0.5, "max_steps": None}, [1] * 4),
        ({"batch_size": 3, "max_steps": 5}, [3, 3, 2, 3, 3]),
    ],
)
def test_steps_in_rows(tmp_path: Path, settings: dict[str, Any], sizes: list[int]) -> None:
    job = training(tmp_path, **settings)
    assert [step.rows for plan in job.plans for step in plan] == sizes


def test_steps_in_tokens(tmp_path: Path) -> None:
    job = training(tmp_path, batch_size=None, tokens_per_step=50, epochs=1, max_steps=None)
    used = [
        sum(len(job.train[i].input_ids) for b in step.microbatches for i in b) for step in job.plans.first
    ]
    assert sum(used) == sum(len(e.input_ids) for e in job.train)
    assert max(used) <= 50
    assert len(used) > 2


def test_microbatches_never_change_results(tmp_path: Path) -> None:
    losses = []
    for size in (1, 60, 10_000):
        job = training(tmp_path / str(size), microbatch_tokens=size)
        run_loop(job)
        losses.append([line["loss"] for line in job.run.metrics()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_a_repeat_is_bit_identical(tmp_path: Path) -> None:
    kept = []
    for name in ("first", "second"):
        seed_everything(5)
        model = tiny_model("gpt2")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1  # random numbers on the way
        job = training(tmp_path / name, model, neftune=5.0, segments=False)
        run_loop(job)
        lines = [{k: v for k, v in line.items() if k in ("loss", "grad_norm")} for line in job.run.metrics()]
        kept.append((weights(model), lines))
    assert kept[0][1] == kept[1][1]
    assert all(torch.equal(tensor, kept[1][0][name]) for name, tensor in kept[0][0].items())


def poisoned(after: int, value: float = math.nan) -> Objective:
    """SFT whose loss turns non-finite after so many forward passes."""
    passes = 0

    def loss(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        nonlocal passes
        passes += 1
        total, count = sft().loss(model, batch)
        return (total * value if passes > after else total), count

    return Objective("poisoned", loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_step_moves_nothing_and_three_stop(tmp_path: Path, value: float) -> None:
    job = training(tmp_path, objective=poisoned(1, value), max_steps=9, batch_size=8)
    clean = training(tmp_path / "clean", max_steps=9, batch_size=8)
    before: list[dict[str, torch.Tensor]] = []

    class Watch(Silent):
        def step(self, _: Any) -> None:
            before.append(weights(job.model))

    job.listener = Watch()
    with pytest.raises(TrainError, match="3 steps in a row") as caught:
        run_loop(job)
    assert "rows:1" in str(caught.value)
    assert len(before) == 4
    assert all(torch.equal(before[0][name], tensor) for name, tensor in before[3].items())
    lines = job.run.metrics()
    assert [line.get("skipped", False) for line in lines] == [False, True, True, True]
    assert not math.isfinite(lines[-1]["loss"])  # the raw value is logged
    run_loop(clean)
    assert clean.run.metrics()[0]["loss"] == lines[0]["loss"]


def test_trained_weights_are_fp32_masters_and_all_move(tmp_path: Path) -> None:
    # A change of 1e-5 is below bf16's resolution for a weight of 0.1 to 1: without masters it would be lost.
    model = tiny_model("qwen2")
    bf16 = Device(torch.device("cpu"), torch.bfloat16, "CPU")
    before = weights(model)
    run_loop(training(tmp_path, model, device=bf16, learning_rate=1e-5, max_steps=1, batch_size=8))
    after = weights(model)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def scripted(losses: list[float]) -> Callable[[Training], tuple[float, int]]:
    values = iter([9.0, *losses])
    return lambda _: (next(values) * 10, 10)


def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], **settings: Any
) -> tuple[Training, Outcome]:
    monkeypatch.setattr("tunesmith.train.watch.valid_loss", scripted(losses))
    job = training(
        tmp_path, valid=rows(400, (6, 12)), eval_every=1, max_steps=len(losses), batch_size=4, **settings
    )
    return job, run_loop(job)


def test_best_and_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, outcome = watched(tmp_path, monkeypatch, [5.0, 3.0, 4.0, 4.5, 4.4], save_every=1, keep=2)
    assert (outcome.best_step, outcome.best_loss) == (2, 3.0)
    assert [p.name for p in job.run.saved_steps()] == ["step-000002", "step-000004", "step-000005"]
    assert outcome.best == job.run.checkpoints / "step-000002"


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, outcome = watched(tmp_path, monkeypatch, [math.nan, 5.0, math.nan])
    assert (outcome.best_step, outcome.best_loss) == (2, 5.0)


def test_a_fraction_of_an_epoch_is_not_rounded_up_by_a_hair(tmp_path: Path) -> None:
    job = training(tmp_path, epochs=1.1, max_steps=None, batch_size=1, train=rows(400, (4,) * 10))
    assert job.steps == 11  # 10 x (1.1 - 1) is 1.0000000000000009


def test_a_long_training_is_planned_an_epoch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def counted(*args: Any, **given: Any) -> list[Step]:
        planned.append(given["epoch"])
        return plan_epoch(*args, **given)

    monkeypatch.setattr(epochs, "plan_epoch", counted)
    job = training(tmp_path, max_steps=1_000_000, sharing=True, batch_size=None, tokens_per_step=50)
    assert job.steps == 1_000_000
    assert job.tokens > 1_000_000
    steps = [step for _, plan in zip(range(3), job.plans, strict=False) for step in plan]
    assert planned == [0, 1, 2]
    assert sum(step.rows for step in steps) == 3 * len(job.train)


@pytest.mark.parametrize("wanted", [{"epochs": 2.5}, {"epochs": 0.3}, {"max_steps": 4, "epochs": 1}])
def test_steps_are_known_without_planning(tmp_path: Path, wanted: dict[str, Any]) -> None:
    job = training(tmp_path, **{"max_steps": None, "batch_size": None, "tokens_per_step": 50, **wanted})
    assert job.steps == sum(len(plan) for plan in job.plans)


def test_validation_is_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(lengths: Any, **given: Any) -> Any:
        calls.append(len(lengths))
        return plan_eval(lengths, **given)

    monkeypatch.setattr("tunesmith.train.training.plan_eval", counted)
    run_loop(training(tmp_path, valid=rows(400, (6, 12)), eval_every=1))
    assert calls == [2]


def test_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, outcome = watched(tmp_path, monkeypatch, [5.0, 3.0, 4.0, 3.5, 1.0, 1.0], early_stopping=2)
    assert outcome.stopped_early
    assert (outcome.step, outcome.best_step) == (4, 2)


def test_patience_that_ends_with_the_last_step_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, outcome = watched(tmp_path, monkeypatch, [5.0, 3.0, 4.0, 4.0], early_stopping=2)
    assert outcome.step == job.steps == 4
    assert not outcome.stopped_early


def test_validation_is_without_dropout_noise_and_smoothing(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    examples = rows(model.config.vocab_size)
    settings = {
        "valid": examples, "eval_every": 1, "max_steps": 1, "learning_rate": 1e-12, "segments": False,
    }  # fmt: skip
    noisy = training(tmp_path / "a", model, neftune=50.0, label_smoothing=0.5, objective=sft(0.5), **settings)
    run_loop(noisy)
    plain = training(tmp_path / "b", model, **settings)
    run_loop(plain)
    losses = [
        [line["valid_loss"] for line in job.run.metrics() if "valid_loss" in line] for job in (noisy, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_neftune_noise_is_bounded_by_the_rows_own_length() -> None:
    model = tiny_model("llama").train()
    embedding = model.get_input_embeddings()
    batch = collate(rows(model.config.vocab_size, (4, 100)), packing=True, pad_id=0)
    clean = embedding(batch.input_ids)
    neftune = Neftune(5.0)
    with neftune.on(embedding):
        neftune.prepare(batch)
        noise = (embedding(batch.input_ids) - clean).abs()[0]
        model.eval()
        assert torch.equal(embedding(batch.input_ids), clean)
    size = clean.shape[-1]
    for part, length in ((noise[:4], 4), (noise[4:], 100)):
        bound = 5.0 / math.sqrt(length * size)
        assert 0.8 * bound < float(part.detach().max()) <= bound * (1 + 1e-6)
    model.train()
    assert torch.equal(embedding(batch.input_ids), clean)


def test_a_norm_that_overflows_moves_no_weight_with_a_scaler(tmp_path: Path) -> None:
    # Each gradient is a number, their norm isn't; weight decay alone would move the weights.
    loss = sft().loss

    def steep(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, int]:
        total, labels = loss(model, batch)
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
        return total, labels

    half = Device(torch.device("cpu"), torch.float16, "CPU")
    job = training(tmp_path, device=half, objective=Objective("steep", steep), max_steps=1, weight_decay=0.5)
    before = weights(job.model)  # type: ignore[arg-type]
    run_loop(job)
    (line,) = job.run.metrics()
    assert line["skipped"] is True
    assert line["grad_norm"] == math.inf
    assert all(torch.equal(before[name], p) for name, p in weights(job.model).items())  # type: ignore[arg-type]
