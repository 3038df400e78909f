"""The loop that everybody writes first: transformers, PEFT, padded batches, SDPA, AdamW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.base import build_model
from bench.pace import Pace, read_spec


def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[key] + [filler] * (width - len(row[key])) for row in rows])

    ids, labels = padded("input_ids", 0), padded("labels", -100)
    mask = torch.tensor([[t < len(row["input_ids"]) for t in range(width)] for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def steps(model: PreTrainedModel, spec: dict[str, Any], pace: Pace) -> None:
    """Optimizer steps of `rows_per_step` rows, in forward passes of `batch_size`."""
    rows = json.loads(Path(spec["rows"]).read_text(encoding="utf-8"))
    size, width = spec["rows_per_step"], spec["options"].get("batch_size", 4)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec["learning_rate"], weight_decay=0.0)
    autocast = spec["options"].get("dtype", "bf16") == "bf16_autocast"
    for at in range(0, len(rows), size):
        pace.wait()
        step = rows[at : at + size]
        labels = sum(label != -100 for row in step for label in row["labels"])
        total = 0.0
        for first in range(0, size, width):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                # One divisor for the whole step, as all contenders have it.
                inputs = batch(step[first : first + width])
                loss = model(**inputs, num_items_in_batch=labels, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pace.loss = total
    pace.wait()


def main() -> None:
    pace, spec = Pace(), read_spec()
    model = build_model(spec)
    model.train()
    steps(model, spec, pace)


if __name__ == "__main__":
    main()
