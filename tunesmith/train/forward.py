"""From a batch to the logits that predict its label tokens: the one forward pass of training and evaluation.

Shapes: B sequences, T tokens in each, N label tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.device import Device
from tunesmith.errors import ModelError
from tunesmith.model.families import packed_inputs
from tunesmith.model.fused_lora import own_masters


def label_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [N, V] that predict `batch.targets`, in their order.

    The output head is applied only where some row has a label: at other positions logits would be computed,
    held in memory and thrown away. Raises ModelError for a model that can't do that.
    """
    length = batch.input_ids.shape[1]
    columns, inverse = torch.unique(batch.keep % length, return_inverse=True)
    logits: Tensor = model(**packed_inputs(model, batch), logits_to_keep=columns).logits
    # A model that knows no logits_to_keep may swallow it: all logits come back, and others would be taken.
    if logits.shape[1] != columns.numel():
        raise ModelError(
            f"{type(model).__name__} can't give the logits of chosen positions (logits_to_keep).",
            fix="Use a model of another family.",
        )
    return logits[batch.keep // length, inverse]


def label_states(model: nn.Module, decoder: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states [N, D] from which `batch.targets` are predicted, in their order."""
    states: Tensor = decoder(**packed_inputs(model, batch)).last_hidden_state
    return states.flatten(0, 1).index_select(0, batch.keep)


def needs_autocast(device: Device, model: nn.Module) -> bool:
    """Whether something has to be cast for products in the device's number format.

    Autocast looks at every operation. Under plain LoRA on a base in that format it has nothing to cast.
    """
    if device.dtype is torch.float32:
        return False
    masters = own_masters(model)
    return any(p.dtype is torch.float32 and id(p) not in masters for p in model.parameters())


@contextmanager
def mixed_precision(device: Device, model: nn.Module, *, needed: bool | None = None) -> Iterator[None]:
    """Products in the device's number format, while trained weights stay fp32 masters.

    `needed`: what needs_autocast says, where it was asked before; that takes some milliseconds.
    """
    enabled = needs_autocast(device, model) if needed is None else needed
    with torch.autocast(device.kind, dtype=device.dtype if enabled else None, enabled=enabled):
        yield
