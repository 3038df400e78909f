"""Exports that can't be, and exports that go wrong: what is said, how it ends, and that nothing is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunesmith as ts
from tests.families import save_tiny
from tests.infer.made_run import made_run
from tests.train.test_run import make_job
from tunesmith.errors import ExportError, ModelError, RunError, TemplateError, UsageError
from tunesmith.export import config, merged, run, targets
from tunesmith.export.gate import DRIFT, FINE_TUNE, METADATA, TEMPLATE, TOKENS
from tunesmith.export.work import Target, Work, Written
from tunesmith.rundir import RunDir
from tunesmith.train.run import train

Tamper = Callable[[Path], None]


@pytest.fixture
def tuned(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run", adapter={"type": "dora"})


def test_a_new_export_that_fails_leaves_the_old_one(tuned: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ts.export(tuned, "adapter")
    before = {file.name: file.read_bytes() for file in first.path.iterdir()}
    _tampered(monkeypatch, "adapter", _template)
    with pytest.raises(ExportError):
        ts.export(tuned, "adapter", force=True)
    assert {file.name: file.read_bytes() for file in first.path.iterdir()} == before
    assert _names(first.path.parent) == {"adapter"}


def test_a_disk_without_room_is_told_before_anything_is_loaded(
    tuned: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "free_space", lambda _: 2**20)
    monkeypatch.setattr(merged, "load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RunError, match=r"needs \d+ MiB of disk space, but 1 MiB are free"):
        ts.export(tuned, "merged")
    assert not tuned.export.exists()


def test_ctrl_c_leaves_nothing(tuned: RunDir) -> None:
    seen: list[str] = []

    def watch(what: str, done: int, _: int) -> None:
        seen.append(what)
        if what == "exported model reads" and done == 1:
            assert list(tuned.export.rglob("*.safetensors")), "it is written by now"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ts.export(tuned, "merged", watch=watch)
    assert not list(tuned.export.iterdir())
    assert "writing merged" in seen


def test_an_unknown_form_names_those_there_are(tuned: RunDir) -> None:
    with pytest.raises(UsageError, match="merged") as refused:
        ts.export(tuned, "mergd")
    assert all(name in str(refused.value) for name in targets.TARGETS)
    assert refused.value.exit_code == 2


def test_every_form_is_told_and_made() -> None:
    assert list(targets.TARGETS) == list(config.TARGETS)


def test_a_run_that_isn_t_finished_says_what_can_be_exported(tmp_path: Path) -> None:
    finished = train(make_job(tmp_path, train={"max_steps": 4, "save_every": 2}), tmp_path / "run")
    final = load_file(finished.adapter / "adapter_model.safetensors")
    shutil.rmtree(finished.adapter)
    with pytest.raises(RunError, match="isn't finished") as refused:
        ts.export(finished, "adapter")
    assert "step 2" in str(refused.value)
    assert "--checkpoint last" in refused.value.fix
    done = ts.export(finished, "adapter", checkpoint="last")
    found = load_file(done.path / "adapter_model.safetensors")
    assert final.keys() == found.keys()
    assert all(torch.equal(final[key], found[key]) for key in final)
    assert _names(finished.export) == {"adapter"}
    with pytest.raises(RunError, match="no checkpoint of step 3") as refused:
        ts.export(finished, "merged", checkpoint=3)
    assert "2, 4" in str(refused.value)
    shutil.rmtree(finished.checkpoints)
    with pytest.raises(RunError, match="nothing to export yet"):
        ts.export(finished, "merged", checkpoint="last")


def test_a_checkpoint_wants_the_base_and_the_template_that_were_trained_with(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}|{% endfor %}", "utf-8")
    job = make_job(tmp_path, train={"max_steps": 2, "save_every": 2})
    data = job.data.model_copy(update={"template": str(tmp_path / "own.jinja")})
    done = train(job.model_copy(update={"data": data}), tmp_path / "run")
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}!{% endfor %}", "utf-8")
    with pytest.raises(TemplateError, match=r"own\.jinja isn't the one that was trained with"):
        ts.export(done, "adapter", checkpoint=2)
    file = tmp_path / "model" / "model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="isn't the base that was trained on"):
        ts.export(done, "adapter", checkpoint=2)
    assert not list(done.path.glob(".tunesmith-*"))


@pytest.mark.parametrize(
    "adapter", [{"type": "full"}, pytest.param({"init": "pissa"}, marks=pytest.mark.slow)], ids=str
)
def test_a_checkpoint_of_the_step_that_was_kept_is_what_was_kept(
    tmp_path: Path, adapter: dict[str, Any]
) -> None:
    done = train(
        make_job(tmp_path, adapter=adapter, train={"max_steps": 4, "save_every": 2}), tmp_path / "run"
    )
    assert done.weights is not None
    final = int(json.loads((done.weights / "tunesmith.json").read_text())["step"])
    other = next(step for step in (2, 4) if step != final)
    kept, same, apart = (
        load_file(
            ts.export(done, "merged", dtype="f32", checkpoint=step, output=tmp_path / f"{step}").path
            / "model.safetensors"
        )
        for step in (None, final, other)
    )
    assert all(torch.allclose(kept[key], same[key], atol=1e-5) for key in kept)
    assert not all(torch.allclose(kept[key], apart[key], atol=1e-5) for key in kept)


def test_a_missing_adapter_and_models_that_nothing_was_tuned_in(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    with pytest.raises(ModelError, match="nothing to merge"):
        ts.export(base, "merged", output=tmp_path / "out")
    with pytest.raises(UsageError, match="has no adapter"):
        ts.export(base, "adapter", output=tmp_path / "out")
    with pytest.raises(UsageError, match="--output") as refused:
        ts.export(base, "merged")
    assert "isn't a run" in refused.value.what
    with pytest.raises(RunError, match="isn't the folder of a run"):
        ts.export(tmp_path / "none", "merged")
    full = made_run(tmp_path / "full", base, adapter={"type": "full"})
    with pytest.raises(UsageError, match="all weights"):
        ts.export(full, "adapter")
    lost = made_run(tmp_path / "lost", base)
    (lost.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        ts.export(lost, "merged")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_tool(tmp_path: Path, tuned: RunDir) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(tuned.adapter / name, plain / name)
    done = ts.export(plain, "merged", output=tmp_path / "out", dtype="f32")
    assert done.verification.drift.mean_kl < 1e-8
    assert (done.path / "tokenizer.json").exists()


def _weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    found = load_file(file)
    key = next(key for key in found if "down_proj" in key)
    found[key] = found[key] * 1.5
    save_file(found, file, {"format": "pt"})


def _base_again(folder: Path) -> None:
    """The fine-tune is gone: the base's own weights lie there."""
    found = load_file(folder / "model.safetensors")
    base = load_file(folder.parents[2] / "base" / "model.safetensors")
    save_file(
        {key: base[key].to(found[key].dtype) for key in found}, folder / "model.safetensors", {"format": "pt"}
    )


def _template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text("utf-8").replace("assistant", "bot"), encoding="utf-8")


def _tokenizer(folder: Path) -> None:
    """The digits change places."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _end(folder: Path) -> None:
    file = folder / "generation_config.json"
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**content, "eos_token_id": 5}), encoding="utf-8")


@pytest.mark.parametrize(
    ("tamper", "name"),
    [
        (_weights, DRIFT),
        (_base_again, FINE_TUNE),
        (_template, TEMPLATE),
        (_tokenizer, TOKENS),
        (_end, METADATA),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_gate_refuses_what_isn_t_the_tuned_model(
    tuned: RunDir, monkeypatch: pytest.MonkeyPatch, tamper: Tamper, name: str
) -> None:
    _tampered(monkeypatch, "merged", tamper)
    seen: list[Any] = []
    with pytest.raises(ExportError, match=r"isn't the model|further from the tuned model") as refused:
        ts.export(tuned, "merged", found=seen.append)
    assert refused.value.exit_code == 1
    assert any(line.startswith(f"{name}: ") for line in refused.value.details)
    assert name in {check.name for check in seen[0].failed}
    assert not list(tuned.export.iterdir())
    if name == FINE_TUNE:
        with pytest.raises(ExportError):
            ts.export(tuned, "merged", allow_drift=True)


def test_drift_that_was_allowed_is_recorded(tuned: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _tampered(monkeypatch, "merged", _weights)
    done = ts.export(tuned, "merged", allow_drift=True)
    assert [check.name for check in done.verification.failed] == [DRIFT]
    record = json.loads((done.path / "verification.json").read_text("utf-8"))
    assert record["drift_allowed"] is True
    assert record["passed"] is False
    assert record["tuned_exported"]["mean_kl"] > record["budget_mean_kl"]
    assert "--allow-drift" in (done.path / "README.md").read_text("utf-8")


def test_a_light_fine_tune_that_is_lost_is_seen_within_the_budget(tmp_path: Path, monkeypatch: Any) -> None:
    light = made_run(tmp_path / "light")
    file = light.adapter / "adapter_model.safetensors"
    small = {key: t * 0.003 if "lora_B" in key else t for key, t in load_file(file).items()}
    save_file(small, file, {"format": "pt"})
    seen: list[Any] = []
    _tampered(monkeypatch, "merged", _base_again)
    with pytest.raises(ExportError):
        ts.export(light, "merged", dtype="f32", found=seen.append)
    assert seen[0].drift.mean_kl < 1e-3, "the budget alone would let it pass"
    assert [check.name for check in seen[0].failed] == [FINE_TUNE]


def _tampered(monkeypatch: pytest.MonkeyPatch, to: str, tamper: Tamper) -> None:
    """Someone changes what was written, between the writing and the reading."""
    target = targets.TARGETS[to]

    def write(work: Work, folder: Path) -> Written:
        written = target.write(work, folder)
        tamper(folder)
        return written

    wrong = Target(write, target.open, target.needs, target.budget, target.needs_adapter)
    monkeypatch.setitem(targets.TARGETS, to, wrong)


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}
