"""The states of all random generators as bytes: Python's, NumPy's, torch's on the CPU and on GPUs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Generators:
    """States at one moment: tensors of uint8, and the few numbers beside them."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    @classmethod
    def now(cls) -> Generators:
        """As they are. Draws nothing."""
        version, words, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        tensors = {
            "python": _bytes(np.array(words, dtype=np.uint32)),
            "numpy": _bytes(np.asarray(keys)),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():  # untested here
            tensors |= {f"cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
        if torch.backends.mps.is_available():  # untested here
            tensors["mps"] = torch.mps.get_rng_state()
        numbers = {
            "python": [version, gauss],
            "numpy": [kind, int(position), int(has_gauss), float(cached)],
        }
        return cls(tensors, numbers)

    def put_back(self) -> None:
        """Make all generators what they were; those of devices that aren't here are left out."""
        version, gauss = self.numbers["python"]
        random.setstate((version, tuple(_words(self.tensors["python"])), gauss))
        kind, position, has_gauss, cached = self.numbers["numpy"]
        keys = np.array(_words(self.tensors["numpy"]), dtype=np.uint32)
        np.random.set_state((kind, keys, position, has_gauss, cached))
        torch.set_rng_state(self.tensors["torch"].clone())
        for number in range(torch.cuda.device_count()):  # untested here
            if (state := self.tensors.get(f"cuda.{number}")) is not None:
                torch.cuda.set_rng_state(state.clone(), number)
        if "mps" in self.tensors and torch.backends.mps.is_available():  # untested here
            torch.mps.set_rng_state(self.tensors["mps"].clone())


def _bytes(numbers: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(numbers.astype("<u4").view(np.uint8).copy())


def _words(tensor: Tensor) -> list[int]:
    return [int(word) for word in tensor.numpy().copy().view("<u4")]
