"""Autocast where something is to be cast, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families import tiny_model
from tests.model.tuning import BF16, FP32, prepare
from tunesmith.train.forward import mixed_precision


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"rslora": True}, False),
        ({"dropout": 0.1}, True),  # through PEFT's forward, which relies on it
        ({"type": "dora"}, True),
        ({"type": "full"}, True),
        ({"type": "freeze", "last_layers": 1}, True),
    ],
)
def test_autocast_only_where_something_is_cast(values: dict[str, Any], expected: bool) -> None:
    model = prepare(tiny_model("llama").bfloat16(), **values).train()
    with mixed_precision(BF16, model):
        assert torch.is_autocast_enabled("cpu") is expected
        assert model(input_ids=torch.arange(9)[None], use_cache=False).logits.dtype is torch.bfloat16
    with mixed_precision(FP32, model):
        assert not torch.is_autocast_enabled("cpu")


def test_a_weight_that_the_base_keeps_in_fp32_keeps_autocast() -> None:
    model = prepare(tiny_model("llama").bfloat16()).train()
    model.get_base_model().lm_head.float()
    with mixed_precision(BF16, model):
        assert torch.is_autocast_enabled("cpu")
