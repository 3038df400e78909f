"""From a batch to the logits that predict its label tokens: the one forward pass of training and evaluation.

Shapes: B sequences, T tokens in each, N label tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.device import Device


def label_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [N, V] that predict `batch.targets`, in their order.

    The output head is applied only where some row has a label: at other positions logits would be computed,
    held in memory and thrown away.
    """
    length = batch.input_ids.shape[1]
    columns, inverse = torch.unique(batch.keep % length, return_inverse=True)
    logits = model(**model_inputs(batch), logits_to_keep=columns).logits
    return logits[batch.keep // length, inverse]


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Keyword arguments for a transformers model, which keep packed rows apart.

    Packed rows are told apart by `position_ids` that restart, but only when there is neither an attention
    mask nor a cache (transformers' masking_utils builds the block-diagonal mask then).
    """
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }


@contextmanager
def mixed_precision(device: Device) -> Iterator[None]:
    """Products in the device's number format, while trained weights stay fp32 masters."""
    enabled = device.dtype is not torch.float32
    with torch.autocast(device.kind, dtype=device.dtype if enabled else None, enabled=enabled):
        yield
