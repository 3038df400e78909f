"""What is trained in the benchmarks: rows made from texts of this repository, always the same.

handbook   questions of about 30 words and answers of about 140, with no common beginning; the words are runs
           of English text (LICENSE), lengths spread as in a student's handbook of questions and answers
tang       the first rows of examples/tang under the model's own template: 77 of 148 tokens are common to all
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from tunesmith.data.check import load_data
from tunesmith.data.encode import Example, encode
from tunesmith.data.pack import plan_epoch
from tunesmith.data.template import Renderer
from tunesmith.model.load import end_ids, load_tokenizer, local_folder
from tunesmith.model.source import resolve
from tunesmith.train.config import job_from

ROOT = Path(__file__).parent.parent
MODEL = "smollm2-135m"
SEED = 42


@dataclass(frozen=True)
class Workload:
    """One training that all contenders do. `rows`: Alpaca rows; `template`: None is the model's own."""

    name: str
    title: str
    rows: list[dict[str, str]]
    template: str | None
    rows_per_step: int
    tune: str = "lora"
    learning_rate: float = 1e-4
    quantization: str | None = None
    needs: tuple[str, ...] = field(default=())  # modules without which it is skipped

    def job(self, rows_file: Path) -> dict[str, Any]:
        """The job for tunesmith: what the workload fixes, and defaults for everything else."""
        adapter: dict[str, Any] = {"type": "full"}
        if self.tune == "lora":
            adapter = {"type": "lora", "rank": 8, "alpha": 16, "targets": "all", "dropout": 0.0}
        job: dict[str, Any] = {
            "model": MODEL,
            "data": {"train": str(rows_file), "template": self.template},
            "adapter": adapter,
            "train": {
                "learning_rate": self.learning_rate,
                "schedule": "constant",
                "warmup": 0,
                "batch_size": self.rows_per_step,
                "eval_every": 0,
                "save_every": 0,
                "save_minutes": 0,
                "seed": SEED,
            },
        }
        if self.quantization:
            job["quantization"] = self.quantization
        return job


def handbook_rows(count: int = 256) -> list[dict[str, str]]:
    """`count` rows; the same ones come first whatever the count."""
    words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    draw = random.Random("tunesmith bench, handbook")

    def run(average: int) -> str:
        # Log-normal: most are shorter than the average, a few twice as long.
        length = min(3 * average, max(average // 3, round(average * 0.92 * draw.lognormvariate(0, 0.4))))
        start = draw.randrange(len(words))
        return " ".join(words[(start + i) % len(words)] for i in range(length))

    return [{"instruction": run(30), "output": run(140)} for _ in range(count)]


def tang_rows(count: int = 512) -> list[dict[str, str]]:
    """The first `count` rows of the example."""
    rows: list[dict[str, str]] = json.loads((ROOT / "examples/tang/train.json").read_text(encoding="utf-8"))
    return rows[:count]


def workloads() -> dict[str, Workload]:
    """All workloads by name."""
    handbook = handbook_rows()
    return {
        "handbook": Workload("handbook", "handbook lengths, LoRA", handbook, "chatml", 16),
        "tang": Workload("tang", "Tang rows, LoRA", tang_rows(), None, 32),
        "full": Workload("full", "handbook lengths, full fine-tuning", handbook, "chatml", 16, "full", 1e-5),
        "qlora": Workload(
            "qlora", "handbook lengths, LoRA on an NF4 base", handbook, "chatml", 16,
            quantization="nf4", needs=("bitsandbytes",),
        ),
    }  # fmt: skip


def missing(workload: Workload) -> str | None:
    """Why this workload can't be run here; None where it can."""
    from importlib.util import find_spec

    for module in workload.needs:
        if find_spec(module) is None:
            return f"{module} isn't installed"
    return None


@dataclass(frozen=True)
class Laid:
    """A workload on disk: rows as text for tunesmith, as tokens in the order of training for the others."""

    rows_file: Path
    tokens_file: Path
    steps: list[list[Example]]

    def tokens(self, step: int) -> int:
        return sum(len(example.input_ids) for example in self.steps[step])


def model_folder() -> Path:
    """The model as a folder that transformers loads."""
    return local_folder(resolve(MODEL, None))


def examples_of(rows_file: Path, template: str | None) -> list[Example]:
    """The rows as tunesmith encodes them."""
    job = job_from({"model": MODEL, "data": {"train": str(rows_file), "template": template}})
    source = resolve(job.model, job.revision)
    renderer = Renderer(load_tokenizer(source), job.data.template, end_ids=end_ids(source))
    return encode(load_data(job.data, SEED)[0].records, renderer, job.data).examples


def lay_out(workload: Workload, folder: Path, *, sort: bool = False) -> Laid:
    """Write the workload's files. `sort`: rows of one step by length."""
    rows_file = folder / f"{workload.name}.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) for row in workload.rows)
    rows_file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    examples = examples_of(rows_file, workload.template)
    steps = steps_of(examples, workload.rows_per_step)
    if sort:
        steps = [sorted(step, key=lambda example: len(example.input_ids)) for step in steps]
    tokens_file = folder / f"{workload.name}{'-sorted' if sort else ''}.json"
    content = [
        {
            "input_ids": example.input_ids,
            "labels": [
                token if labelled else -100
                for token, labelled in zip(example.input_ids, example.label_mask, strict=True)
            ],
        }
        for step in steps
        for example in step
    ]
    tokens_file.write_text(json.dumps(content), encoding="utf-8")
    return Laid(rows_file, tokens_file, steps)


def steps_of(examples: Sequence[Example], rows_per_step: int) -> list[list[Example]]:
    """The rows of each whole step of the first epoch, in the order in which tunesmith trains on them."""
    plan = plan_epoch(
        [len(example.input_ids) for example in examples],
        epoch=0, seed=SEED, tokens_per_step=None, rows_per_step=1, microbatch_tokens=1,
        microbatch_rows=None, packing=True,
    )  # fmt: skip
    order = [step.microbatches[0][0] for step in plan]
    whole = len(order) // rows_per_step * rows_per_step
    return [[examples[i] for i in order[at : at + rows_per_step]] for at in range(0, whole, rows_per_step)]


def describe(examples: Sequence[Example]) -> dict[str, Any]:
    """Counts that say what kind of data this is; `sha256` is that of all its tokens."""
    rows = [example.input_ids for example in examples]
    common = 0
    while all(len(row) > common and row[common] == rows[0][common] for row in rows):
        common += 1
    lengths = sorted(map(len, rows))
    return {
        "rows": len(rows),
        "tokens": sum(lengths),
        "label_tokens": sum(sum(example.label_mask) for example in examples),
        "mean_tokens": round(mean(lengths), 1),
        "shortest": lengths[0],
        "longest": lengths[-1],
        "common_tokens": common,
        "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
    }
