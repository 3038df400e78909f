"""What checkpoints cost: a checkpoint once in so many steps, records in each of them."""

from __future__ import annotations

import pytest

from bench.checkpoint_cost import told


def found(records: float) -> dict[str, object]:
    return {
        "with": [11.0, 10.5, 10.6],
        "without": [10.0, 10.0, 10.0],
        "step": [1.0],
        "records": [records],
        "steps": 3,
        "bytes": 3 << 20,
    }


@pytest.mark.parametrize(
    ("records", "every", "share", "kept"),
    # 0.6 s, of which three steps' records are a part, and the records of the other steps
    [
        (0.0, 50, "1.20 %", True),
        (0.01, 50, "2.14 %", False),
        (0.01, 200, "1.28 %", True),
        (0.0, 20, "3.00 %", False),
    ],
)
def test_records_count_in_every_step(records: float, every: int, share: str, kept: bool) -> None:
    text, good = told(found(records), every)
    assert share in text
    assert good is kept
    assert "3.0 MiB" in text
