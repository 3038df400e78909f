"""What the tests of adapters share: a short training, saving, and logits to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.families import tiny_tokenizer
from tunesmith.device import Device
from tunesmith.model import adapters
from tunesmith.model.config import AdapterSettings

FP32 = Device(torch.device("cpu"), torch.float32, "CPU")
BF16 = Device(torch.device("cpu"), torch.bfloat16, "CPU")


def settings(**values: Any) -> AdapterSettings:
    size = {} if values.get("type") in ("full", "freeze") else {"rank": 3, "alpha": 5}
    return AdapterSettings.model_validate({**size, **values})


def prepare(model: PreTrainedModel, seed: int = 7, mark: str = "f" * 64, **values: Any):
    return adapters.prepare(model, settings(**values), seed=seed, base_fingerprint=mark)


def trained(model: Any, steps: int = 3) -> Any:
    """A few optimizer steps on random tokens, enough to move every trained tensor."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    generator = torch.Generator().manual_seed(5)
    model.train()
    for _ in range(steps):
        ids = torch.randint(0, 200, (2, 12), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype is torch.bfloat16):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def save(model: Any, folder: Path, family: str = "llama", **meta: Any) -> Path:
    folder.mkdir()
    tokenizer = tiny_tokenizer(family)
    meta = {"model": family, "kind": "folder", "revision": None, "base_fingerprint": "f" * 64, **meta}
    adapters.save(model, lambda place: tokenizer.save_pretrained(place), folder, meta=meta)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 43).reshape(2, 20), use_cache=False).logits.float()


def trained_names(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}
