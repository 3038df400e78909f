"""The rows that cost most: each row's own loss, its latest, and where it stands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.train.test_equality import rows
from tests.train.test_loop import training
from tests.train.test_run import make_job
from tunesmith import api
from tunesmith.rundir import read_jsonl
from tunesmith.train.listener import Silent
from tunesmith.train.loop import run_loop
from tunesmith.train.objectives import sft
from tunesmith.train.worst import Costs, losses_by_example


def test_each_row_gets_the_mean_of_its_own_tokens() -> None:
    each = torch.tensor([1.0, 3.0, 10.0, 0.5, 0.5, 0.5])
    assert losses_by_example([7, 2, 9, 4], [2, 1, 0, 3], each) == {7: 2.0, 2: 10.0, 4: 0.5}


def test_the_latest_loss_counts_and_the_order_is_stable() -> None:
    costs = Costs(6)
    assert costs.worst() == []
    costs.see(1, 2.0, {0: 9.0, 1: 1.0, 2: 1.0})
    costs.see(2, 1.5, {3: math.nan, 4: math.inf, 0: 0.5})
    worst = costs.worst()
    assert [cost.example for cost in worst] == [3, 4, 1, 2, 0], "5 was never trained on"
    assert (worst[-1].loss, worst[-1].step, worst[-1].step_loss) == (0.5, 2, 1.5)
    assert [cost.example for cost in costs.worst(2)] == [3, 4]
    again = Costs(6)
    again.restore(costs.tensors())
    assert repr(again.worst()) == repr(worst)
    other = Costs(7)  # other rows than then: what is known of them is of no use
    other.restore(costs.tensors())
    assert other.worst() == []


@pytest.mark.parametrize("packing", [True, False])
def test_a_step_tells_what_each_of_its_rows_cost(tmp_path: Path, packing: bool) -> None:
    job = training(tmp_path, max_steps=1, batch_size=8, learning_rate=1e-9, packing=packing)
    expected = {}
    for i, example in enumerate(job.train):
        total, count = sft().loss(job.model.eval(), job.batch([example]))
        expected[i] = float(total.detach()) / count
    run_loop(job)
    worst = job.guards._costs.worst()
    assert {cost.example: cost.loss for cost in worst} == pytest.approx(expected, rel=1e-4)
    (line,) = (line for line in job.run.metrics() if "loss" in line)
    assert [cost.step_loss for cost in worst] == pytest.approx([line["loss"]] * 8, rel=1e-6)


def test_the_run_folder_names_them(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    run = api.train(job, f"output={tmp_path / 'run'}", listener=Silent())
    lines = read_jsonl(run.worst_file)
    assert 1 < len(lines) <= 20
    assert [line["loss"] for line in lines] == sorted((line["loss"] for line in lines), reverse=True)
    for line in lines:
        assert line["origin"].startswith(line["path"])
        assert line["step"] >= 1
        assert line["label_tokens"] > 0
        assert " → " in line["text"]
    page = run.report_file.read_text(encoding="utf-8")
    assert "Rows with the highest loss" in page
    assert lines[0]["text"].split(" → ")[0][:10] in page


def test_it_changes_no_step(tmp_path: Path) -> None:
    # The loss and gradient of a step are those of the sum, whoever looks at its parts.
    job = training(tmp_path, max_steps=2, valid=rows(400, (6, 12)))
    run_loop(job)
    assert len(job.guards._costs.worst(99)) == len(job.train)
