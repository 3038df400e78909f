"""Tests never reach the network, and keep their downloads and caches out of the user's home."""

from __future__ import annotations

import os
import tempfile

# Before any import of transformers: huggingface_hub reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before any import of torch: threads of several workers on the same cores wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
else:  # workers share what is made here
    os.environ["TUNESMITH_HOME"] = tempfile.mkdtemp(prefix="tunesmith-tests-")
