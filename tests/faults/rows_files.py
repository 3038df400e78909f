"""generate, eval and compare, killed at any instant: they go on, with no row twice, missing or different."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.families import WHOLE_TILES, save_tiny
from tests.faults.tally import Place, Tally
from tests.infer.made_run import made_run
from tests.warm import Child, Ended
from tunesmith.model import native
from tunesmith.worklog import read

# In bf16, where a row's company must make no difference (docs/reliability.md); fp32 where C++ is missing.
NATIVE = native.supported() and native.compiler() is not None
HOW = ("--dtype", "bf16" if NATIVE else "fp32", "max_new_tokens=24", "temperature=1.5", "seed=3")
ROWS = 24
VERBS = {
    "eval": ("eval", "run", "--data", "rows.jsonl"),
    "generate": ("generate", "run", "--input", "rows.jsonl", "--batch-size", "4"),
    "compare": ("compare", "run", "--data", "rows.jsonl"),
}


class Command:
    """One of the verbs, on an output of its own."""

    def __init__(self, place: Place, models: Path, verb: str, folder: Path) -> None:
        self.place, self.models, self.verb, self.output = place, models, verb, folder / "out.jsonl"
        self.words = [*VERBS[verb], "--output", self.output, *HOW]

    def start(self) -> Child:
        printed = self.output.with_name("printed")
        more = ["--resume"] if self.verb == "generate" else []
        return self.place.warm.start(*self.words, *more, folder=self.models, printed=printed)

    def killed_later(self, seconds: float) -> Ended:
        """Go on, and be killed in the moments after the next group: in a pass, a line, between files."""
        done = self.done()
        child = self.start()
        child.until(lambda: self.done() > done)
        time.sleep(seconds)
        return child.kill()

    def done(self) -> int:
        """Rows, of all kinds and models, in the worklogs."""
        worklogs = map(read, self.output.parent.glob(f"{self.output.name}*.partial"))
        return sum(len(rows) for worklog in worklogs if worklog for rows in worklog.groups.values())

    def result(self) -> list[Any]:
        """All that the output and its figures say, but for seconds and memory."""
        lines = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        figures = self.output.with_suffix(".json")
        if self.verb == "generate":
            return [_timeless(lines)]
        return [_timeless(lines), _timeless(json.loads(figures.read_text(encoding="utf-8")))]


def killed_files(place: Place) -> Tally:
    """Kill each verb again and again, a moment after each group of rows, until it is finished."""
    tally = Tally()
    models = _models(place)
    for verb in VERBS if place.full else ("eval", "generate"):
        whole = Command(place, models, verb, place.new(f"{verb}-whole"))
        ended = whole.start().wait()
        assert ended.code == 0, ended.printed
        for round_ in range(place.many(5, 1)):
            _chain(place, tally, Command(place, models, verb, place.new(f"{verb}-cut")), whole, round_)
    return tally


def _chain(place: Place, tally: Tally, cut: Command, whole: Command, seed: int) -> None:
    chance, killed = random.Random(f"{cut.verb} {seed}"), 0
    while killed < place.many(1000, 2) and (ended := cut.killed_later(chance.random() * 0.05)).code < 0:
        killed += 1
    if ended.code < 0:
        ended = cut.start().wait()
    tally.injected += killed
    try:
        assert ended.code == 0, f"exit code {ended.code}: {ended.printed[-300:]}"
        assert ended.code != -signal.SIGKILL
        assert "were there already" in ended.printed, "what was there wasn't told"
        assert cut.result() == whole.result(), "rows or figures differ"
        names = [{file.name for file in one.output.parent.iterdir()} for one in (cut, whole)]
        assert names[0] == names[1], f"left behind: {names[0] - names[1]}"
        tally.survived += killed
    except AssertionError as error:
        tally.lost.append(f"{cut.verb}, killed {killed} times: {' '.join(str(error).split())[:200]}")


def _models(place: Place) -> Path:
    """A folder with a tiny run and its base, and rows of unlike lengths."""
    root = place.folder / "answering"
    if root.exists():
        return root
    save_tiny("llama", root / "base", **WHOLE_TILES, initializer_range=0.3)  # roundings that are seen
    made_run(root / "run", root / "base")
    with (root / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            row = {"instruction": f"問題{i}" + "？" * (i * 7 % 11), "output": f"答案{i}。"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return root


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, dict):
        differ = ("seconds", "tokens_per_second", "peak_memory_bytes", "energy_joules", "predictions")
        return {key: _timeless(item) for key, item in value.items() if key not in differ}
    return value
