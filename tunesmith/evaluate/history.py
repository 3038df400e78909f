"""What a run's files say about its training; no torch, pydantic or numpy, for `runs list` answers at once.

History       steps, validation losses and facts of one run
smooth        the moving average that curves show
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tunesmith.errors import RunError
from tunesmith.rundir import RunDir


@dataclass(frozen=True)
class Point:
    """A value at a step."""

    step: int
    value: float


@dataclass(frozen=True)
class History:
    """A training as its metrics.jsonl tells it. Losses are in nats per label token; non-finite ones are left
    out of the curves and counted in `non_finite`.
    """

    loss: list[Point] = field(default_factory=list)
    learning_rate: list[Point] = field(default_factory=list)
    valid: list[Point] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    tokens: int = 0
    non_finite: int = 0
    scores: dict[str, list[Point]] = field(default_factory=dict)  # of answers, by metric (train.evaluate)
    answers: int = 0  # that a score is the figure of
    by: str = "valid_loss"  # what chose the step whose weights the run keeps
    better: str = "lower"

    @property
    def first(self) -> float | None:
        """Validation loss before this training (of the base, or of the adapter that is continued)."""
        return self.valid[0].value if self.valid and self.valid[0].step == 0 else None

    @property
    def best(self) -> Point | None:
        """The lowest validation loss of a trained state; its weights are kept if the loss chose them."""
        return min((p for p in self.valid if p.step > 0), key=lambda p: p.value, default=None)

    @property
    def chosen(self) -> Point | None:
        """The step whose weights the run keeps, with the figure that chose it; None where nothing did."""
        if self.by == "valid_loss":
            return self.best
        trained = [p for p in self.scores.get(self.by, []) if p.step > 0]
        sign = 1 if self.better == "higher" else -1
        return max(trained, key=lambda p: (sign * p.value, -p.step), default=None)

    @property
    def changes(self) -> dict[str, tuple[Point | None, Point]]:
        """Of each score: before this training, and at the step that is kept, or else the last one."""
        kept = self.chosen.step if self.chosen else None
        return {
            name: (
                points[0] if points[0].step == 0 else None,
                next((p for p in points if p.step == kept), points[-1]),
            )
            for name, points in self.scores.items()
        }

    @property
    def worse(self) -> bool:
        """Whether even the best trained state has a higher validation loss than what training began with."""
        return self.first is not None and self.best is not None and self.best.value > self.first


def read(run: RunDir) -> History:
    """The history of a run; an empty one before its first line."""
    history: dict[str, list[Point]] = {"loss": [], "learning_rate": [], "valid_loss": []}
    steps = peak = tokens = bad = 0
    seconds = 0.0
    scores: dict[str, list[Point]] = {}
    answers = 0
    for line in run.metrics():
        step = int(line.get("step", 0))
        for name in line.get("metrics", ()):
            scores.setdefault(name, []).append(Point(step, float(line[name])))
            answers = int(line.get("n", 0))
        for name, points in history.items():
            value = line.get(name)
            if isinstance(value, int | float):
                if math.isfinite(value):
                    points.append(Point(step, float(value)))
                else:
                    bad += 1
        if "loss" in line:
            steps = max(steps, step)
            tokens += int(line.get("tokens", 0))
        seconds = max(seconds, float(line.get("seconds", 0.0)))
        peak = max(peak, int(line.get("peak_memory_bytes", 0)))
    chosen = _aim(run)
    return History(
        history["loss"], history["learning_rate"], history["valid_loss"], steps, seconds, peak, tokens, bad,
        scores, answers, chosen.get("by", "valid_loss"), chosen.get("better", "lower"),
    )  # fmt: skip


def _aim(run: RunDir) -> dict[str, str]:
    """What chooses the best step, by the run's record; runs of earlier versions don't say it."""
    try:
        found = run.job().get("best") if run.job_file.is_file() else None
    except RunError:
        found = None
    return found if isinstance(found, dict) else {}


def overview(run: RunDir) -> dict[str, Any]:
    """One line of `runs list`; of metrics.jsonl only the validation lines and the last one are parsed.

    A run with a damaged file has the state `damaged` and says why in `error`: it hides no other run.
    """
    problem = ""
    try:
        facts = run.job()
        rows = data_rows(run)
    except RunError as error:
        facts, rows, problem = {}, None, error.what
    steps, valid = 0, []
    if run.metrics_file.is_file():
        with run.metrics_file.open(encoding="utf-8", errors="replace") as lines:
            last = ""
            for line in lines:
                last = line if line.endswith("\n") else last
                if '"valid_loss"' in line and (found := _object(line)):
                    valid.append(found)
            steps = int(_object(last).get("step", 0))
    losses = [(int(v.get("step", 0)), float(v["valid_loss"])) for v in valid if _finite(v.get("valid_loss"))]
    trained = [loss for step, loss in losses if step > 0]
    return {
        "name": run.path.name,
        "path": str(run.path),
        "state": "damaged" if problem else run.state(),
        "model": model_name(facts),
        "rows": rows,
        "steps": steps,
        "steps_planned": facts.get("steps"),
        "valid_loss": {
            "before": next((loss for step, loss in losses if step == 0), None),
            "best": min(trained, default=None),
        },
        "started": facts.get("started"),
        "age_seconds": age(facts.get("started"), run),
        **({"error": problem} if problem else {}),
    }


def model_name(facts: dict[str, Any]) -> str:
    """The base as the job named it."""
    return str((facts.get("job") or {}).get("model") or (facts.get("base") or {}).get("name") or "?")


def data_rows(run: RunDir) -> int | None:
    """Training rows that were kept, by the data report."""
    part = run.data_report().get("train")
    if not isinstance(part, dict):
        return None
    value = next((part[name] for name in ("kept", "rows") if isinstance(part.get(name), int)), None)
    return None if value is None else int(value)


def age(started: Any, run: RunDir) -> float:
    """Seconds since the run started (by its own word, else by the time of its job file)."""
    try:
        begun = datetime.fromisoformat(str(started)).timestamp()
    except ValueError:
        begun = run.job_file.stat().st_mtime
    return max(0.0, datetime.now(UTC).timestamp() - begun)


def smooth(points: list[Point]) -> list[Point]:
    """A moving average over about a fifteenth of the steps, exact at the start (no pull towards zero).

    s_t = (1 - r) sum_k r^k x_(t-k), divided by the sum of its weights 1 - r^(t+1).
    """
    keep = 1 - 1 / max(1.0, len(points) / 15)
    smoothed, total, weight = [], 0.0, 0.0
    for point in points:
        total = keep * total + (1 - keep) * point.value
        weight = keep * weight + (1 - keep)
        smoothed.append(Point(point.step, total / weight))
    return smoothed


def duration(seconds: float) -> str:
    """40 s, 12 min, 3 h 05 min, 2 d."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{seconds / 86400:.0f} d"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
