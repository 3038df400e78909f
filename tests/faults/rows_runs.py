"""Runs that aren't what they were, runs that two processes want, and stops after every step."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.faults.same_end import check_one_error, check_same_end, uninterrupted
from tests.faults.tally import Place, Tally
from tests.faults.tiny_job import TinyJob, tiny_job
from tests.train.stopping import assert_same_end, go_on, stop_after
from tests.train.test_resume_loop import CASES, NAMES, STEPS, maker
from tunesmith.train.loop import run_loop


def stops(place: Place) -> Tally:
    """Stop after every step, in every case of the matrix, and go on with everything made anew."""
    tally = Tally()
    for case, name in zip(CASES, NAMES, strict=True) if place.full else [(CASES[3], NAMES[3])]:
        passes, packing, dropout, edge = case
        folder = place.new("stops")
        whole = maker(folder / "whole", passes=passes, packing=packing, dropout=dropout, edge=edge)()
        run_loop(whole)
        for stop in range(1, STEPS) if place.full else (7,):
            make = maker(folder / str(stop), passes=passes, packing=packing, dropout=dropout, edge=edge)
            with tally.fault(f"{name}: step {stop}"):
                run = stop_after(make, stop)
                go_on(make, run)
                assert_same_end(run, whole.run)
            shutil.rmtree(folder / str(stop))
    return tally


def changed_inputs(place: Place) -> Tally:
    """Change data, tokenizer, job or base of an unfinished run: refused, or forced, with what differs."""
    tally = Tally()
    cases: dict[str, tuple[Callable[[TinyJob], object], str]] = {
        "data": (_other_data, "data rows.jsonl"),
        "job": (lambda _: None, "train.learning_rate"),
        "tokenizer": (_other_tokenizer, "tokenizer"),
        "base": (_other_base, "fingerprint"),
    }
    for name, (change, told) in cases.items() if place.full else [*cases.items()][:2]:
        words = ["train.learning_rate=0.5"] if name == "job" else []
        job = _unfinished(place)
        before = job.last_step()
        change(job)
        ended = job.start("--resume", *words).wait()
        with tally.fault(f"{name}, refused"):
            assert ended.code in (1, 2), f"exit code {ended.code}: {ended.printed[-300:]}"
            check_one_error(ended.printed)
            assert told in ended.printed, f"what differs isn't told: {ended.printed[-300:]}"
            assert job.last_step() == before, "it went on"
        shown = len(ended.printed)
        ended = job.start("--resume", "--force", *words).wait()
        with tally.fault(f"{name}, forced"):
            said = ended.printed[shown:]
            assert ended.code == 0, f"exit code {ended.code}: {said[-300:]}"
            forced = [line for line in said.splitlines() if line.startswith("Forced: ")]
            assert forced, "what is forced isn't told"
            assert any(told in line for line in forced), f"told: {forced}"
    return tally


def second_process(place: Place) -> Tally:
    """Start the same command while it runs."""
    tally, slowest = Tally(), 0.0
    whole = uninterrupted(place, "forty")
    for _ in range(place.many(10, 1)):
        job = tiny_job(place, "twice")
        first = job.start()
        first.until(lambda job=job: job.last_step() >= 1)  # type: ignore[misc]
        begun = time.monotonic()
        words = {"folder": job.folder, "printed": job.folder / "second"}
        refused = place.warm.start("train", "job.yaml", **words).wait()
        seconds = time.monotonic() - begun
        slowest = max(slowest, seconds)
        ended = first.wait()
        with tally.fault("a second process"):
            assert refused.code == 1, f"exit code {refused.code}: {refused.printed[-300:]}"
            check_one_error(refused.printed)
            assert "another process" in refused.printed, refused.printed[-300:]
            assert seconds < 1.0, f"refused after {seconds:.1f} s"
            assert ended.code == 0, ended.printed[-300:]
            check_same_end(job, whole)
    tally.notes.append(f"refused after {slowest:.1f} s at the latest")
    return tally


def _unfinished(place: Place) -> TinyJob:
    """A run that was killed after its third checkpoint, with a model of its own."""
    job = tiny_job(place, "changed")
    shutil.copytree(place.folder / "llama", job.folder / "model")
    content = json.loads((job.folder / "job.yaml").read_text(encoding="utf-8"))
    content["model"] = str(job.folder / "model")
    (job.folder / "job.yaml").write_text(json.dumps(content), encoding="utf-8")
    child = job.start()
    child.until(lambda: job.newest() >= 9)
    child.kill()
    return job


def _other_data(job: TinyJob) -> None:
    with (job.folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": "新問題？", "output": "新答案。"}\n')


def _other_tokenizer(job: TinyJob) -> None:
    file = job.folder / "model" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content), encoding="utf-8")


def _other_base(job: TinyJob) -> None:
    file: Path = job.folder / "model" / "model.safetensors"
    tensors = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
