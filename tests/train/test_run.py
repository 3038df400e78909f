"""A whole training: what the run folder holds, and that others can use it."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import qa_rows, write_jsonl
from tests.families import CHAT_FAMILIES, FAMILIES, save_tiny, tiny_model
from tests.scripts import load_script
from tunesmith import api
from tunesmith.data import check
from tunesmith.data.config import DataFile
from tunesmith.errors import PlanError
from tunesmith.records import Conversation
from tunesmith.settings import build, merge
from tunesmith.train import checkpoint
from tunesmith.train.config import Job, load_job
from tunesmith.train.listener import Silent
from tunesmith.train.run import train
from tunesmith.train.track import Tracking

# Of peft, where plain peft loads what was saved.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ROOT = Path(__file__).parents[2]


def make_job(folder: Path, family: str = "qwen2", **changes: Any) -> Job:
    """Six rows, two of them for validation, three steps."""
    model = folder / "model"
    if not model.exists():
        save_tiny(family, model)
        write_jsonl(folder / "train.jsonl", qa_rows(6)[:4])
        write_jsonl(folder / "valid.jsonl", qa_rows(6)[4:])
    content = {
        "model": str(model),
        "data": {
            "train": str(folder / "train.jsonl"),
            "valid": str(folder / "valid.jsonl"),
            "max_length": 256,
        },
        "adapter": {}
        if changes.get("adapter", {}).get("type") in ("full", "freeze")
        else {"rank": 3, "alpha": 6},
        "train": {
            "max_steps": 3,
            "batch_size": 2,
            "warmup": 0,
            "learning_rate": 1e-2,
            "dtype": "fp32",
            "eval_every": 2,
        },
    }
    return build(Job, merge(content, changes))


def test_the_run_folder(tmp_path: Path) -> None:
    run = train(make_job(tmp_path), tmp_path / "run")
    names = {p.name for p in run.path.iterdir()}
    assert names == {
        "job.yaml", "data-report.json", "trained-rows.txt", "metrics.jsonl", "worst.jsonl", "log.txt", "lock",
        "checkpoints", "adapter",
    }  # fmt: skip
    assert run.state() == "finished"
    job = run.job()
    assert job["job"]["adapter"]["rank"] == 3
    assert len(job["base"]["fingerprint"]) == 64
    assert set(job["data_sha256"]) == {str(tmp_path / "train.jsonl"), str(tmp_path / "valid.jsonl")}
    assert job["versions"]["torch"] == torch.__version__
    assert run.data_report()["train"]["kept"] == 4
    assert [line["step"] for line in run.metrics() if "valid_loss" in line] == [0, 2, 3]
    meta = json.loads((run.adapter / "tunesmith.json").read_text(encoding="utf-8"))
    assert meta["base_fingerprint"] == job["base"]["fingerprint"]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_an_adapter_loads_with_plain_peft_and_answers_alike(tmp_path: Path, family: str) -> None:
    run = train(make_job(tmp_path, family), tmp_path / "run")
    plain = AutoPeftModelForCausalLM.from_pretrained(run.adapter, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], return_tensors="pt", return_dict=True
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        alone = plain(**ids).logits
        torch.testing.assert_close(alone, api.load(run, dtype="fp32").model(**ids).logits, atol=1e-4, rtol=0)
        assert (alone - base(**ids).logits).abs().max() > 0.01
        # what training left, on a base that knows nothing of the folder
        meta = json.loads((run.adapter / "tunesmith.json").read_text(encoding="utf-8"))
        blank = get_peft_model(base, PeftConfig.from_pretrained(run.adapter))
        checkpoint.load(run.checkpoints / f"step-{meta['step']:06d}", _trainable(blank))
        torch.testing.assert_close(alone, blank.eval()(**ids).logits, atol=1e-4, rtol=0)


def _trainable(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


WHOLE = [{"type": "full"}, {"type": "freeze", "last_layers": 1}]


@pytest.mark.parametrize("adapter", WHOLE, ids=lambda value: value["type"])
def test_a_whole_model_loads_with_plain_transformers(tmp_path: Path, adapter: dict[str, Any]) -> None:
    job = make_job(tmp_path)
    job = build(Job, {**job.model_dump(exclude={"adapter"}), "adapter": adapter})
    run = train(job, tmp_path / "run")
    assert run.weights == run.model
    tuned = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    moved = [
        n
        for (n, a), (_, b) in zip(tuned.named_parameters(), base.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert moved
    assert adapter["type"] == "full" or all(".layers.2." in name for name in moved)
    assert AutoTokenizer.from_pretrained(run.model).chat_template


@pytest.mark.parametrize("adapter", WHOLE, ids=lambda value: value["type"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_weights_train_in_bf16(tmp_path: Path, family: str, adapter: dict[str, Any]) -> None:
    # fp32 masters under autocast: queries and keys come to attention in another format than values.
    content = make_job(tmp_path, family, data={"template": "plain"}, train={"dtype": "bf16"}).model_dump()
    run = train(build(Job, {**content, "adapter": adapter}), tmp_path / "run")
    assert all(math.isfinite(line["loss"]) for line in run.metrics() if "loss" in line)
    assert run.job()["segments"] is True


@pytest.mark.parametrize("adapter", [{"type": "dora"}, {"rslora": True}, {"init": "pissa"}, {"dropout": 0.3}])
def test_kinds_of_lora_train(tmp_path: Path, adapter: dict[str, Any]) -> None:
    run = train(make_job(tmp_path, adapter=adapter, train={"max_steps": 6}), tmp_path / "run")
    losses = [line["valid_loss"] for line in run.metrics() if "valid_loss" in line]
    assert min(losses[1:]) < losses[0]
    AutoPeftModelForCausalLM.from_pretrained(run.adapter, dtype=torch.float32)


def test_the_best_weights_are_the_final_ones(tmp_path: Path) -> None:
    # Rows that all say the same soon teach the model to say nothing else: validation gets worse again.
    make_job(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [{**row, "output": "甲"} for row in qa_rows(4)])
    rates = {"learning_rate": 0.1, "max_steps": 12, "eval_every": 1, "save_every": 1, "schedule": "constant"}
    run = train(make_job(tmp_path, train=rates), tmp_path / "run")
    losses = {
        line["step"]: line["valid_loss"] for line in run.metrics() if line.get("valid_loss") and line["step"]
    }
    best = min(losses, key=lambda step: losses[step])
    assert best != 12, "the rate must be high enough to overshoot"
    meta = json.loads((run.adapter / "tunesmith.json").read_text(encoding="utf-8"))
    assert meta["step"] == best
    plain = AutoPeftModelForCausalLM.from_pretrained(run.adapter, dtype=torch.float32)
    saved = {n: p.clone() for n, p in plain.named_parameters() if "lora_" in n}
    checkpoint.load(run.checkpoints / f"step-{best:06d}", _trainable(plain))
    assert all(torch.equal(p, saved[n]) for n, p in plain.named_parameters() if "lora_" in n)


def test_training_goes_on_from_an_earlier_adapter(tmp_path: Path) -> None:
    first = train(make_job(tmp_path), tmp_path / "first")
    more = {"continue_from": str(first.path)}
    second = train(make_job(tmp_path, adapter=more), tmp_path / "second")
    losses = [
        [line["valid_loss"] for line in run.metrics() if "valid_loss" in line] for run in (first, second)
    ]
    assert losses[1][0] == pytest.approx(min(losses[0][1:]), rel=1e-5)


def test_two_runs_of_one_job_are_the_same_bytes(tmp_path: Path) -> None:
    job = make_job(tmp_path, adapter={"dropout": 0.2}, train={"neftune": 3.0, "sample_every": 1})

    # One of them answers samples on the way, drawing random numbers: that must not change training.
    def noisy(*_: Any) -> list[str]:
        torch.rand(100)
        return ["x"]

    runs = [train(job, tmp_path / "a"), train(job, tmp_path / "b", answer=noisy)]
    files = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]
    assert len(runs[1].samples()) == 4
    other = train(build(Job, merge(job.model_dump(), {"train": {"seed": 43}})), tmp_path / "c")
    assert (other.adapter / "adapter_model.safetensors").read_bytes() != files[0]


def test_sample_answers_while_layers_have_two_number_formats(tmp_path: Path) -> None:
    job = make_job(tmp_path, train={"dtype": "bf16", "sample_every": 2}).model_dump()
    job["adapter"] = {"type": "freeze", "last_layers": 1}
    run = api.train(job, f"output={tmp_path / 'run'}")
    assert [sample["step"] for sample in run.samples()] == [0, 2, 3]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_beyond_the_model_s_context_are_refused_before_anything_is_written(
    tmp_path: Path, family: str
) -> None:
    model = tiny_model(family)
    context = model.config.max_position_embeddings
    long = [{"instruction": "a", "output": "b " * 2 * context}]
    make_job(tmp_path, family)
    write_jsonl(tmp_path / "train.jsonl", [*qa_rows(1), *long])
    job = make_job(tmp_path, family, data={"max_length": 100_000, "template": "plain"})
    with pytest.raises(PlanError, match=f"1 of 4 examples .* {context} tokens") as caught:
        train(job, tmp_path / "run")
    assert "train.jsonl:2" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("thought", ["", "<think>\nhm\n</think>\n\n"])
def test_the_result_is_asked_as_its_rows_were(tmp_path: Path, thought: str) -> None:
    make_job(tmp_path, "qwen3")
    write_jsonl(tmp_path / "train.jsonl", [{**r, "output": thought + r["output"]} for r in qa_rows(4)])
    run = train(make_job(tmp_path, "qwen3"), tmp_path / "run")
    renderer = api.load(run, dtype="fp32").renderer
    (row,) = check.load([DataFile(path=str(tmp_path / "train.jsonl"))]).records[:1]
    assert isinstance(row, Conversation)
    asked = renderer.prompt_ids(row.prompt)
    assert renderer.encode(row, "all_replies")[0].input_ids[: len(asked)] == asked
    assert renderer.decode(asked).endswith("assistant\n" if thought else "</think>\n\n")


def test_by_hand_gives_the_same_losses(tmp_path: Path) -> None:
    by_hand = load_script(ROOT / "examples" / "sft_by_hand.py")
    assert len((ROOT / "examples" / "sft_by_hand.py").read_text(encoding="utf-8").splitlines()) < 200

    run = train(
        make_job(tmp_path, "llama", train={"max_steps": 5, "schedule": "linear", "batch_size": 3}),
        tmp_path / "run",
    )
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    losses = by_hand.train(
        Namespace(
            model=str(tmp_path / "model"), rows=str(tmp_path / "rows.json"), steps=5, rows_per_step=3,
            rank=3, alpha=6, learning_rate=1e-2, schedule="linear", warmup=0, clip=1.0, seed=42,
        )
    )  # fmt: skip
    ours = [line["loss"] for line in run.metrics() if "loss" in line]
    assert ours == pytest.approx(losses, rel=1e-5)
    assert ours[-1] < ours[0]


def test_the_folder_says_which_path_was_taken(tmp_path: Path) -> None:
    listener = Notes()
    run = train(make_job(tmp_path), tmp_path / "run", listener=listener)
    taken = {key: run.job()[key] for key in ("packing", "segments", "sharing", "compiled")}
    assert run.job()["kernels"] is None
    assert taken == {"packing": True, "segments": True, "sharing": True, "compiled": False}
    log = run.log_file.read_text(encoding="utf-8")
    assert len(listener.told) > 2
    assert [text for text in listener.told if text not in log] == []
    dropout = train(make_job(tmp_path, adapter={"dropout": 0.1}, data={"packing": False}), tmp_path / "plain")
    taken = {key: dropout.job()[key] for key in taken}
    assert taken == {"packing": False, "segments": False, "sharing": False, "compiled": False}


def test_what_sharing_saves_is_told_of_a_whole_epoch(tmp_path: Path) -> None:
    listener = Notes()
    run = train(
        make_job(tmp_path, train={"max_steps": 1, "batch_size": 2}), tmp_path / "run", listener=listener
    )
    (told,) = [text for text in listener.told if "Common beginnings" in text]
    assert f"of {run.data_report()['train']['tokens']:,} tokens an epoch" in told


@pytest.mark.parametrize("adapter", WHOLE, ids=lambda value: value["type"])
def test_a_whole_model_answers_with_the_weights_that_were_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, Any]
) -> None:
    # Where auto is bf16: rounding would take most of the change of a small rate away.
    monkeypatch.setattr("tunesmith.device.native_bf16", lambda _kind="cpu": True)
    rates = {"dtype": "auto", "learning_rate": 1e-5}
    content = {**make_job(tmp_path, train=rates).model_dump(), "adapter": adapter}
    run = train(build(Job, content), tmp_path / "run")
    stored = load_file(run.model / "model.safetensors")
    loaded = dict(api.load(run).model.named_parameters())
    assert [name for name in loaded if not torch.equal(loaded[name], stored[name])] == []
    assert {p.dtype for p in loaded.values()} == {torch.float32}
    chosen = api.load(run, dtype="bf16").model
    assert {p.dtype for p in chosen.parameters()} == {torch.bfloat16}


def test_tensorboard_hears_the_same_numbers(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(make_job(tmp_path, train={"track": ["tensorboard"]}), tmp_path / "run")
    file = next((run.path / "tensorboard").glob("events.*"))
    events = event_accumulator.EventAccumulator(str(file.parent))
    events.Reload()
    told = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("train/loss")]
    assert [(line["step"], line["loss"]) for line in run.metrics() if "loss" in line] == told
    assert len(events.Scalars("valid/loss")) == 3


class Notes(Silent):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_a_few_rows_with_default_settings_learn_something(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    content = {"model": job.model, "data": job.data.model_dump(), "train": {"dtype": "fp32"}}
    listener = Notes()
    run = train(build(Job, content), tmp_path / "run", listener=listener)
    steps = [line for line in run.metrics() if "loss" in line]
    losses = [line["valid_loss"] for line in run.metrics() if "valid_loss" in line]
    assert min(line["learning_rate"] for line in steps) > 0
    assert losses[-1] < losses[0]
    assert run.job()["job"]["train"]["tokens_per_step"] == 512
    assert any("give only 3 steps" in text for text in listener.told)
    assert any("2 examples only" in text for text in listener.told)
    # Who sets max_steps has chosen how few there are.
    few = Notes()
    train(make_job(tmp_path), tmp_path / "few", listener=few)
    assert not any("steps;" in text for text in few.told)


def test_a_runs_own_job_repeats_it(tmp_path: Path) -> None:
    first = train(make_job(tmp_path), tmp_path / "first")
    again = load_job(first.job_file)
    assert again.output is None
    second = train(again, tmp_path / "second")
    files = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (first, second)]
    assert files[0] == files[1]


def test_a_runs_own_job_finds_its_data_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(tmp_path)
    files = tuple(file.model_copy(update={"path": Path(file.path).name}) for file in job.data.train)
    run = train(
        job.model_copy(update={"data": job.data.model_copy(update={"train": files})}), tmp_path / "first"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_job(run.job_file)
    assert [Path(file.path) for file in again.data.train] == [tmp_path / file.path for file in files]
    moved = load_job(run.job_file, ["data.train=here.jsonl"])
    assert [file.path for file in moved.data.train] == ["here.jsonl"]


def test_a_tracker_that_fails_does_not_end_the_run() -> None:
    class Gone:
        name = "gone"

        def log(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("the service went away")

    tracking = Tracking([Gone()])
    tracking.log({"step": 1, "loss": 2.0})
    tracking.log({"step": 2, "loss": 2.0})


def test_a_max_length_beyond_the_model_s_context_is_remarked_on(tmp_path: Path) -> None:
    listener = Notes()
    train(make_job(tmp_path, data={"max_length": 100_000}), tmp_path / "run", listener=listener)
    assert any("max_length is 100,000, but this model reads 512 tokens" in text for text in listener.told)
