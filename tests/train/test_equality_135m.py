"""The fast path on the real model: first-step gradients against naive ones.

Measured with SmolLM2-135M in fp32, LoRA on all linear layers, eight Tang rows: see TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.workloads import MODEL, examples_of, lay_out, workloads
from tests.train.test_equality import alone, gradients
from tunesmith.data.encode import Example
from tunesmith.device import pick
from tunesmith.model import adapters, fused_lora
from tunesmith.model.config import AdapterSettings
from tunesmith.model.load import fingerprint, load_model
from tunesmith.model.source import resolve

TOLERANCE = 1e-5  # relative norm of the difference over all gradients

pytestmark = pytest.mark.slow


def rows(folder: Path, name: str, count: int) -> Sequence[Example]:
    laid = lay_out(workloads()[name], folder)
    return sorted(examples_of(laid.rows_file, workloads()[name].template), key=lambda e: e.row)[:count]


@pytest.mark.parametrize(("name", "count"), [("tang", 8), ("handbook", 4)])
def test_first_step_equals_rows_alone(name: str, count: int, tmp_path: Path) -> None:
    source = resolve(MODEL, None)
    settings = AdapterSettings.model_validate({"rank": 8, "alpha": 16})
    model = adapters.prepare(
        load_model(source, pick("fp32")), settings, seed=42, base_fingerprint=fingerprint(source)
    )
    # B is zero at the start, and with it the gradient of A: give it a value that lets both matter.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.01, generator=generator)
    model.train()
    examples = rows(tmp_path, name, count)
    fast = gradients(model, [examples], packing=True, segments=True, sharing=True)
    fused_lora.unfuse(model)
    naive = alone(model, examples)
    assert fast[0] == pytest.approx(naive[0], rel=1e-6)
    assert fast[1].keys() == naive[1].keys()
    found = distance(fast[1], naive[1])
    print(f"{name}: gradients differ by {found:.2e}")
    assert found < TOLERANCE


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative norm of the difference over all gradients."""
    difference = sum(float(((gradient - wanted[name]) ** 2).sum()) for name, gradient in found.items())
    size = sum(float((gradient**2).sum()) for gradient in wanted.values())
    return (difference / size) ** 0.5
