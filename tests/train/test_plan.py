"""A plan's arithmetic against what is there: parameters, files, and a broken gradient that verify must see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.test_run import make_job
from tunesmith import api
from tunesmith.errors import SettingsError
from tunesmith.model import fused_lora, known
from tunesmith.model.adapters import trainable_count
from tunesmith.model.config import AdapterSettings
from tunesmith.train import cards, checkpoint, dryrun
from tunesmith.train.run import train


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "google/gemma-2-2b"])
def test_known_models_have_the_published_parameters(name: str) -> None:
    config = known.find(name + ("-it" if "gemma" in name else "-Instruct"))
    assert config is not None
    model = dryrun.build(config, AdapterSettings.model_validate({"rank": 8}), torch.bfloat16)
    trained, parameters = trainable_count(model)
    assert parameters - trained == known.published(name)


def test_counts_and_file_sizes_are_exact(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    plan = api.plan(job, probe=False)
    run = train(job, tmp_path / "run")
    facts = run.job()
    assert (plan.sizes.parameters, plan.sizes.trained) == (facts["parameters"], facts["trainable"])
    assert plan.work.steps == facts["steps"]
    lines = [line for line in run.metrics() if "loss" in line]
    assert plan.work.tokens == sum(line["tokens"] for line in lines)
    assert plan.work.computed == sum(line["unique_tokens"] for line in lines)
    for folder in checkpoint.checkpoints(run):
        assert (folder / checkpoint.WEIGHTS).stat().st_size == plan.disk["checkpoint"]


def test_a_job_that_does_not_fit_comes_with_one_that_does(tmp_path: Path) -> None:
    plan = api.plan(make_job(tmp_path), memory="601MB")
    assert plan.fits
    tight = api.plan(make_job(tmp_path, model="Qwen/Qwen2.5-7B-Instruct"), card="4060")
    assert not tight.fits
    assert tight.fitting


def test_cards_by_their_names() -> None:
    assert cards.find("NVIDIA GeForce RTX 4090") == cards.find("4090")
    with pytest.raises(SettingsError, match="4090"):
        cards.find("4091")


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_verify_sees_a_wrong_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = fused_lora.lora_linear

    def scaled(x, weight, bias, a, b, scale):  # type: ignore[no-untyped-def]
        return right(x, weight, bias, a, b, scale * factor)

    monkeypatch.setattr(fused_lora, "lora_linear", scaled)
    verdict = api.verify(make_job(tmp_path, train={"compile": False}))
    states = {line.name: line.state for line in verdict.lines}
    assert verdict.exact == (factor == 1.0)
    assert states["LoRA as one function"] == ("exact" if factor == 1.0 else "wrong")
    assert states["packed rows"] == "exact"
