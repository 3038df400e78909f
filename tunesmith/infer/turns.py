"""One answer's computation at a time: whoever computes puts the model's own settings aside meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TURN = threading.RLock()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout, and as it was afterwards."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train(was_training)
