"""A job that fits, where the one asked for doesn't: few changes, and those that change least come first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tunesmith.errors import TunesmithError
from tunesmith.model import known
from tunesmith.train.config import job_from
from tunesmith.train.plan import Plan, Planner

# Some room: an estimate may be too low.
ROOM = 0.95
SMALLEST_MICROBATCH = 256


def search(plan: Plan, planner: Planner, note: Callable[[str], None]) -> list[str] | None:
    """The `key=value` words of a job that fits, None where none was found. By arithmetic alone."""
    limit = plan.target.memory * ROOM
    # What a probe found beyond arithmetic is true for the other jobs as well.
    factor = max(1.0, plan.peak / max(1, sum(plan.parts.values())))

    def fits(words: list[str]) -> bool:
        note(f"trying {' '.join(words)}")
        try:
            return planner.plan(job_from(plan.job, words)).peak * factor <= limit
        except TunesmithError:  # a combination that settings refuse
            return False

    chosen: dict[str, str] = {}
    for word in _ladder(plan, planner):
        for part in word.split(" "):
            key, _, _value = part.partition("=")
            chosen[key] = part
        if fits(list(chosen.values())):
            return _without_needless(list(chosen.values()), fits)
    return None


def _ladder(plan: Plan, planner: Planner) -> Iterator[str]:
    """Changes in the order in which they are tried, each on top of those before."""
    job, size = plan.job, plan.work.microbatch
    while size > SMALLEST_MICROBATCH:
        size //= 2
        yield f"train.microbatch_tokens={size}"
    if job.train.recomputing is not True:
        yield "train.checkpoint_activations=true"
    if job.train.optimizer == "adamw":
        yield "train.optimizer=adamw_8bit"
    if not job.adapter.uses_peft:
        yield "adapter.type=lora adapter.last_layers=null train.learning_rate=2e-4"
    if plan.target.device.kind != "mps":
        yield "quantization.type=nf4"
    rank = job.adapter.rank if job.adapter.uses_peft else 16
    if rank > 8:
        yield "adapter.rank=8"
    for name in known.smaller(planner.described.id):
        yield f"model={name}"
    if planner.described.id != "smollm2-135m":
        yield "model=smollm2-135m"


def _without_needless(words: list[str], fits: Callable[[list[str]], bool]) -> list[str]:
    """Take back what turns out not to be needed, the largest changes first."""
    for word in reversed(list(words)):
        fewer = [other for other in words if other != word]
        if fewer and fits(fewer):
            words = fewer
    return words
