"""`verify`: every fast path is exact as it is, and each one that is broken on purpose is caught by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import FAMILIES
from tests.train.test_run import make_job
from tunesmith import api
from tunesmith.data.batch import Batch
from tunesmith.errors import ModelError, PlanError
from tunesmith.model import attention_kernels, fused_lora, kernels
from tunesmith.train import compiling, head, paths, verify
from tunesmith.train.run import train

EAGER = {"train": {"compile": False}}
# By what is broken: the comparisons that must see it. "all together" sees everything.
SEEN = {
    "prefix": {"shared beginnings"},
    "scale": {"LoRA as one function"},
    "head": {"head on labels, in chunks"},
    "attention": {"attention by segments", "shared beginnings"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact(tmp_path: Path, family: str) -> None:
    data = {"template": "chatml"} if family == "gpt2" else {}
    verdict = api.verify(make_job(tmp_path, family, data=data, **EAGER))
    states = _states(verdict)
    assert verdict.exact
    assert (
        states["packed rows"] == states["shared beginnings"] == states["head on labels, in chunks"] == "exact"
    )
    assert states["all together"] == "exact"
    assert states["as the job computes"] == "not used"  # fp32 already
    assert verdict.rows >= 2


@pytest.mark.parametrize("what", SEEN)
def test_what_is_broken_is_caught_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    _break(what, monkeypatch)
    verdict = api.verify(make_job(tmp_path, **EAGER))
    wrong = {name for name, state in _states(verdict).items() if state == "wrong"}
    assert wrong == {*SEEN[what], "all together"}
    assert not verdict.exact


def test_full_tuning_is_exact(tmp_path: Path) -> None:
    verdict = api.verify(make_job(tmp_path, adapter={"type": "full"}, **EAGER))
    states = _states(verdict)
    assert verdict.exact
    assert states["LoRA as one function"] == "not used"


def test_recomputation_smoothing_and_padding_are_compared_too(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        data={"packing": False},
        train={"compile": False, "checkpoint_activations": True, "label_smoothing": 0.1},
    )
    states = _states(api.verify(job))
    assert states["activations recomputed"] == states["all together"] == "exact"
    assert states["packed rows"] == "not used"


def test_with_dropout_nothing_is_shared_as_in_training(tmp_path: Path) -> None:
    verdict = api.verify(make_job(tmp_path, adapter={"dropout": 0.1}, **EAGER))
    line = next(line for line in verdict.lines if line.name == "shared beginnings")
    assert (line.state, line.note) == ("not used", "with dropout each row draws its own noise")
    assert verdict.exact


def test_bf16_is_called_approximate_and_is_near(tmp_path: Path) -> None:
    verdict = api.verify(make_job(tmp_path, train={"compile": False, "dtype": "bf16"}))
    line = verdict.lines[-1]
    assert (line.name, line.state) == ("as the job computes: bfloat16", "approximate")
    assert line.overall is not None
    # bf16 keeps 8 bits: 2^-9 a number, more over three layers.
    assert 1e-4 < line.overall < 0.1
    assert verdict.exact  # approximate isn't wrong


@pytest.mark.slow  # the compiler takes its time even for a tiny model
def test_the_compiled_path(tmp_path: Path) -> None:
    verdict = api.verify(make_job(tmp_path))
    line = next(line for line in verdict.lines if line.name == "all together, compiled")
    assert line.state in ("exact", "not used"), line
    assert line.state == "exact" or "there isn't" in line.note, line


@pytest.mark.slow  # the same
def test_the_compiled_path_in_bf16_has_the_kernels_that_training_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[set[str]] = []
    build = compiling.Compiled.build
    monkeypatch.setattr(
        compiling.Compiled, "build",
        lambda self, trial: used.append({*self.kernels.libraries}) or build(self, trial),
    )  # fmt: skip
    line = api.verify(make_job(tmp_path, train={"dtype": "bf16"})).lines[-1]
    assert line.state == "approximate"
    assert line.overall is not None
    assert 1e-4 < line.overall < 0.1
    assert line.note == "compiled"
    assert used[-1] == {name for name, kernel in kernels.KERNELS.items() if kernel.supported()}


def test_a_compiler_that_fails_is_no_wrong_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(paths.compiling.Compiled, "build", fail)
    monkeypatch.setattr(paths.compiling, "missing", lambda: None)
    verdict = api.verify(make_job(tmp_path))
    line = next(line for line in verdict.lines if line.name == "all together, compiled")
    assert (line.state, line.note) == (
        "not used", "compiling failed with RuntimeError: no such instruction",
    )  # fmt: skip


def test_a_run_is_verified_by_its_job(tmp_path: Path) -> None:
    run = train(make_job(tmp_path, **EAGER), tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    assert api.verify(run.path).exact
    assert before == {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}


def test_json_holds_every_comparison(tmp_path: Path) -> None:
    verdict = api.verify(make_job(tmp_path, **EAGER), tokens=1)
    told = json.loads(json.dumps(verdict.to_json()))
    assert told["rows"] == 2
    assert told["exact"] is True
    assert [c["name"] for c in told["comparisons"]] == [line.name for line in verdict.lines]


def test_a_model_that_is_not_here_can_t_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="isn't on this machine"):
        api.verify(make_job(tmp_path, model="Qwen/Qwen3-8B"))


def test_too_little_memory_is_said_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "available_memory", lambda: 1000)
    with pytest.raises(PlanError, match="fp32"):
        api.verify(make_job(tmp_path))


def test_differences() -> None:
    ones = {"a": torch.ones(4), "b": torch.zeros(2)}
    # |a| = 2, the difference has norm 0.2: a tenth.
    assert paths.difference({"a": torch.ones(4) * 1.1, "b": torch.zeros(2)}, ones)[0] == pytest.approx(0.1)
    assert paths.difference({"a": torch.ones(4)}, ones) == (math.inf, math.inf, "b")
    overall, worst, name = paths.difference({"a": torch.ones(4), "b": torch.tensor([0, math.nan])}, ones)
    assert math.isnan(overall)
    assert math.isnan(worst)
    assert name == "b"
    assert verify.compare(
        "x", (1.0, {"a": torch.tensor([math.nan])}), (1.0, {"a": torch.ones(1)}), 1
    ).state == ("wrong")


def _states(verdict: verify.Verdict) -> dict[str, str]:
    """States by name, without what follows the name."""

    def short(name: str) -> str:
        together = name.startswith("all together") and "compiled" not in name
        return "all together" if together else name.partition(":")[0]

    return {short(line.name): line.state for line in verdict.lines}


def _break(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of one percent, or of one place, in one fast path."""
    if what == "scale":
        right: Callable[..., Any] = fused_lora.lora_linear
        monkeypatch.setattr(
            fused_lora, "lora_linear", lambda x, w, bias, a, b, scale: right(x, w, bias, a, b, scale * 1.01)
        )
    elif what == "head":
        loss: Callable[..., Any] = head.head_loss
        monkeypatch.setattr(
            "tunesmith.train.objectives.head_loss", lambda s, *args, **named: loss(s * 1.01, *args, **named)
        )
    elif what == "attention":
        forward: Callable[..., Any] = attention_kernels.forward
        monkeypatch.setattr(
            attention_kernels,
            "forward",
            lambda q, k, v, blocks, scale: forward(q, k, v, blocks, scale * 1.01),
        )
    else:
        collate: Callable[..., Batch] = paths.collate

        # The last segment that hangs on a prefix hangs on nothing: its row loses its beginning.
        def lost(*args: Any, **named: Any) -> Batch:
            batch = collate(*args, **named)
            children = (batch.segments[:, 2] >= 0).nonzero()
            if len(children):
                batch.segments[children[-1, 0], 2] = -1
            return batch

        monkeypatch.setattr(paths, "collate", lost)
