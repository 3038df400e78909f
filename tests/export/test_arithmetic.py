"""Where memory can't hold a model in fp32, its parts are widened one at a time: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import save_tiny
from tests.model.tuning import BF16, prepare, save, trained
from tunesmith.export import arithmetic
from tunesmith.export.loaded import TransformersModel
from tunesmith.model import adapters
from tunesmith.model.load import load_model, load_tokenizer
from tunesmith.model.source import resolve

IDS = [5, 17, 40, 41, 9, 77, 78, 100]


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "lora"), ("qwen2", "dora"), ("gemma3", "lora"), ("gemma2", ""), ("gpt2", "lora")],
)
def test_part_by_part_gives_what_the_whole_model_in_fp32_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    source = resolve(str(save_tiny(family, tmp_path / "base")))
    folder = (
        save(trained(prepare(load_model(source, BF16), type=kind)), tmp_path / "a", family) if kind else None
    )

    def model() -> Any:
        base = load_model(source, BF16)
        return adapters.attach(base, folder) if folder else base

    tokenizer = load_tokenizer(source)
    rounded = TransformersModel(model(), tokenizer).logits(IDS)
    whole = TransformersModel(arithmetic.in_fp32(model()), tokenizer)
    monkeypatch.setattr(arithmetic, "available_memory", lambda _: 0)
    small = arithmetic.in_fp32(model())
    parts = TransformersModel(small, tokenizer)
    assert {p.dtype for n, p in small.named_parameters() if "lora" not in n} == {torch.bfloat16}
    for _ in range(2):
        assert abs(parts.logits(IDS) - whole.logits(IDS)).max() < 1e-5
    assert abs(rounded - whole.logits(IDS)).max() > 1e-3
    assert parts.greedy(IDS, 6) == whole.greedy(IDS, 6)
    assert {p.dtype for n, p in small.named_parameters() if "lora" not in n} == {torch.bfloat16}
