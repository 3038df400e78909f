"""A training of forty steps on a tiny model: dropout, packs, validation, a checkpoint every third step.

In the quick subset it has twenty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.families import save_tiny
from tests.faults.tally import Place
from tests.warm import Child
from tunesmith.rundir import RunDir

STEPS, SAVE_EVERY = 40, 3
ROWS = 60
# What clocks and memory say; all else must be the same to the last byte.
MEASURED = ("seconds", "tokens_per_second", "peak_memory_bytes", "answer_seconds")


@dataclass(frozen=True)
class TinyJob:
    """A folder with model, rows and job.yaml; its run is in run/."""

    folder: Path
    place: Place

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "run")

    @property
    def printed(self) -> str:
        file = self.folder / "printed"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def start(self, *words: str, before: Any = (), verb: str = "train") -> Child:
        """`tunesmith train job.yaml WORDS`"""
        file = self.folder / "printed"
        return self.place.warm.start(
            verb, "job.yaml", *words, folder=self.folder, printed=file, before=before
        )

    def metrics(self) -> list[dict[str, Any]]:
        """Every line, without what a clock says."""
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in self.run.metrics()]

    def last_step(self) -> int:
        """The last step that metrics.jsonl has."""
        if not self.run.metrics_file.exists():
            return 0
        lines = self.run.metrics_file.read_bytes().split(b"\n")[:-1]
        return max((json.loads(line)["step"] for line in lines), default=0)

    def newest(self) -> int:
        """The step of the newest checkpoint that has its name."""
        return max((int(p.name.removeprefix("step-")) for p in self.run.saved_steps()), default=0)


def tiny_job(place: Place, name: str, **changes: Any) -> TinyJob:
    """Lay out a new job; dotted names (`train__save_every`) change its settings."""
    folder = place.new(name)
    model = place.folder / "llama"
    if not model.exists():
        save_tiny("llama", model)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            row = {"instruction": f"第{i}個問題{'，再問' * (i % 4)}？", "output": f"答案{i}。" * (1 + i % 5)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    content: dict[str, Any] = {
        "model": str(model),
        "output": "run",
        "data": {"train": "rows.jsonl", "valid": 0.1, "max_length": 256},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "train": {
            "max_steps": STEPS if place.full else STEPS // 2,
            "tokens_per_step": 320,
            "microbatch_tokens": 256,
            "learning_rate": 1e-2,
            "eval_every": 10,
            "sample_every": 0,
            "save_every": SAVE_EVERY,
            "dtype": "fp32",
            "seed": 7,
        },
    }
    for key, value in changes.items():
        *above, last = key.split("__")
        node = content
        for part in above:
            node = node[part]
        node[last] = value
    (folder / "job.yaml").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return TinyJob(folder, place)
