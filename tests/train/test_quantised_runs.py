"""A whole training over a quantised base: it learns, says what is approximate, and answers from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.model.tuning import FP32, logits
from tests.train.test_run import make_job
from tests.train.test_sharing import Notes
from tunesmith.infer import local
from tunesmith.model import adapters, quantize
from tunesmith.model.load import load_model
from tunesmith.model.source import resolve
from tunesmith.train.config import load_job
from tunesmith.train.run import train


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_learns_and_answers_from_the_base_it_was_trained_on(
    tmp_path: Path, kind: str, adapter: str
) -> None:
    notes = Notes()
    job = make_job(tmp_path, quantization=kind, adapter={"type": adapter}, train={"max_steps": 8})
    run = train(job, tmp_path / "run", listener=notes)
    seen = [line["loss"] for line in run.metrics() if "loss" in line]
    assert seen[-1] < seen[0]
    (said,) = [note for note in notes.notes if note.startswith("Approximate")]
    assert kind in said
    assert "%" in said
    assert run.job()["approximate"] == [said]
    assert run.job()["job"]["quantization"]["type"] == kind
    meta = json.loads((run.adapter / "tunesmith.json").read_text(encoding="utf-8"))
    assert meta["quantization"]["type"] == kind

    model = local.load(str(run.path), dtype="fp32").model
    assert len(quantize.quantised_layers(model)) == 3 * 7
    whole = load_model(resolve(str(tmp_path / "model")), FP32)
    facts = run.job()
    assert facts["parameters"] - facts["trainable"] == whole.num_parameters(), "packed ones each for itself"
    tuned = adapters.attach(whole, run.adapter, base_fingerprint=meta["base_fingerprint"])
    assert not torch.equal(logits(tuned), logits(model))
    assert float((logits(tuned) - logits(model)).norm() / logits(model).norm()) < 0.5

    again = train(load_job(run.job_file), tmp_path / "again")
    assert [line.get("loss") for line in again.metrics()] == [line.get("loss") for line in run.metrics()]
    own = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert own == (again.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow  # 45 s; compiled layers and quantised ones each have quick tests
def test_compiled_layers_take_a_quantised_base(tmp_path: Path) -> None:
    losses = []
    for compile_layers in (False, True):
        notes = Notes()
        job = make_job(tmp_path, quantization="nf4", train={"compile": compile_layers})
        run = train(job, tmp_path / f"run-{compile_layers}", listener=notes)
        losses.append([line["loss"] for line in run.metrics() if "loss" in line])
        assert ("Layers compiled" in "\n".join(notes.notes)) == compile_layers, notes.notes
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_eight_bit_adamw_trains_a_run_and_is_said_to_be_approximate(tmp_path: Path) -> None:
    notes = Notes()
    job = make_job(
        tmp_path, adapter={"type": "full"}, train={"optimizer": "adamw_8bit", "learning_rate": 1e-3}
    )
    run = train(job, tmp_path / "run", listener=notes)
    assert any("8 bits" in note for note in run.job()["approximate"])
    assert train(job, tmp_path / "again").metrics()[-1]["valid_loss"] == run.metrics()[-1]["valid_loss"]
