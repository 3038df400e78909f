"""Stopped after any step and gone on with: weights, optimizer, generators, metrics as if never stopped.

The matrix: a run of 40 steps x one or four forward passes a step x packed or padded x dropout x whether a
step ends with the epoch. Each stop is followed by a fresh model, optimizer and loop that goes on to the end.
"""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.families import tiny_model
from tests.model.tuning import prepare
from tests.train.stopping import Make, assert_same_end, go_on, left, lines, stop_after
from tests.train.test_equality import rows
from tests.train.test_loop import training
from tunesmith.data.pack import Step, plan_epoch
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint, epochs
from tunesmith.train.generators import Generators
from tunesmith.train.loop import run_loop
from tunesmith.train.progress import Progress, capture
from tunesmith.train.seeds import seed_everything
from tunesmith.train.step import build_parts
from tunesmith.train.training import Training

STEPS = 40
LENGTHS = (5, 23, 11, 40, 2, 17, 9, 31, 12)  # nine rows: steps of four end with the epoch only now and then


def model_with(dropout: float) -> PreTrainedModel:
    return prepare(tiny_model("llama"), dropout=dropout)


def maker(folder: Path, *, passes: int, packing: bool, dropout: float, edge: bool, **settings: Any) -> Make:
    """A function that makes the same training anew, as a new process does."""
    how: dict[str, Any] = {
        "max_steps": STEPS, "eval_every": 7, "save_every": 0, "save_minutes": 0.0, "neftune": dropout * 10,
        "learning_rate": 1e-2, "schedule": "cosine", "warmup": 0.1, "packing": packing,
        "batch_size": 3 if edge else 4,
        "microbatch_tokens": 24 if passes > 1 else 10_000,
    }  # fmt: skip
    if passes > 1 and not packing:
        how |= {"batch_size": 1, "accumulate": how["batch_size"]}

    def make(**parts: Any) -> Training:
        seed_everything(5)
        model = model_with(dropout)
        size = model.config.vocab_size
        given = {"train": rows(size, LENGTHS), "valid": rows(size, (6, 12)), **how, **settings, **parts}
        return training(folder, model, **given)

    return make


CASES = list(itertools.product((1, 4), (True, False), (0.0, 0.2), (True, False)))
NAMES = [
    f"{passes} passes, {'packed' if packing else 'padded'}, dropout {dropout}{', epoch ends' if edge else ''}"
    for passes, packing, dropout, edge in CASES
]


def check(folder: Path, case: tuple[int, bool, float, bool], stops: range, **more: int) -> None:
    passes, packing, dropout, edge = case
    how: dict[str, Any] = {"passes": passes, "packing": packing, "dropout": dropout, "edge": edge, **more}
    whole = maker(folder / "whole", **how)()
    assert max(len(step.microbatches) for step in whole.plans.first) >= min(passes, 2)
    run_loop(whole)
    for stop in stops:
        make = maker(folder / str(stop), **how)
        run = stop_after(make, stop)
        assert lines(run)[-1]["step"] == stop
        go_on(make, run)
        assert_same_end(run, whole.run)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_stopped_at_every_step(tmp_path: Path, case: tuple[int, bool, float, bool]) -> None:
    check(tmp_path, case, range(1, STEPS))


# Of 15 steps 7 and 14 are evaluated, 3 ends an epoch of three steps, 11 doesn't.
@pytest.mark.parametrize(("case", "stop"), [(1, 3), (2, 7), (5, 14), (8, 11), (14, 13)])
def test_stopped_at_some_steps(tmp_path: Path, case: int, stop: int) -> None:
    check(tmp_path, CASES[case], range(stop, stop + 1), max_steps=15)


def test_stopped_again_and_again(tmp_path: Path) -> None:
    how: dict[str, Any] = {"passes": 4, "packing": True, "dropout": 0.2, "edge": False, "max_steps": 15}
    whole = maker(tmp_path / "whole", **how)()
    run_loop(whole)
    make = maker(tmp_path / "cut", **how)
    run = stop_after(make, 1)
    for stop in (2, 7, 8, 13):
        stop_after(make, stop, run)
    go_on(make, run)
    assert_same_end(run, whole.run)


SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon"},
    "adafactor": {"optimizer": "adafactor"},
}


@pytest.mark.parametrize("optimizer", list(SETTINGS))
def test_every_optimizer_goes_on(tmp_path: Path, optimizer: str) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")

    def make_in(folder: Path) -> Make:
        def make(**parts: Any) -> Training:
            seed_everything(5)
            # All weights: embeddings and norms, which 8-bit AdamW and Muon leave to AdamW, and matrices.
            model = tiny_model("llama")
            settings = {"max_steps": 6, "learning_rate": 1e-3, "weight_decay": 0.1, **SETTINGS[optimizer]}
            return training(folder, model, **settings, **parts)

        return make

    whole = make_in(tmp_path / "whole")()
    run_loop(whole)
    make = make_in(tmp_path / "cut")
    run = stop_after(make, 3)
    go_on(make, run)
    assert_same_end(run, whole.run)


def test_an_evaluation_that_was_given_up_is_done_again(tmp_path: Path) -> None:
    how: dict[str, Any] = {"passes": 1, "packing": True, "dropout": 0.0, "edge": False, "max_steps": 9}
    whole = maker(tmp_path / "whole", **how)()
    run_loop(whole)
    make = maker(tmp_path / "cut", **how)
    run = stop_after(make, 7)  # the signal comes in the step before the evaluation
    assert "valid_loss" not in run.metrics()[-1]
    state = left(run.saved_steps()[-1])["state"]
    assert (state["step"], state["evaluated"]) == (7, False)
    outcome = go_on(make, run)
    assert outcome.best is not None
    assert_same_end(run, whole.run)


def test_a_step_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"passes": 4, "packing": True, "dropout": 0.2, "edge": False, "max_steps": 15}
    whole = maker(tmp_path / "whole", **how)()
    run_loop(whole)
    make = maker(tmp_path / "cut", **how)
    training = make()
    monkeypatch.setattr("tunesmith.train.signals.GRACE", -1.0)
    passes = 0

    def first_pass_of_step_five(*given: Any) -> Any:
        nonlocal passes
        passes += len(training.run.metrics()) == 5  # step 0 is evaluated: four steps are done
        if passes == 1:
            training.stop.number = 2
        return objective.loss(*given)

    objective = training.objective
    training.objective = type(objective)("slow", first_pass_of_step_five)
    with pytest.raises(BaseException, match="SIGINT"):
        run_loop(training)
    assert [p.name for p in training.run.saved_steps()] == ["step-000004"]
    monkeypatch.undo()
    go_on(make, training.run)
    assert_same_end(training.run, whole.run)


def test_patience_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {0: 9.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 3.1, 6: 1.0}

    def scripted(job: Training) -> tuple[float, int]:
        done = max((line["step"] for line in job.run.metrics()), default=0)
        return losses[done] * 10, 10

    monkeypatch.setattr("tunesmith.train.watch.valid_loss", scripted)

    def make(**parts: Any) -> Training:
        valid = rows(200, (6, 12))
        return training(
            tmp_path, valid=valid, eval_every=1, max_steps=6, early_stopping=3, batch_size=4, **parts
        )

    run = stop_after(make, 4)
    outcome = go_on(make, run)
    assert (outcome.step, outcome.best_step, outcome.stopped_early) == (5, 2, True)
    assert outcome.best == checkpoint.folder_of(run, 2)


def test_no_batch_is_replayed_and_no_earlier_epoch_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = maker(tmp_path, passes=1, packing=True, dropout=0.0, edge=True, max_steps=400)
    run = stop_after(make, 32)  # in the eleventh epoch of three steps
    found, _ = checkpoint.newest(run)
    assert found is not None
    assert found.state["cursor"] == {"epoch": 10, "steps": 2, "seed": 42}
    planned: list[int] = []
    laid: list[int] = []

    def counted(*args: Any, **given: Any) -> list[Step]:
        planned.append(given["epoch"])
        return plan_epoch(*args, **given)

    def watched(**parts: Any) -> Training:
        made = make(**parts)
        batch = made.batch
        monkeypatch.setattr(made, "batch", lambda rows: laid.append(len(rows)) or batch(rows))
        return made

    monkeypatch.setattr(epochs, "plan_epoch", counted)
    stop_after(watched, 34, run)
    assert planned == [10, 11]
    assert laid == [3, 3]  # step 33 ends an epoch, 34 begins one


def test_rows_that_were_learnt_before_the_stop_still_count(tmp_path: Path) -> None:
    def make_in(folder: Path) -> Make:
        return lambda **parts: training(folder, max_steps=4, batch_size=2, **parts)

    whole = make_in(tmp_path / "whole")()
    run_loop(whole)
    assert whole.learnt == set(range(8))  # each row in one step only
    run = stop_after(make_in(tmp_path / "cut"), 2)
    go_on(make_in(tmp_path / "cut"), run)
    assert_same_end(run, whole.run)


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"passes": 1, "packing": True, "dropout": 0.2, "edge": False, "max_steps": 9}
    at_once = maker(tmp_path / "at once", **how, save_every=3, eval_every=0)()
    monkeypatch.setattr("tunesmith.train.saving.COPY_SHARE", 0.0)  # memory for no copy: it is waited for
    run_loop(at_once)
    monkeypatch.setattr("tunesmith.train.saving.COPY_SHARE", 0.5)
    meanwhile = maker(tmp_path / "meanwhile", **how, save_every=3, eval_every=0)()
    write, late = checkpoint.write, []

    def two_steps_later(run: RunDir, contents: checkpoint.Contents, made_from: Any) -> Path:
        end = time.monotonic() + 20
        while contents.step < 8 and time.monotonic() < end:
            if run.metrics()[-1]["step"] >= contents.step + 2:
                late.append(contents.step)
                break
            time.sleep(0.002)
        return write(run, contents, made_from)

    monkeypatch.setattr(checkpoint, "write", two_steps_later)
    run_loop(meanwhile)
    assert late == [3, 6]
    for name in ("step-000006", "step-000009"):
        first, second = (left(job.run.checkpoints / name) for job in (at_once, meanwhile))
        assert [key for key in first if first[key] != second[key]] == []


def test_generators_come_back_to_the_bit() -> None:
    seed_everything(3)
    torch.randn(7), random.gauss(0, 1), np.random.randn(3)  # half-used pairs of normal numbers are kept too
    state = Generators.now()

    def draw() -> list[Any]:
        return [torch.randn(5).tolist(), random.random(), random.gauss(0, 1), np.random.randn(3).tolist()]

    first = draw()
    assert draw() != first
    assert all(tensor.dtype == torch.uint8 for tensor in state.tensors.values())
    state.put_back()
    assert draw() == first


def test_states_of_another_optimizer_are_refused(tmp_path: Path) -> None:
    def make(**parts: Any) -> Training:
        return training(tmp_path, max_steps=4, **parts)

    run = stop_after(make, 2)
    with pytest.raises(RunError, match="states of adamw"):
        go_on(make, run, optimizer="adafactor")


def test_what_is_saved_is_not_what_comes_later(tmp_path: Path) -> None:
    made = training(tmp_path)
    made.compiled.seen.append([1, 2])
    contents = capture(made, build_parts(made), Progress(step=1), copied=True)
    made.compiled.seen.append([3])  # while the thread writes
    assert contents.state["compiled"] == [[1, 2]]


def test_a_copy_that_memory_does_not_hold_is_written_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*parts: Any, copied: bool) -> checkpoint.Contents:
        if copied:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
            )
        return capture(*parts, copied=copied)

    monkeypatch.setattr("tunesmith.train.loop.capture", short)
    made = training(tmp_path, save_every=2, max_steps=4)
    run_loop(made)
    assert [checkpoint.read(folder).step for folder in made.run.saved_steps()] == [2, 4]
