"""Messages count in good English."""

from __future__ import annotations

from tunesmith.words import are, counted


def test_one_and_many() -> None:
    assert [counted(n, "step") for n in (0, 1, 2, 1000)] == ["0 steps", "1 step", "2 steps", "1,000 steps"]
    assert [are(n) for n in (0, 1, 2)] == ["are", "is", "are"]
