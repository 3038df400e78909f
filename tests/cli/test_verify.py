"""`tunesmith verify`: what it prints, exit codes, one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.train.test_run import make_job
from tunesmith.cli import verify
from tunesmith.errors import ModelError
from tunesmith.model import fused_lora
from tunesmith.train.run import train

RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def job(tmp_path: Path) -> Path:
    content = make_job(tmp_path, train={"compile": False}).model_dump(mode="json", exclude_unset=True)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_a_job_whose_gradients_are_right(job: Path) -> None:
    done = RUNNER.invoke(verify.app, [str(job)])
    assert done.exit_code == 0, done.output
    assert "shared beginnings" in done.stdout
    assert "Every fast path gives the naive gradients." in done.stderr
    table, why = done.stdout.splitlines()[:10], done.stdout.splitlines()[10:]
    assert max(map(len, table)) <= 80
    assert "base_model.model" not in done.stdout
    assert "all together, compiled: the job says train.compile=false" in why


def test_json_is_one_object(job: Path) -> None:
    done = RUNNER.invoke(verify.app, [str(job), "--json", "--tokens", "60", "adapter.rank=2"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["exact"] is True
    assert {"name", "state", "overall", "worst", "tensor", "loss", "tolerance", "note"} == set(
        told["comparisons"][0]
    )


def test_a_wrong_gradient_ends_with_1(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_lora.lora_linear
    monkeypatch.setattr(
        fused_lora, "lora_linear", lambda x, w, bias, a, b, scale: right(x, w, bias, a, b, scale * 1.01)
    )
    done = RUNNER.invoke(verify.app, [str(job)])
    assert done.exit_code == 1
    assert "A fast path is wrong." in done.stderr
    assert "tunesmith doctor" in done.stderr
    assert "the worst tensor is base_model.model" in done.stdout


def test_a_run_and_settings_that_win_over_its_own(tmp_path: Path) -> None:
    run = train(make_job(tmp_path, train={"compile": False}), tmp_path / "run")
    done = RUNNER.invoke(verify.app, [str(run.path), "--json", "data.share_prefixes=false"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    notes = {line["name"]: line["note"] for line in told["comparisons"]}
    assert notes["shared beginnings"] == "switched off by the job"


def test_a_model_that_is_not_here(job: Path) -> None:
    done = RUNNER.invoke(verify.app, [str(job), "model=Qwen/Qwen3-8B"])
    assert isinstance(done.exception, ModelError)
    assert done.exception.exit_code in (1, 2)
