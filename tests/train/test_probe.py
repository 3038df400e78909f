"""What fits: bytes measured, layers recomputed and passes shortened only where memory asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import tiny_model
from tests.model.tuning import prepare as tuned
from tests.train.test_equality import assert_same, gradients, related
from tests.train.test_run import make_job
from tests.train.test_sharing import Notes
from tunesmith.errors import ModelError
from tunesmith.model.targets import decoder_layers
from tunesmith.train import probe
from tunesmith.train.prepare import prepare
from tunesmith.train.run import train
from tunesmith.train.training import SEGMENTS_MICROBATCH_TOKENS, Training


def ready(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int | None = None, **changes: Any) -> Any:
    """A training that could start on a machine with so much memory free."""
    if free is not None:
        monkeypatch.setattr(probe, "available_memory", lambda _kind: free)
    notes = Notes()
    prepared = prepare(make_job(folder, **changes), folder / "run", notes)
    return prepared, "\n".join(notes.notes)


def checkpointed(training: Training) -> list[bool]:
    return [layer.gradient_checkpointing for layer in decoder_layers(training.model)]


def test_with_memory_to_spare_nothing_is_recomputed_and_the_choice_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, notes = ready(tmp_path, monkeypatch)
    assert checkpointed(prepared.training) == [False] * 3
    assert prepared.job.train.checkpoint_activations is False
    assert prepared.job.train.microbatch_tokens == SEGMENTS_MICROBATCH_TOKENS
    assert prepared.training.settings == prepared.job.train
    assert "fit into memory" not in notes


def test_little_memory_recomputes_layers_and_then_shortens_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, _ = ready(tmp_path, monkeypatch)
    need = probe.measure(prepared.training)
    largest = probe._largest(prepared.training, SEGMENTS_MICROBATCH_TOKENS)
    assert need.token > need.token_recomputed > 0
    enough = int(need.bytes(largest, recomputed=False) / probe.USABLE) + 100
    assert checkpointed(ready(tmp_path, monkeypatch, enough)[0].training) == [False] * 3
    with monkeypatch.context() as patch:
        patch.setattr(probe, "LEAST_TOKENS", largest)
        prepared, notes = ready(tmp_path, monkeypatch, enough - 1000)
    assert checkpointed(prepared.training) == [True] * 3
    assert prepared.job.train.checkpoint_activations is True
    assert "recomputed" in notes
    prepared, notes = ready(tmp_path, monkeypatch, 1)
    assert checkpointed(prepared.training) == [True] * 3
    assert prepared.job.train.microbatch_tokens == probe.LEAST_TOKENS
    assert "256 tokens" in notes
    passes = [p for plan in prepared.training.plans for step in plan for p in step.microbatches]
    rows = prepared.training.train
    assert all(len(p) == 1 or sum(len(rows[i].input_ids) for i in p) <= 256 for p in passes)


def test_passes_half_as_long_come_before_recomputed_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, _ = ready(tmp_path, monkeypatch)
    need = probe.measure(prepared.training)
    largest = probe._largest(prepared.training, SEGMENTS_MICROBATCH_TOKENS)
    whole, half = (need.bytes(tokens, recomputed=False) / probe.USABLE for tokens in (largest, largest // 2))
    monkeypatch.setattr(probe, "LEAST_TOKENS", 10)
    prepared, notes = ready(tmp_path, monkeypatch, int((whole + half) / 2))
    assert checkpointed(prepared.training) == [False] * 3
    assert prepared.job.train.microbatch_tokens == largest // 2
    assert f"Forward passes take {largest // 2} tokens" in notes
    prepared, _ = ready(tmp_path, monkeypatch, int(half * 0.9))
    assert checkpointed(prepared.training) == [True] * 3
    # Told how long passes are, it only recomputes.
    prepared, _ = ready(tmp_path, monkeypatch, int(whole * 0.9), train={"microbatch_tokens": 3072})
    assert checkpointed(prepared.training) == [True] * 3
    assert prepared.job.train.microbatch_tokens == 3072


def test_the_run_says_what_was_chosen_and_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "available_memory", lambda _kind: 1)
    run = train(make_job(tmp_path), tmp_path / "short of memory")
    chosen = run.job()["job"]["train"]
    assert (chosen["microbatch_tokens"], chosen["checkpoint_activations"]) == (256, True)
    monkeypatch.undo()
    again = train(make_job(tmp_path, train=chosen), tmp_path / "again")
    kept = [
        (one["step"], one.get("loss"), one.get("grad_norm"), one.get("valid_loss")) for one in run.metrics()
    ]
    assert kept == [
        (one["step"], one.get("loss"), one.get("grad_norm"), one.get("valid_loss")) for one in again.metrics()
    ]
    own = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert own == (again.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("every", "wanted"), [(True, [1, 1, 1]), (2, [1, 0, 1]), (False, [0, 0, 0])])
def test_all_layers_or_every_nth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: bool | int, wanted: list[int]
) -> None:
    prepared, _ = ready(tmp_path, monkeypatch, train={"checkpoint_activations": every})
    assert sum(checkpointed(prepared.training)) == sum(wanted)
    assert prepared.job.train.checkpoint_activations == every


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_recomputed_layers_under_fused_lora_and_shared_beginnings(family: str, every: int) -> None:
    model = tuned(tiny_model(family)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    rows = related(model.config.vocab_size)
    wanted = gradients(model, [rows], packing=True, segments=True, sharing=True)
    probe.recompute_layers(model, every)
    assert_same(gradients(model, [rows], packing=True, segments=True, sharing=True), wanted)


def test_measured_bytes_are_those_that_a_pass_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twice the tokens keep about twice the bytes; recomputed, about those of one layer.
    prepared, _ = ready(tmp_path, monkeypatch, data={"share_prefixes": False})
    training = prepared.training
    whole = probe.measure(training)
    monkeypatch.setattr(probe, "_SAMPLE_TOKENS", 1)
    assert probe.measure(training).token == pytest.approx(whole.token, rel=0.3)
    probe.recompute_layers(training.model, True)
    assert probe.measure(training).token < 0.7 * whole.token
    assert not any(p.grad is not None for p in training.model.parameters())


def test_a_model_that_cannot_recompute_is_refused() -> None:
    model = tiny_model("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="can't be recomputed"):
        probe.recompute_layers(model, True)


def test_growing_stops_where_memory_or_the_gain_ends() -> None:
    tried: list[int] = []

    def seconds(costs: dict[int, float]) -> Any:
        def run(size: int) -> float:
            tried.append(size)
            if size not in costs:
                raise torch.OutOfMemoryError
            return costs[size] * size

        return run

    sizes = (1, 2, 4, 8, 16)
    assert probe.grow(seconds({1: 9.0, 2: 5.0, 4: 3.0}), sizes) == 4
    assert probe.grow(seconds({1: 9.0, 2: 5.0, 4: 4.9, 8: 1.0}), sizes) == 2
    tried.clear()
    assert probe.grow(seconds({size: 9.0 / size for size in sizes}), sizes) == 16
    assert tried == list(sizes)
    with pytest.raises(torch.OutOfMemoryError):
        probe.grow(seconds({}), sizes)


def test_an_attempt_runs_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = ready(tmp_path, monkeypatch)[0].training
    state, before = torch.get_rng_state(), {n: p.clone() for n, p in training.model.named_parameters()}
    assert probe.attempt(training, 128) > 0
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in training.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
