"""A run folder made of plain files: reading and reporting runs is tested without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.records import Completion, Conversation, Message, Origin
from tunesmith.rundir import RunDir

PROMPT = "下面是一首唐詩絕句的前兩句，請續寫後兩句，只輸出詩句。\n石室寒飆警，孫枝雅器裁。"


def made_run(
    path: Path, *, steps: int = 40, finished: bool = True, job: dict[str, Any] | None = None
) -> RunDir:
    """Write every file a training leaves, with a loss that falls from 3.84 to 2.68 at the best."""
    run = RunDir(path)
    path.mkdir(parents=True)
    facts = {
        "job": {
            "model": "smollm2-135m",
            "output": str(path),
            "data": {"train": [{"path": str(Path.home() / "data/tang_train.json"), "weight": 1.0}]},
            "adapter": {"type": "lora", "rank": 16},
            "train": {"learning_rate": 0.001, "tokens_per_step": 4096, "seed": 42},
        },
        "base": {
            "name": "smollm2-135m",
            "kind": "embedded",
            "path": str(Path.home() / ".cache/x"),
            "fingerprint": "f",
        },
        "template": {"name": "model's own", "sha256": "0" * 64},
        "trainable": 4_884_480,
        "parameters": 139_400_000,
        "device": "CPU, 2 cores (x86_64)",
        "dtype": "bfloat16",
        "steps": steps,
        "started": "2026-11-21T09:00:00+00:00",
        "versions": {"tunesmith": "0.1.0", "torch": "2.13.0"},
    }
    facts.update(job or {})
    run.job_file.write_text(yaml.safe_dump(facts, allow_unicode=True), encoding="utf-8")
    origin = f"{Path.home()}/data/tang_train.json"
    file = {"path": origin, "format": "alpaca", "encoding": "utf-8", "rows": 1201, "bad": 1}
    file["reason"] = "alpaca, because every row has instruction and output"
    too_long = {"what": "dropped", "reason": "longer than 1024 tokens", "tokens": 1100, "kept_tokens": 0}
    train: dict[str, Any] = {
        "files": [file], "bad_rows": [{"origin": f"{origin}:17", "reason": "output is missing"}],
        "duplicates": 3, "rows": 1200, "kept": 1197, "dropped": 3, "cut": 1, "split": 0, "examples": 1197,
        "tokens": 177_000, "label_tokens": 44_000, "longest": 148, "max_length": 1024, "too_long": "drop",
        "train_on": "all_replies", "labels_cut": 0, "end_tokens_cut": 0,
        "notes": {"the tokenizer has no eos token, so the texts end without one": 12},
        "named": [{"origin": f"{origin}:{line}", "row": line, **too_long} for line in (40, 41, 99)],
    }  # fmt: skip
    valid = {**train, "files": [], "bad_rows": [], "duplicates": 0, "named": [], "notes": {}}
    valid |= {"rows": 100, "kept": 100, "dropped": 0, "cut": 0, "examples": 100, "tokens": 14_800}
    report = {"train": train, "valid": valid, "template": {"name": "model's own", "sha256": "0" * 64}}
    run.data_report_file.write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    lines: list[dict[str, Any]] = [{"step": 0, "valid_loss": 3.84, "valid_perplexity": math.exp(3.84)}]
    for step in range(1, steps + 1):
        loss = 2.6 + 1.2 * math.exp(-step / 12) + 0.12 * math.sin(step * 7)
        lines.append({
            "step": step, "epoch": step / steps, "loss": loss, "grad_norm": 0.9, "tokens": 4096,
            "learning_rate": 1e-3 * min(step / 4, 1 - step / (steps + 1)), "seconds": 4.5 * step,
            "tokens_per_second": 870.0, "peak_memory_bytes": 1_900_000_000, "label_tokens": 1000, "rows": 32,
        })  # fmt: skip
        if step % 10 == 0:
            lines.append({"step": step, "valid_loss": 2.68 + 0.9 * math.exp(-step / 12)})
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    samples = [
        {"step": 0, "prompt": PROMPT, "answer": "The two lines are", "reference": "坐來山水操，弦斷弔塵埃。"},
        {
            "step": steps,
            "prompt": PROMPT,
            "answer": "今日無人見，空山有鳥來。",
            "reference": "坐來山水操，弦斷弔塵埃。",
        },
    ]
    run.samples_file.write_text(
        "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples), encoding="utf-8"
    )
    if finished:
        run.adapter.mkdir()
    return run


class Scripted:
    """A Completer that answers by a function of the conversation: for what doesn't depend on a model."""

    def __init__(self, name: str, answer: Callable[[Conversation], str]) -> None:
        self.name, self.answer = name, answer

    def complete(self, conversations: Sequence[Conversation]) -> Iterator[list[Completion]]:
        for conversation in conversations:
            yield [Completion(self.answer(conversation), "stop", 20, 12, 0.5)]


def couplets(n: int = 15) -> list[Conversation]:
    """Rows that ask for a couplet, each with its own answer as the reference."""
    rows = []
    for i in range(n):
        answer = f"坐來山水{'一二三四五六七八九十'[i % 10]}，弦斷弔塵埃。"
        rows.append(
            Conversation((Message("user", PROMPT),), Origin("test.json", i + 1, i), references=(answer,))
        )
    return rows
