"""`train.evaluate` from job to run: no trace in the training, gone on with after a stop, or refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.conftest import rows, write_rows
from tests.families import save_tiny
from tests.train.stopping import lines
from tunesmith import api
from tunesmith.errors import DataError, SettingsError, TunesmithError
from tunesmith.evaluate import examine as examining
from tunesmith.evaluate.examine import Answers
from tunesmith.infer import generate
from tunesmith.infer.decoding import Decoder
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint, estimate
from tunesmith.train.examine import Examined
from tunesmith.train.listener import Silent
from tunesmith.train.signals import Stopped


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home")
    save_tiny("qwen2", root / "qwen2")
    write_rows(root / "train.jsonl", rows(24))
    write_rows(root / "valid.jsonl", rows(8))
    return root


def job(home: Path, output: Path, **train: Any) -> dict[str, Any]:
    settings = {
        "max_steps": 6, "learning_rate": 1e-2, "tokens_per_step": 256, "eval_every": 3, "dtype": "fp32",
        "compile": False, **train,
    }  # fmt: skip
    data = {"train": str(home / "train.jsonl"), "valid": str(home / "valid.jsonl")}
    adapter = {"rank": 4, "alpha": 8, "dropout": 0.2}
    names = {"model": str(home / "qwen2"), "output": str(output)}
    return {**names, "data": data, "adapter": adapter, "train": settings}


def trained(content: dict[str, Any]) -> RunDir:
    return api.train(content, listener=Silent())


EVALUATE = {"every": 2, "metrics": ["f1_char", "length"], "limit": 5, "max_new_tokens": 6, "batch_size": 2}


def test_it_leaves_no_trace_on_the_training(home: Path, tmp_path: Path) -> None:
    noise = {"neftune": 5.0, "checkpoint_activations": True}
    plain = trained(job(home, tmp_path / "plain", **noise))
    asked = trained(job(home, tmp_path / "asked", evaluate=EVALUATE, **noise))
    found = [line for line in lines(asked) if "metrics" in line]
    assert [line["step"] for line in found] == [0, 2, 4, 6]
    assert all(line["n"] == 5 and set(EVALUATE["metrics"]) < set(line) for line in found)
    assert [line for line in lines(asked) if "metrics" not in line] == lines(plain)
    for name in checkpoint.TENSOR_FILES:  # weights, optimizer, generators
        contents = {(run.saved_steps()[-1] / name).read_bytes() for run in (plain, asked)}
        assert len(contents) == 1, name
    samples = asked.samples()
    assert [sample["step"] for sample in samples] == [0, 2, 4, 6]
    assert samples[0]["prompt"] == "問題0？"
    assert samples[0].keys() == {"step", "prompt", "answer", "reference", "scores"}


def test_nothing_of_the_model_is_changed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    examine = Answers.examine

    def state(model: Any) -> tuple[Any, ...]:
        flags = [getattr(m, "gradient_checkpointing", None) for m in model.modules()]
        calls = [m._compiled_call_impl for m in model.modules()]
        return model.config._attn_implementation, flags, calls, torch.get_rng_state().tolist()

    def watched(self: Answers, model: Any, renderer: Any, device: Any) -> Examined:
        assert not model.training
        before = state(model)
        found = examine(self, model, renderer, device)
        seen.append((before, state(model)))
        return found

    monkeypatch.setattr(Answers, "examine", watched)
    modes: list[bool] = []
    monkeypatch.setattr(
        "tunesmith.train.answers._model", lambda job: modes.append(job.model.training) or job.model
    )
    trained(job(home, tmp_path / "run", evaluate=EVALUATE, checkpoint_activations=True, max_steps=2))
    assert len(seen) == 2
    assert all(before == after for before, after in seen)


def test_a_signal_in_the_middle_of_an_answer(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"evaluate": EVALUATE, "best": "f1_char"}
    whole = trained(job(home, tmp_path / "whole", **settings))
    complete, asked = generate.BatchBackend.answers, []

    def interrupted(self: Any, *given: Any) -> Any:
        for at, answers in enumerate(complete(self, *given)):
            asked.append(at)
            if len(asked) == 5:  # the second evaluation's
                os.kill(os.getpid(), signal.SIGTERM)
            yield answers

    content = job(home, tmp_path / "cut", **settings)
    with monkeypatch.context() as patched:
        patched.setattr(generate.BatchBackend, "answers", interrupted)
        with pytest.raises((SystemExit, Stopped)):
            trained(content)
    cut = RunDir(tmp_path / "cut")
    assert [line["step"] for line in lines(cut) if "metrics" in line] == [0]
    trained(content)
    assert lines(cut) == lines(whole)
    assert cut.samples() == whole.samples()
    first, second = ((run.adapter / "adapter_model.safetensors").read_bytes() for run in (whole, cut))
    assert first == second


def test_the_best_by_a_metric_is_kept_and_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.9, 0.1, 0.5, 0.3])
    monkeypatch.setattr(Answers, "examine", lambda *_: Examined({"f1_char": next(figures)}, []), raising=True)
    notes: list[str] = []

    class Heard(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    settings = {"evaluate": {**EVALUATE, "metrics": "f1_char"}, "best": "f1_char"}
    run = api.train(job(home, tmp_path / "run", **settings), listener=Heard())
    assert json.loads((run.weights / "tunesmith.json").read_text())["step"] == 4  # type: ignore[operator]
    assert run.job()["best"] == {"by": "f1_char", "better": "higher"}
    summary = api.summary(run)
    assert summary["kept"] == {"step": 4, "by": "f1_char", "value": 0.5}
    assert summary["scores"] == {"f1_char": {"before": 0.9, "after": 0.5, "n": 0}}
    page = run.report_file.read_text(encoding="utf-8")
    assert page.count("these weights are kept") == 1


@pytest.mark.parametrize(
    ("evaluate", "best", "error"),
    [
        ({"metrics": ["f1_chr"]}, None, r"no metric 'f1_chr' \(did you mean 'f1_char'\?\)\."),
        ({"metrics": ["f1_char"]}, "rouge_l", "rouge_l isn't measured by train.evaluate"),
        ({"metrics": ["f1_char"]}, "rogue_l", r"no metric 'rogue_l' \(did you mean 'rouge_l'\?\)\."),
        ({"metrics": ["f1_char", "length"]}, "length", "neither more nor less is better"),
        ({"metrics": ["choices"]}, None, "8 of 8 rows can't be scored by `choices`"),
        ({"metrics": ["f1_char", "copied"], "prompts": "bare.jsonl"}, None, "2 of 2 rows .* which f1_char "),
        ({"prompts": "missing.jsonl"}, None, "missing.jsonl"),
    ],
)
def test_what_cant_be_is_refused_before_anything_runs(
    home: Path, tmp_path: Path, evaluate: dict[str, Any], best: str | None, error: str
) -> None:
    write_rows(
        tmp_path / "bare.jsonl", [{"instruction": "問", "input": ""}, {"instruction": "答", "input": ""}]
    )
    if "prompts" in evaluate:
        evaluate = {**evaluate, "prompts": str(tmp_path / evaluate["prompts"])}
    with pytest.raises(TunesmithError, match=error) as caught:
        trained(job(home, tmp_path / "run", evaluate=evaluate, best=best))
    assert isinstance(caught.value, SettingsError | DataError)
    assert not (tmp_path / "run").exists()


def test_rows_without_answers_are_enough_for_metrics_that_need_none(home: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "bare.jsonl", [{"instruction": "床前明月光，", "input": ""}] * 3)
    evaluate = {**EVALUATE, "metrics": ["copied", "repeated_lines"], "prompts": str(file)}
    run = trained(job(home, tmp_path / "run", evaluate=evaluate, best="copied", max_steps=2))
    line = [line for line in lines(run) if "metrics" in line][-1]
    assert (line["n"], line["metrics"]) == (3, ["copied", "repeated_lines"])
    assert run.job()["best"] == {"by": "copied", "better": "lower"}
    assert str(file) in run.job()["data_sha256"]


def test_choices_are_measured_without_answering(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate.BatchBackend, "answers", lambda *_: pytest.fail("it answered"))
    row = {"input": "", "choices": ["是的", "不是"], "output": "A"}
    file = write_rows(tmp_path / "choices.jsonl", [{"instruction": f"第{i}題？", **row} for i in range(4)])
    evaluate = {"every": 0, "metrics": ["choices"], "prompts": str(file)}
    run = trained(job(home, tmp_path / "run", evaluate=evaluate, max_steps=2))
    found = [line for line in lines(run) if "metrics" in line]
    assert [line["step"] for line in found] == [0, 2]
    assert found[0]["metrics"] == ["choices_acc", "choices_acc_norm"]


def test_the_plan_counts_what_answers_take(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = {**EVALUATE, "max_new_tokens": 200, "limit": 8, "batch_size": 8}
    content = job(home, tmp_path / "run", evaluate=evaluate, max_steps=2)
    stores: list[int] = []
    made = Decoder.__init__

    def counted(self: Decoder, model: Any, tokens: int) -> None:
        made(self, model, tokens)
        config = model.config
        heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        stores.append(self.cache.tokens * 2 * config.num_hidden_layers * heads * size * 4)

    monkeypatch.setattr(Decoder, "__init__", counted)
    trained(content)
    asked: list[dict[str, Any]] = []
    config: list[Any] = []
    answering = estimate.answering
    monkeypatch.setattr(
        estimate,
        "answering",
        lambda of, **how: (asked.append(how), config.append(of), answering(of, **how))[2],
    )
    api.plan(content, probe=False)
    assert len(asked[0]["prompts"]) == 8
    assert answering(config[0], **asked[0]) > max(stores) > 0
    plan = api.plan(content, "train.evaluate.max_new_tokens=20000", probe=False)
    assert plan.parts["answers"] > 50 * max(stores)
    assert plan.peak == sum(plan.parts.values())
    assert "answers" not in api.plan(job(home, tmp_path / "run"), probe=False).parts


def test_a_lack_of_memory_says_what_to_set(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(examining, "scored", short)
    with pytest.raises(TunesmithError, match="Memory ran out while the model answered") as caught:
        trained(job(home, tmp_path / "run", evaluate=EVALUATE))
    assert "train.evaluate.batch_size" in caught.value.fix
