"""A few faults of each row of the matrix (matrix.py); `make faults` injects them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import system
from tests.faults.matrix import NEEDS_CALLS, ROWS
from tests.faults.tally import Place, Row
from tests.warm import Warm


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    with Warm(preload=system.build(folder) if system.compiler() else None) as warm:
        yield Place(folder, warm, full=False)


# The default tests inject a few of these elsewhere: tests/train/test_signals.py, test_memory.py, tests/e2e.
ELSEWHERE = ("kills", "signals", "second", "memory", "inputs")


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name in ELSEWHERE)) for row in ROWS],
)
def test_what_must_hold_holds(place: Place, row: Row) -> None:
    if row.name in NEEDS_CALLS and not system.compiler():
        pytest.skip("calls can't fail on demand without a C compiler")
    tally = row.run(place)
    if row.name == "tmpfs" and not tally.injected:
        pytest.skip(tally.notes[0])
    assert tally.lost == []
    assert tally.held
