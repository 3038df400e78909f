"""Going on with a run that isn't what it was: refused with a diff, forced, or allowed and said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tunesmith
from tests.e2e.conftest import qa_rows, write_jsonl
from tests.train.stopping import lines
from tests.train.test_resume_run import STEPS, WEIGHTS, crash, place, train, write_job
from tunesmith.errors import RunError
from tunesmith.model import native
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.identity import SOURCES, machine_changed

__all__ = ["place"]  # a fixture


def change_rows(place: Path) -> None:
    write_jsonl(place / "train.jsonl", [{**row, "output": "別的答案。"} for row in qa_rows(4)])


def change_model(place: Path) -> None:
    file = place / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(bytes(content))


def change_tokenizer(place: Path) -> None:
    file = place / "model" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][-1], "id": len(content["model"]["vocab"]) + 50,
                                    "content": "<|new|>"})  # fmt: skip
    file.write_text(json.dumps(content), encoding="utf-8")


CHANGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "data": (change_rows, r"data .*train\.jsonl: sha256 \w+ then, \w+ now"),
    "base": (change_model, r"model .*: fingerprint \w+ then, \w+ now"),
    "tokenizer": (change_tokenizer, r"tokenizer \w+ then, \w+ now"),
}


@pytest.mark.parametrize("what", list(CHANGED))
def test_what_it_was_made_from_must_be_the_same(place: Path, what: str) -> None:
    job = write_job(place)
    crash(job)
    change, told = CHANGED[what]
    before = (place / "runs" / "tang-1" / "metrics.jsonl").read_bytes()
    change(place)
    with pytest.raises(RunError, match="what it is made from has changed") as caught:
        train(job, resume=True)
    assert any(re.fullmatch(told, line) for line in caught.value.details), caught.value.details
    assert (place / "runs" / "tang-1" / "metrics.jsonl").read_bytes() == before
    run, said = train(job, resume=True, force=True)
    assert "Forced: " in said
    assert run.state() == "finished"
    (entry,) = run.job()["resumed"]
    assert entry["forced"]
    assert [line["step"] for line in run.metrics() if "loss" in line] == list(range(1, STEPS + 1))


def test_the_same_job_is_refused_while_it_is_being_trained(place: Path) -> None:
    job = write_job(place)
    crash(job)
    with RunDir(place / "runs" / "tang-1").lock():
        with pytest.raises(RunError, match="tang-1 is being trained by another process") as caught:
            train(job)
        assert "--no-resume" in caught.value.fix
        other, _ = train(job, resume=False)
    assert other.path.name == "tang-2"


def test_a_new_run_is_begun_where_the_data_changed(place: Path) -> None:
    job = write_job(place)
    crash(job)
    change_rows(place)
    run, told = train(job)
    assert str(run.path) == "runs/tang-2"
    assert "runs/tang-1 is unfinished, but" in told
    assert "train.jsonl changed since" in told


def test_other_settings_are_refused_with_both_values(place: Path) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    crash(job)
    words = ["train.learning_rate=0.05", "train.weight_decay=0.1", "train.save_every=1"]
    with pytest.raises(RunError) as caught:
        train(job, *words, resume=True)
    assert caught.value.details == (
        "train.learning_rate: 0.01 in the run, 0.05 now", "train.weight_decay: 0.0 in the run, 0.1 now",
    )  # fmt: skip
    run, told = train(job, *words, resume=True, force=True)
    assert "Forced: train.learning_rate: 0.01 in the run, 0.05 now" in told
    rates = [line["learning_rate"] for line in run.metrics() if "loss" in line]
    before = [line["learning_rate"] for line in whole.metrics() if "loss" in line]
    assert rates == pytest.approx([*before[:4], 5 * before[4], 5 * before[5]])
    assert run.job()["job"]["train"]["learning_rate"] == 0.05
    for words in (["adapter.rank=4"], ["train.optimizer=sgd"]):
        crash(job, "output=other", "train.seed=1") if not (place / "other").exists() else None
        with pytest.raises(RunError, match="can't be forced"):
            train(job, "output=other", "train.seed=1", *words, resume=True, force=True)


def test_how_often_it_is_saved_may_change(place: Path) -> None:
    job = write_job(place)
    whole, _ = train(job, "output=whole")
    crash(job)
    run, told = train(job, "train.save_every=1", "train.keep=5")
    assert "Forced" not in told
    assert lines(run) == lines(whole)
    assert [p.name[-1] for p in run.saved_steps()] == ["2", "3", "4", "5", "6"]


def test_an_edited_record_is_refused(place: Path) -> None:
    job = write_job(place)
    crash(job)
    file = place / "runs" / "tang-1" / "job.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("seed: 42", "seed: 43"), encoding="utf-8")
    with pytest.raises(RunError, match="has changed") as caught:
        train(job, "train.seed=43", resume=True)
    assert "job: the checkpoint of step 4 was made from another than job.yaml says" in caught.value.details


def test_metrics_that_were_lost_are_refused(place: Path) -> None:
    job = write_job(place)
    crash(job)
    file = place / "runs" / "tang-1" / "metrics.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl isn't what it was"):
        train(job)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_is_made_longer(place: Path, schedule: str) -> None:
    rates = {"schedule": schedule, "eval_every": 3, "save_every": 3}
    job = write_job(place, train={**rates, "max_steps": None, "epochs": 3})  # two steps an epoch
    long, _ = train(job, "train.epochs=6", "output=long")
    run, _ = train(job)
    first = (run.path / WEIGHTS["adapter"]).read_bytes()
    with pytest.raises(RunError, match="runs/tang-1 has taken 6 steps already; this job has only 2"):
        train(job, "train.epochs=1", resume=True)
    run, told = train(job, "train.epochs=6", resume=True)
    assert "The training is made longer: 6 -> 12 steps." in told
    assert run.state() == "finished"
    assert (run.path / "earlier" / "step-000006" / WEIGHTS["adapter"]).read_bytes() == first
    assert run.job()["steps"] == 12
    assert run.job()["job"]["train"]["epochs"] == 6
    (entry,) = run.job()["resumed"]
    assert entry["changed"] == ["train.epochs: 3.0 in the run, 6.0 now"]
    ends = [checkpoint.read(r.saved_steps()[-1]).tensors for r in (run, long)]
    same = all(t.equal(ends[1][name][key]) for name, part in ends[0].items() for key, t in part.items())
    if schedule == "constant":
        assert "those of the longer training" in told
        assert same  # as if it had been that long from the start
    else:
        assert "The schedule cosine is laid over all of them: the rate goes from" in told
        assert not same


def test_an_unfinished_run_of_another_length_is_refused_with_what_would_change(place: Path) -> None:
    job = write_job(place, train={"schedule": "cosine"})
    crash(job)
    shorter = "train.max_steps=5"
    with pytest.raises(RunError, match="tang-1 is unfinished, and its schedule cosine has 6 steps") as e:
        train(job, shorter, resume=True)
    length, rate = e.value.details
    assert length == "train.max_steps: 6 in the run, 5 now: 6 -> 5 steps"
    assert re.match(r"learning rate: laid over 5 steps from here, the rate goes from \S+ at step 4 to ", rate)
    assert "make the run longer when it is finished" in e.value.fix
    with pytest.raises(RunError, match="is unfinished"):
        train(job, "train.max_steps=12", resume=True)
    run, told = train(job, shorter, resume=True, force=True)
    assert f"Forced: {length}." in told
    assert "The training is made shorter: 6 -> 5 steps. The schedule cosine is laid over all of them" in told
    assert run.job()["steps"] == 5


def test_an_unfinished_run_takes_another_length_where_its_steps_are_the_same(place: Path) -> None:
    job = write_job(place, train={"schedule": "constant"})
    other, _ = train(job, "train.max_steps=5", "output=other")
    crash(job)
    run, told = train(job, "train.max_steps=5", resume=True)
    assert "made shorter: 6 -> 5 steps. The rates of the steps so far are those of the shorter" in told
    assert lines(run) == lines(other)


def test_a_length_that_changes_nothing_is_refused(place: Path) -> None:
    job = write_job(place)
    train(job)
    with pytest.raises(RunError, match=r"train\.max_steps=6 decides"):
        train(job, "train.epochs=50", resume=True)


def test_a_run_that_stopped_early_is_not_made_longer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([9.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr("tunesmith.train.watch.valid_loss", lambda _: (next(losses), 1))
    job = write_job(place, train={"eval_every": 1, "early_stopping": 2})
    run, _ = train(job)
    assert run.metrics()[-1]["step"] == 3
    with pytest.raises(RunError, match="stopped early, after 2 evaluations"):
        train(job, "train.max_steps=20", resume=True)


def test_another_machine_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(place)
    crash(job)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    run, told = train(job)
    (line,) = [line for line in told.splitlines() if "bit-identical" in line]
    assert "then, 64 now" in line
    assert run.job()["resumed"][0]["machine"]


def test_other_kernels_are_another_machine() -> None:
    tiles, vectors = ({"versions": {}, "kernels": f"{by}: LoRA"} for by in (native.TILES, native.VECTORS))
    assert machine_changed(tiles, vectors) == ["kernels tiles (AMX): LoRA then, vectors (AVX-512): LoRA now"]
    assert machine_changed({"versions": {}}, vectors) == [], "an earlier version didn't write them down"


def test_every_source_that_training_computes_by_is_hashed() -> None:
    package = Path(tunesmith.__file__).parent
    there = {file.suffix for name in ("model", "data", "train") for file in (package / name).rglob("*.*")}
    assert there - {".pyc"} <= SOURCES


def test_a_run_of_an_earlier_version_is_told(place: Path) -> None:
    job = write_job(place)
    crash(job)
    file = place / "runs" / "tang-1" / "job.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        "\n".join(line for line in text.split("\n") if "examples_sha256" not in line), encoding="utf-8"
    )
    with pytest.raises(RunError, match="made by an earlier version"):
        train(job, resume=True)
    run, _ = train(job)
    assert str(run.path) == "runs/tang-2"


def test_a_forced_size_of_forward_passes_is_the_one_that_is_taken(place: Path) -> None:
    job = write_job(place, train={"microbatch_tokens": 128})
    crash(job)
    with pytest.raises(RunError, match="isn't the one that"):
        train(job, "train.microbatch_tokens=64", resume=True)
    run, told = train(job, "train.microbatch_tokens=64", resume=True, force=True)
    assert "Forced: train.microbatch_tokens: 128 in the run, 64 now" in told
    state = checkpoint.read(run.saved_steps()[-1]).state
    assert (state["microbatch_tokens"], state["halved"]) == (64, 0)
