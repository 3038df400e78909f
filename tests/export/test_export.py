"""A run taken away: used by transformers alone, by peft alone; and what the folder says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tests.families import save_tiny
from tests.infer.made_run import made_run
from tests.model.tuning import logits
from tests.train.test_run import make_job
from tunesmith.evaluate.questions import read_questions
from tunesmith.export.run import Export
from tunesmith.infer import local
from tunesmith.infer.found import find
from tunesmith.model import adapters
from tunesmith.model.load import load_model
from tunesmith.rundir import RunDir
from tunesmith.train.run import train


def test_a_merged_run_needs_nothing_but_transformers(tmp_path: Path) -> None:
    run = train(make_job(tmp_path, "llama", data={"template": "chatml"}), tmp_path / "run")
    wanted = logits(_tuned(run))
    done = tunesmith.export(run, "merged", dtype="f32", shard_size="60KB")
    assert done.path == run.path / "export" / "merged"
    assert not done.verification.failed
    assert done.verification.drift.mean_kl < 1e-8

    model = AutoModelForCausalLM.from_pretrained(done.path).eval()
    assert model.dtype is torch.float32
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    index = json.loads((done.path / "model.safetensors.index.json").read_text())
    files = {*index["weight_map"].values()}
    assert len(files) > 2
    assert files == {file.name for file in done.path.glob("*.safetensors")}

    tokenizer = AutoTokenizer.from_pretrained(done.path)
    trained_with = local.load(str(run.path)).renderer
    assert tokenizer.chat_template == trained_with.text
    assert "im_start" in tokenizer.chat_template
    ends = model.generation_config.eos_token_id
    assert {*(ends if isinstance(ends, list) else [ends])} == trained_with.stop_ids


def test_bf16_is_what_is_written_unless_asked_otherwise(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", adapter={"type": "dora"})
    done = tunesmith.export(run, "merged")
    assert AutoModelForCausalLM.from_pretrained(done.path).dtype is torch.bfloat16
    assert json.loads((done.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert 0 < done.verification.drift.mean_kl < 1e-3


def test_an_adapter_needs_nothing_but_peft_and_its_base(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", save_tiny("qwen2", tmp_path / "base"), template="alpaca")
    done = tunesmith.export(run, "adapter")
    assert done.verification.drift.mean_kl < 1e-9
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, done.path).eval()
    torch.testing.assert_close(logits(model), logits(_tuned(run)), atol=1e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(done.path).chat_template == local.load(str(run.path)).renderer.text
    weights = "adapter_model.safetensors"
    assert (done.path / weights).read_bytes() == (run.adapter / weights).read_bytes()
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert "Its fingerprint begins with " + find(str(run.path)).fingerprint[:16] in _card(done)


@pytest.mark.parametrize("adapter", [{"type": "full"}, {"type": "freeze", "last_layers": 1}], ids=str)
def test_weights_that_were_tuned_as_a_whole(tmp_path: Path, adapter: dict[str, Any]) -> None:
    run = train(make_job(tmp_path, "gemma3", adapter=adapter), tmp_path / "run")
    done = tunesmith.export(run, "merged")
    assert not done.verification.failed
    assert done.verification.tuned_from_base is not None
    assert done.verification.tuned_from_base.mean_kl > 1e-4
    model: Any = AutoModelForCausalLM.from_pretrained(done.path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.tie_word_embeddings is True


def test_a_base_that_has_gone_is_told(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", save_tiny("llama", tmp_path / "base"), adapter={"type": "full"})
    shutil.rmtree(tmp_path / "base")
    done = tunesmith.export(run, "merged")
    assert "The base isn't on this machine" in _card(done)
    (line,) = [c for c in done.verification.checks if c.name == "fine-tune"]
    assert line.state == "not measured"
    assert str(tmp_path) not in _card(done)


def test_a_run_over_a_quantised_base_is_merged_into_the_16_bit_base_and_says_so(tmp_path: Path) -> None:
    run = train(make_job(tmp_path, quantization="nf4", train={"max_steps": 6}), tmp_path / "run")
    done = tunesmith.export(run, "merged")
    found = done.verification
    assert found.quantisation == "nf4"
    assert found.from_quantised is not None
    assert not found.failed
    assert found.from_quantised.mean_kl > 10 * found.drift.mean_kl
    (line,) = [c for c in found.checks if c.name == "against nf4 base"]
    assert line.state == "reported"
    card = _card(done)
    assert "Trained over a base in nf4; merged into the base in 16 bits" in card
    assert line.figure in card
    # Used, it isn't quantised again.
    assert find(str(done.path)).quantization is None
    base = load_model(find(str(run.path)).base, find(str(run.path), "fp32").device)
    tuned = logits(adapters.attach(base, run.adapter))
    mine = logits(AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32).eval())
    assert (tuned - mine).abs().max() < 0.1


@pytest.mark.slow
def test_chat_and_compare_take_the_folder_as_any_model(tmp_path: Path) -> None:
    run = train(make_job(tmp_path), tmp_path / "run")
    done = tunesmith.export(run, "merged", dtype="f32")
    rows = read_questions(str(tmp_path / "valid.jsonl"))
    result = tunesmith.compare(done.path, run, data=rows, dtype="fp32", max_new_tokens=8)
    assert result.content["metrics"]
    for figure in result.content["metrics"].values():
        assert figure["difference"]["value"] == 0
    again = local.load(str(done.path))
    assert again.renderer.text == local.load(str(run.path)).renderer.text
    assert again.chat("第1個問題？", max_new_tokens=4) is not None


def test_nothing_of_this_machine_is_in_the_folder(tmp_path: Path) -> None:
    job = make_job(tmp_path, train={"sample_every": 3, "track": ["tensorboard"]})
    run = train(
        job.model_copy(update={"train": job.train.model_copy(update={"track": ()})}), tmp_path / "run"
    )
    rows = [json.loads(line) for line in (tmp_path / "valid.jsonl").read_text("utf-8").splitlines()]
    said = [m["content"] for row in rows for m in row.get("messages", ())] or [
        str(v) for v in rows[0].values()
    ]
    for to in ("merged", "adapter"):
        done = tunesmith.export(run, to)
        for file in done.path.iterdir():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content, file.name
            assert str(Path.home()).encode() + b"/" not in content, file.name
            if file.name in ("README.md", "verification.json"):
                assert not [text for text in said if len(text) > 3 and text.encode() in content], file.name
        assert not {"optimizer.safetensors", "state.json"} & {file.name for file in done.path.iterdir()}


def test_the_card(tmp_path: Path) -> None:
    (tmp_path / "数据").mkdir()
    job = make_job(tmp_path)
    data = tmp_path / "数据" / "训练.jsonl"
    data.write_bytes((tmp_path / "train.jsonl").read_bytes())
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# base\n", encoding="utf-8")
    files = job.data.train[0].model_copy(update={"path": str(data)})
    run = train(
        job.model_copy(update={"data": job.data.model_copy(update={"train": (files,)})}), tmp_path / "run"
    )
    run.eval.mkdir()
    apart = {"value": 0.25, "low": 0.125, "high": 0.5}
    for name, a in (("测试", str(tmp_path / "model")), ("another", "someone else's")):
        result = {
            "kind": "comparison", "n": 40, "data": f"/secret/{name}.jsonl", "a": {"model": a}, "b": {},
            "metrics": {"f1_char": {"a": 0.25, "b": 0.5, "difference": apart}},
        }  # fmt: skip
        (run.eval / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    card = _card(tunesmith.export(run, "merged"))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["license"] == "mit"
    assert "tunesmith" in front["tags"]
    assert "base_model" not in front, "a folder is no id of the hub"
    sha = run.job()["data_sha256"][str(data)]
    assert f"| train | 训练.jsonl | 4 | `{sha[:16]}` |" in card
    assert "| 测试.jsonl | 40 | f1_char | 0.250 | 0.500 | +0.250 [+0.125, +0.500] |" in card
    assert "/secret" not in card
    assert "another" not in card
    before = next(line["valid_loss"] for line in run.metrics() if line.get("valid_loss"))
    assert f"{before:.3f} before" in card
    assert re.search(r"tunesmith \d", card)
    assert "  rank: 3" in card


def test_figures_of_the_final_weights_aren_t_claimed_for_a_checkpoint(tmp_path: Path) -> None:
    run = train(make_job(tmp_path, train={"max_steps": 4, "save_every": 2}), tmp_path / "run")
    run.eval.mkdir()
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    result = {"kind": "evaluation", "n": 4, "data": "x.jsonl", "model": "run", "metrics": {"f1": figure}}
    (run.eval / "x.json").write_text(json.dumps(result), encoding="utf-8")
    assert "| x.jsonl | 4 | f1 | | 0.500 | [0.250, 0.750] |" in _card(tunesmith.export(run, "adapter"))
    early = tunesmith.export(run, "adapter", checkpoint=2, output=tmp_path / "early")
    assert "x.jsonl" not in _card(early)
    assert "weights of step 2" in _card(early)


def test_an_end_that_the_base_doesn_t_know_is_written_or_told(tmp_path: Path) -> None:
    """The base stops at one token, its template ends turns with another."""
    base = save_tiny("llama", tmp_path / "base")
    for name in ("generation_config.json", "config.json"):
        content = json.loads((base / name).read_text("utf-8"))
        ends = content["eos_token_id"]
        (base / name).write_text(json.dumps({**content, "eos_token_id": ends[0]}), encoding="utf-8")
    run = made_run(tmp_path / "run", base)
    done = tunesmith.export(run, "merged")
    written = json.loads((done.path / "generation_config.json").read_text("utf-8"))
    assert sorted(written["eos_token_id"]) == sorted(ends)
    notes: list[str] = []
    card = _card(tunesmith.export(run, "adapter", note=notes.append))
    assert any(f"`eos_token_id={sorted(ends)}`" in line for line in notes)
    assert f"`eos_token_id={sorted(ends)}`" in card


def _tuned(run: RunDir) -> Any:
    return local.load(str(run.path), dtype="fp32").model


def _card(done: Export) -> str:
    return (done.path / "README.md").read_text(encoding="utf-8")
