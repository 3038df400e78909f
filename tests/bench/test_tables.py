"""Arithmetic of medians and pairs, and the page that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import plot, tables
from bench.drive_naive import batch


def lane(name: str, seconds: list[float], losses: list[float], **more: Any) -> dict[str, Any]:
    made = {
        "name": name,
        "options": {},
        "sorted_rows": False,
        "warmup_steps": 1,
        "step_seconds": seconds,
        "losses": losses,
        "peak_bytes": 2_000_000_000,
        "failed": None,
    }
    return {**made, **more}


OURS = lane("tunesmith", [9.0, 2.0, 1.0, 4.0], [3.0, 2.0, 2.0, 1.0])
OTHER = lane("TRL", [9.0, 8.0, 5.0, 8.0], [3.0, 2.001, 2.0, 1.0])
TOKENS = [100, 400, 300, 400]


def results() -> dict[str, Any]:
    race = {
        "name": "handbook",
        "title": "handbook lengths, LoRA",
        "data": {"rows": 8, "mean_tokens": 150.0, "shortest": 50, "longest": 400, "common_tokens": 3},
        "rows_per_step": 2,
        "tokens": TOKENS,
        "warmup": 1,
        "operations": 4,
        "limit": 1000.0,
        "lanes": [OURS, OTHER, lane("lost", [], [], failed="exit code 1: no memory")],
    }
    skipped = {"name": "qlora", "title": "QLoRA", "skipped": "bitsandbytes isn't installed"}
    machine = {"name": "CPU", "threads": 2, "torch": "2.13.0", "product_rate": 9e11}
    return {"machine": machine, "races": [race, skipped]}


def test_rates_leave_out_the_warm_up() -> None:
    assert tables.rates(OURS, TOKENS) == [200.0, 300.0, 100.0]
    assert tables.Spread.of(tables.rates(OURS, TOKENS)) == tables.Spread(200.0, 100.0, 300.0)


def test_ratios_are_taken_pair_by_pair() -> None:
    assert tables.ratios(OURS, OTHER) == [4.0, 5.0, 2.0]


def test_the_largest_gap_counts_every_step() -> None:
    assert tables.largest_gap(OTHER, OURS) == pytest.approx(0.0005)


def test_the_page_has_figures_failures_and_what_was_skipped() -> None:
    page = tables.page(results())
    assert "| tunesmith | 200 (100–300) | 1.00 | 20% |  | 2.00 GB |  |" in page
    assert "| TRL | 50 (50–60) | 0.25 | 5% | 4.00 x (2.00–5.00) | 2.00 GB | 0.05% |" in page
    assert "| lost | failed: exit code 1: no memory |" in page
    assert "Skipped: bitsandbytes isn't installed." in page
    assert "within 3%: agree" in page


def test_losses_that_differ_are_told() -> None:
    made = results()
    made["races"][0]["lanes"][1] = lane("TRL", [9.0, 8.0, 5.0, 8.0], [3.0, 2.1, 2.0, 1.0])
    assert "differ by more than 3%: TRL" in tables.page(made)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    plot.draw(results(), tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_naive_loop_pads_on_the_right() -> None:
    made = batch(
        [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}]
    )
    assert made["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]
    assert made["labels"].tolist() == [[-100, 6, -100], [-100, 8, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
