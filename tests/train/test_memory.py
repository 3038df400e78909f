"""Out of memory: the same batch in smaller passes, the same result, and the size is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import tiny_model
from tests.train.test_equality import rows
from tests.train.test_loop import training, weights
from tunesmith.errors import TrainError, lacks_memory
from tunesmith.train import checkpoint, memory
from tunesmith.train.listener import Silent
from tunesmith.train.loop import run_loop
from tunesmith.train.memory import reserve, versions
from tunesmith.train.training import Training, microbatch_tokens

SETTINGS = {"max_steps": 4, "batch_size": 4, "microbatch_tokens": 128, "save_every": 2}


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def job(folder: Path, **changes: Any) -> Training:
    examples = rows(400, (30, 31, 12, 40, 25, 33, 28, 19))
    return training(folder, train=examples, listener=Told(), **{**SETTINGS, **changes})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let memory run out at the nth time that a place is come to: a real exception from within."""

    def arm(place: str, at: int, error: BaseException) -> list[int]:
        passed = [0]

        def reach(name: str) -> None:
            if name == f"memory.{place}":
                passed[0] += 1
                if passed[0] == at:
                    raise error

        monkeypatch.setattr(memory, "reach", reach)
        return passed

    return arm


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize(
    ("place", "at"), [("forward", 1), ("backward", 1), ("optimizer", 3), ("optimizer", 4)]
)
@pytest.mark.parametrize("packing", [True, False])
def test_the_step_is_taken_again_in_smaller_passes(
    tmp_path: Path, short: Any, place: str, at: int, packing: bool
) -> None:
    whole = job(tmp_path / "a", packing=packing)
    run_loop(whole)
    cut = job(tmp_path / "b", packing=packing)
    short(place, at, ERRORS[at % 3])
    run_loop(cut)
    assert cut.halved >= 1
    lines = [[line for line in one.run.metrics() if "loss" in line] for one in (whole, cut)]
    for before, after in zip(*lines, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-4)
        assert (after["rows"], after["label_tokens"]) == (before["rows"], before["label_tokens"])
    (note,) = (note for note in cut.listener.notes if "Memory ran out" in note)  # type: ignore[attr-defined]
    assert "It is taken again: the same rows" in note
    # Two guards of memory a step stand before and in the optimizer's: the second step is the one.
    assert ("microbatch_tokens" in lines[1][0]) == (place != "optimizer")
    assert lines[1][-1]["microbatch_tokens"] == 128 >> cut.halved == microbatch_tokens(cut)
    assert checkpoint.read(cut.run.saved_steps()[-1]).state["halved"] == cut.halved


def test_rows_at_once_are_halved_where_the_job_counts_rows(tmp_path: Path, short: Any) -> None:
    cut = job(tmp_path, packing=False)
    short("forward", 2, MemoryError())
    run_loop(cut)
    (note,) = cut.listener.notes  # type: ignore[attr-defined]
    assert "of 2 rows at most" in note
    assert all(len(rows) <= 2 for plan in cut.plans for step in plan for rows in step.microbatches)
    assert [step.rows for plan in cut.plans for step in plan] == [4] * 4


def test_the_second_try_draws_the_noise_of_a_first_one(tmp_path: Path, short: Any) -> None:
    # NEFTune draws in every forward pass: the failed one has moved the generators on.
    ends = []
    for name, size in (("a", 64), ("b", 128)):
        torch.manual_seed(5)
        one = job(tmp_path / name, neftune=5.0, microbatch_tokens=size)
        short("backward", 1 if size == 128 else 0, MemoryError())
        run_loop(one)
        assert microbatch_tokens(one) == 64
        ends.append((weights(one.model), torch.get_rng_state()))  # type: ignore[arg-type]
    (first, generator), (second, other) = ends
    assert torch.equal(generator, other)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_one_row_that_is_too_much_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(name: str) -> None:
        if name == "memory.forward":
            raise MemoryError

    monkeypatch.setattr(memory, "reach", always)
    one = job(tmp_path)
    before = weights(one.model)  # type: ignore[arg-type]
    with pytest.raises(
        TrainError, match="Memory ran out in the forward pass of step 1, with one row"
    ) as told:
        run_loop(one)
    assert "tokens" in told.value.details[0]
    assert all(torch.equal(before[name], p) for name, p in weights(one.model).items())  # type: ignore[arg-type]


def test_half_a_step_of_the_optimizer_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: torch.optim.AdamW) -> None:
        group = self.param_groups[0]["params"]
        with torch.no_grad():
            group[0].add_(1.0)
        raise MemoryError

    one = job(tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", half)
    with pytest.raises(TrainError, match="in the middle of the optimizer's step"):
        run_loop(one)


def test_what_tells_that_nothing_was_moved() -> None:
    model = tiny_model("llama")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for p in trained:
        p.grad = torch.ones_like(p)
    before = versions(optimizer, trained)
    reserve(optimizer, trained)
    assert versions(optimizer, trained) == before
    optimizer.step()
    assert versions(optimizer, trained) != before
    moved = versions(optimizer, trained)
    optimizer.state[trained[3]]["exp_avg"].mul_(0.9)
    assert versions(optimizer, trained) != moved


@pytest.mark.parametrize("error", ERRORS)
def test_how_it_looks(error: BaseException) -> None:
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), ValueError("out of memory"), OSError(28, "full")]
)
def test_how_it_does_not_look(error: BaseException) -> None:
    assert not lacks_memory(error)


def test_a_real_allocation_that_cannot_be_met() -> None:
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert lacks_memory(told.value)
