"""A tiny model, and a run trained on it, shared by the tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_tiny
from tunesmith import api
from tunesmith.evaluate.findings import probes
from tunesmith.evaluate.findings.general import general_rows
from tunesmith.records import Conversation, Message, Origin


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"問題{i}？", "input": "", "output": f"答案是{i}，好。" * (1 + i % 3)}
        for i in range(n)
    ]


def write_rows(file: Path, content: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content), encoding="utf-8")
    return file


def questions(n: int) -> list[Conversation]:
    """Prompts of unequal lengths with one reference each."""
    return [
        Conversation(
            (Message("user", row["instruction"]),),
            Origin("valid.jsonl", i + 1, i),
            references=(row["output"],),
        )
        for i, row in enumerate(rows(n))
    ]


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four general questions instead of sixty, for comparisons that aren't about them."""
    first = general_rows()[::16]
    monkeypatch.setattr(probes, "general_rows", lambda: first)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen2/ (a tiny model), train.jsonl, valid.jsonl and runs/lora, trained for a few steps."""
    root = tmp_path_factory.mktemp("place")
    save_tiny("qwen2", root / "qwen2")
    write_rows(root / "train.jsonl", rows(24))
    write_rows(root / "valid.jsonl", rows(8))
    train(root, "lora", adapter={"rank": 4, "alpha": 8})
    return root


def train(root: Path, name: str, *, adapter: dict[str, Any], **changes: Any) -> Path:
    data = {"train": str(root / "train.jsonl"), "valid": str(root / "valid.jsonl"), "train_on": "last_reply"}
    settings = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "tokens_per_step": 256,
        "eval_every": 0,
        "dtype": "fp32",
    }
    job = {"model": str(root / "qwen2"), "output": str(root / "runs" / name), "data": data}
    return api.train({**job, "adapter": adapter, "train": {**settings, **changes}}).path
