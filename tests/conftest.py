"""Tests never reach the network, and keep their downloads and caches out of the user's home."""

from __future__ import annotations

import os
import tempfile

# Before any import of transformers: huggingface_hub reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TUNESMITH_HOME"] = tempfile.mkdtemp(prefix="tunesmith-tests-")
