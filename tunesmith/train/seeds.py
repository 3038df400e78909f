"""One seed for all four generators, and deterministic kernels."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch on the CPU and torch on every GPU, and ask torch for deterministic kernels.

    Two runs of one job on one machine then give the same bytes. `warn_only`: an operation without a
    deterministic kernel is used and torch says so, rather than ending the run.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor with NaN is for finding bugs; it costs time and changes nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
