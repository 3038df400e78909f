"""The chance that blind tests draw from is the same on every run of the tests."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import pytest

from tunesmith.evaluate.blind import folder, new


@pytest.fixture(autouse=True)
def same_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds and ids follow from the test's name; TUNESMITH_TEST_CHANCE=2 draws others, to try many."""
    stream = random.Random(f"{os.environ.get('TUNESMITH_TEST_CHANCE', '')} {request.node.nodeid}")
    for module in (folder, new):
        monkeypatch.setattr(module, "secrets", SimpleNamespace(token_hex=lambda n: stream.randbytes(n).hex()))
