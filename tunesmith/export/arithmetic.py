"""fp32 arithmetic for a model whose weights are held in 16 bits.

bf16 arithmetic rounds more than an export does: one model through two kernels differs by 0.002 nats a token
(SmolLM2-135M), of which a budget of 0.001 could say nothing. Where memory can, all weights are held in fp32.
Where it can't, one part at a time is: a decoder layer, the embeddings, the head. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.device import available_memory
from tunesmith.model.targets import decoder_layers

_SLACK = 2**30  # for logits and activations


def in_fp32(model: Any) -> Any:
    """The model, whose results are those of fp32 arithmetic on its weights from now on."""
    larger = {id(p): p.numel() * (4 - p.element_size()) for p in model.parameters() if p.is_floating_point()}
    if sum(larger.values()) * 1.1 + _SLACK <= available_memory(model.device.type):
        return model.float()
    return part_by_part(model)


def part_by_part(model: Any) -> Any:
    """The model with each part in fp32 only while it computes."""
    layers = set(decoder_layers(model))
    for part in _parts(model, layers):
        held: dict[nn.Parameter, torch.Tensor] = {}
        part.register_forward_pre_hook(_Widen(held))
        part.register_forward_hook(_Narrow(held), always_call=True)
    return model


def _parts(module: nn.Module, layers: set[nn.Module]) -> Iterator[nn.Module]:
    """Decoder layers, and of all else the largest modules that hold none of them."""
    if module in layers or (layers.isdisjoint(module.modules()) and any(True for _ in module.parameters())):
        yield module
        return
    for child in module.children():
        yield from _parts(child, layers)


class _Widen:
    def __init__(self, held: dict[nn.Parameter, torch.Tensor]) -> None:
        self._held = held

    def __call__(self, part: nn.Module, _: Any) -> None:
        for parameter in part.parameters():
            if parameter.is_floating_point() and parameter.dtype is not torch.float32:
                self._held[parameter] = parameter.data
                parameter.data = parameter.data.float()


class _Narrow:
    def __init__(self, held: dict[nn.Parameter, torch.Tensor]) -> None:
        self._held = held

    def __call__(self, *_: Any) -> None:
        for parameter, data in self._held.items():
            parameter.data = data
        self._held.clear()
