"""The embedded SmolLM2, tuned for some steps and taken away: minutes on two cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tunesmith
from tunesmith.settings import build
from tunesmith.train.config import Job
from tunesmith.train.run import train

pytestmark = pytest.mark.slow


def test_smollm2_as_merged_weights_and_as_an_adapter(tmp_path: Path) -> None:
    rows = [{"instruction": f"{n} + 1 = ?", "output": f"答案是 {n + 1}。"} for n in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    content = {
        "model": "smollm2-135m",
        "data": {"train": str(tmp_path / "rows.json"), "max_length": 128},
        "adapter": {"rank": 4, "alpha": 8},
        "train": {"max_steps": 4, "batch_size": 4, "learning_rate": 5e-3, "warmup": 0, "compile": False},
    }
    run = train(build(Job, content), tmp_path / "run")
    merged = tunesmith.export(run, "merged", shard_size="100MB")
    found = merged.verification
    assert not found.failed
    assert found.drift.mean_kl < 1e-3
    assert found.drift.top1 > 0.95
    assert found.tuned_from_base is not None
    assert found.tuned_from_base.mean_kl > 10 * found.drift.mean_kl
    assert len(list(merged.path.glob("*.safetensors"))) == 3
    adapter = tunesmith.export(run, "adapter")
    config = json.loads((adapter.path / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert adapter.verification.drift.mean_kl < 1e-8
    card = (adapter.path / "README.md").read_text("utf-8")
    assert "license: apache-2.0" in card
    assert "embedded copy" in card
    assert tunesmith.load(adapter.path).chat("1 + 1 = ?", max_new_tokens=4)
