"""Fewer texts and shorter answers than a person's export has: what is tested is the same code."""

from __future__ import annotations

import pytest

from tunesmith.export import asked, reference


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "TEXTS", 300)
    monkeypatch.setattr(reference, "ANSWER_TOKENS", 6)
