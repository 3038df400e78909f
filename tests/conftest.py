"""No test reaches the network or leaves files in the user's home; commands start from a warm process."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.warm import Warm

# Before any import of transformers: huggingface_hub reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before any import of torch: threads of several workers on the same cores wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
else:  # workers share what is made here
    os.environ["TUNESMITH_HOME"] = tempfile.mkdtemp(prefix="tunesmith-tests-")


def pytest_collection_finish() -> None:
    """All is imported: millions of objects that no later collection of garbage need look at."""
    gc.freeze()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts commands of tunesmith as processes that have imported everything already."""
    with Warm() as started:
        yield started
