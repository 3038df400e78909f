"""generate, eval and compare, killed at any instant: they go on, with no row twice, missing or different."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_tiny
from tests.faults.processes import Child, Ended, Warm
from tests.infer.made_run import made_run
from tunesmith.worklog import read

# bf16, so that answers that were computed in other batches would differ here and there.
HOW = ("--dtype", "bf16", "max_new_tokens=24", "temperature=1.5", "seed=3")
ROWS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    save_tiny("llama", root / "base")
    made_run(root / "run", root / "base")
    with (root / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            row = {"instruction": f"問題{i}" + "？" * (i * 7 % 11), "output": f"答案{i}。"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return root


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


VERBS = {
    "generate": ("generate", "run", "--input", "rows.jsonl", "--batch-size", "4"),
    "eval": ("eval", "run", "--data", "rows.jsonl"),
    "compare": ("compare", "run", "--data", "rows.jsonl"),
}


class Command:
    """One of the verbs on an output of its own."""

    def __init__(self, warm: Warm, place: Path, verb: str, output: Path) -> None:
        self.warm, self.place, self.verb, self.output = warm, place, verb, output
        self.words = [*VERBS[verb], "--output", output, *HOW]

    def start(self, *more: str) -> Child:
        printed = self.output.with_name("printed")
        return self.warm.start(*self.words, *more, folder=self.place, printed=printed)

    def run(self, *more: str) -> Ended:
        return self.start(*more).wait()

    def killed_later(self, seconds: float) -> Ended:
        """Go on, and be killed in the moments after the next group: in a pass, a line, between files."""
        done = self.done()
        child = self.start(*(["--resume"] if self.verb == "generate" else []))
        child.until(lambda: self.done() > done)
        time.sleep(seconds)
        return child.kill()

    def done(self) -> int:
        """Rows, of all kinds and models, in the worklogs."""
        worklogs = map(read, self.output.parent.glob(f"{self.output.name}*.partial"))
        return sum(len(rows) for worklog in worklogs if worklog for rows in worklog.groups.values())

    def result(self) -> list[Any]:
        """All that the output and its figures say, but for seconds and memory."""
        files = [self.output] + [f for f in [self.output.with_suffix(".json")] if self.verb != "generate"]
        lines = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        return [_timeless(lines), *(_timeless(json.loads(f.read_text(encoding="utf-8"))) for f in files[1:])]


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, dict):
        differ = ("seconds", "peak_memory_bytes", "predictions")
        return {key: _timeless(item) for key, item in value.items() if key not in differ}
    return value


@pytest.mark.parametrize("verb", list(VERBS))
def test_killed_again_and_again_it_ends_as_if_never_interrupted(
    warm: Warm, place: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = Command(warm, place, verb, tmp_path / "whole" / "out.jsonl")
    assert whole.run().code == 0
    chance = random.Random(verb)
    cut, kills = Command(warm, place, verb, tmp_path / "cut" / "out.jsonl"), 0
    while (ended := cut.killed_later(chance.random() * 0.05)).code != 0:
        assert ended.code == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    assert "were there already" in ended.printed
    assert cut.result() == whole.result()
    assert {file.name for file in (tmp_path / "cut").iterdir()} == {
        file.name for file in (tmp_path / "whole").iterdir()
    }
