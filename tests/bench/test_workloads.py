"""The benchmark's rows: always the same, and of the kind that they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.workloads import describe, examples_of, handbook_rows, lay_out, tang_rows, workloads
from tunesmith.train.config import job_from


def words(rows: list[dict[str, str]], key: str) -> float:
    return sum(len(row[key].split()) for row in rows) / len(rows)


def test_handbook_rows_are_the_same_each_time_and_have_their_lengths() -> None:
    rows = handbook_rows()
    assert rows == handbook_rows()
    assert rows[:10] == handbook_rows(10)
    assert len(rows) == 256
    assert words(rows, "instruction") == pytest.approx(30, rel=0.1)
    assert words(rows, "output") == pytest.approx(140, rel=0.1)
    lengths = sorted(len(row["output"].split()) for row in rows)
    assert lengths[-1] > 2 * lengths[0], "padding costs nothing where all rows are as long"


@pytest.mark.slow  # 20 s of encoding
def test_tang_rows_share_their_beginning_and_handbook_rows_do_not(tmp_path: Path) -> None:
    found = {}
    for name in ("handbook", "tang"):
        workload = workloads()[name]
        laid = lay_out(workload, tmp_path)
        found[name] = describe([example for step in laid.steps for example in step])
    assert found["tang"]["common_tokens"] == 77
    assert found["tang"]["mean_tokens"] == pytest.approx(148, abs=3)
    # <|im_start|>user and a new line: what any conversation begins with.
    assert found["handbook"]["common_tokens"] == 3
    assert found["handbook"]["rows"] == 256


@pytest.mark.slow  # every row through the tokenizer, twice
def test_rows_of_a_step_are_the_same_sorted_or_not(tmp_path: Path) -> None:
    workload = workloads()["handbook"]
    plain, by_length = lay_out(workload, tmp_path), lay_out(workload, tmp_path, sort=True)
    for one, other in zip(plain.steps, by_length.steps, strict=True):
        assert {example.row for example in one} == {example.row for example in other}
        lengths = [len(example.input_ids) for example in other]
        assert lengths == sorted(lengths)
    written = json.loads(by_length.tokens_file.read_text(encoding="utf-8"))
    first = by_length.steps[0][0]
    assert written[0]["input_ids"] == first.input_ids
    assert sum(label != -100 for label in written[0]["labels"]) == sum(first.label_mask)


@pytest.mark.slow  # every row through the tokenizer
def test_others_get_the_tokens_and_the_order_that_ours_trains_on(tmp_path: Path) -> None:
    from examples.sft_by_hand import order_of

    workload = workloads()["handbook"]
    laid = lay_out(workload, tmp_path)
    examples = examples_of(laid.rows_file, workload.template)
    order = order_of(0, len(examples), 42)
    rows = [example.row for step in laid.steps for example in step]
    assert rows == [examples[i].row for i in order]


@pytest.mark.parametrize("name", ["handbook", "tang", "full", "qlora"])
def test_jobs_are_valid(name: str, tmp_path: Path) -> None:
    workload = workloads()[name]
    job = job_from(workload.job(tmp_path / "rows.jsonl"))
    assert job.train.rows_per_step == workload.rows_per_step


def test_tang_rows_are_those_of_the_example() -> None:
    assert len(tang_rows()) == 512
    assert set(tang_rows(3)[0]) == {"instruction", "input", "output"}
