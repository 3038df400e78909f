"""What checkpoints, records and checks cost: blocks of the same steps with and without them, in turns.

    python -m bench.checkpoint_cost                              the demo's job (examples/tang)
    python -m bench.checkpoint_cost --job JOB.yaml model=NAME    another one

In each pair both blocks take the same steps in one process. In one of them a checkpoint is begun after the
first step, written, read back and pruned by its thread while the next steps run; each step is appended to
metrics.jsonl, and losses are looked at row by row. What is left of the writing when the block ends is waited
for and counted too. The order of the two alternates.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.tables import Spread
from tunesmith.data.pack import Step
from tunesmith.rundir import create
from tunesmith.train.config import load_job
from tunesmith.train.guards import Guards
from tunesmith.train.listener import Lines
from tunesmith.train.loop import MOMENTS
from tunesmith.train.prepare import prepare
from tunesmith.train.progress import Progress, capture
from tunesmith.train.saving import Saver
from tunesmith.train.step import Parts, build_parts, take_step
from tunesmith.train.training import Training

JOB = Path(__file__).parent.parent / "examples" / "tang" / "job.yaml"
LIMIT = 0.02  # of the time of steps


@dataclass
class Bench:
    """A training whose steps are taken by hand."""

    training: Training
    parts: Parts
    at: Progress
    saver: Saver
    records: list[float] = field(
        default_factory=list
    )  # seconds that metrics and looking at losses took, by step

    def block(self, steps: Sequence[Step], *, kept: bool) -> float:
        """Seconds that these steps take, with all that is kept of them or with nothing."""
        begun = time.monotonic()
        for number, step in enumerate(steps):
            self.at.step += 1
            taken = take_step(self.training, step, self.parts)
            if not kept:
                continue
            recorded = time.monotonic()
            flags = self.training.guards.see(self.at.step, taken.line["loss"], taken.losses)
            self.training.metrics.append({"step": self.at.step, **taken.line, **flags})
            self.at.done(self.training)
            self.records.append(time.monotonic() - recorded)
            if number == 0:
                self._save()
        if kept:
            saved = self.saver.wait()
            assert saved is not None, "nothing was saved"
            assert saved.error is None, saved.error
        return time.monotonic() - begun

    def _save(self) -> None:
        trained = (p for p in self.training.model.parameters() if p.requires_grad)
        needed = sum(MOMENTS * p.numel() * p.element_size() for p in trained)
        self.saver.save(
            lambda copied: capture(self.training, self.parts, self.at, copied=copied), needed, None
        )


def measure(job: Path, words: Sequence[str], folder: Path, *, pairs: int, steps: int) -> dict[str, Any]:
    """Blocks in turns; seconds of each, and what a checkpoint holds."""
    ready = prepare(load_job(job, [*words]), folder / "run", Lines())
    training = ready.training
    training.run = create(folder / "run")
    training.made_from = {"bench": "checkpoint_cost"}
    training.guards = Guards(training.train)
    bench = Bench(training, build_parts(training), Progress(), Saver(training))
    plan = [step for epoch in training.plans for step in epoch]
    bench.block(plan[:2], kept=False)  # warms up
    bench.block(plan[:2], kept=True)
    with_it, without, each = list[float](), list[float](), list[float]()
    for pair in range(pairs):
        block = [plan[(pair * steps + i) % len(plan)] for i in range(steps)]
        for kept in (pair % 2 == 0, pair % 2 == 1):
            seconds = bench.block(block, kept=kept)
            (with_it if kept else without).append(seconds)
            if not kept:
                each.append(seconds / steps)
        print(
            f"pair {pair + 1}: {with_it[-1]:.2f} s with, {without[-1]:.2f} s without",
            file=sys.stderr,
            flush=True,
        )
    newest = training.run.saved_steps()[-1]
    return {
        "with": with_it,
        "without": without,
        "step": each,
        "steps": steps,
        "records": bench.records,
        "bytes": sum(file.stat().st_size for file in newest.iterdir()),
    }


def told(found: dict[str, Any], every: int) -> tuple[str, bool]:
    """The cost in words, and whether it keeps the limit with a checkpoint every so many steps."""
    costs = [a - b for a, b in zip(found["with"], found["without"], strict=True)]
    step = median(found["step"])
    # A block has the records of its own steps; those of the others until the next checkpoint come to it.
    share = (median(costs) + (every - found["steps"]) * median(found["records"])) / (every * step)
    return (
        f"a checkpoint of {found['bytes'] / 2**20:.1f} MiB costs {Spread.of(costs).text(2, ' s')} beside "
        f"steps of {step:.2f} s; every {every} steps: {100 * share:.2f} % of the time (at most {LIMIT:.0%})",
        share <= LIMIT,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="What checkpoints, records and checks cost.")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the job's")
    parser.add_argument("--job", type=Path, default=JOB)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="in each block")
    parser.add_argument("--every", type=int, help="steps between checkpoints; default: the job's")
    given = parser.parse_args()
    settings = load_job(given.job, given.words).train
    # The best one is saved as well: after each validation, as long as the loss falls.
    due = [every for every in (settings.save_every, settings.eval_every) if every]
    every = given.every or min(due, default=200)
    with tempfile.TemporaryDirectory(prefix=".checkpoint-cost-", dir=Path.cwd()) as folder:
        found = measure(given.job, given.words, Path(folder), pairs=given.pairs, steps=given.steps)
    text, kept = told(found, every)
    print(json.dumps(found))
    print(text)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
