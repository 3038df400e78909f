"""Going on with a run: the newest whole checkpoint, what must be as it was, and what is said of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tunesmith.disk import make_folder, remove_leftovers, sync_folder
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Contents
from tunesmith.train.config import TrainSettings
from tunesmith.train.facts import now
from tunesmith.train.identity import Facts, changed_line, inputs_changed, machine_changed, made_from
from tunesmith.train.optim import build_schedule
from tunesmith.train.prepare import Prepared
from tunesmith.train.resume import Continued, with_settings
from tunesmith.train.track import Again
from tunesmith.train.training import Training

Note = Callable[[str], None]
EARLIER = "earlier"  # where the result of a shorter training goes when it is made longer


@dataclass
class Start:
    """From where a run goes on; `contents` None is the beginning. `notes` were told, and are logged."""

    contents: Contents | None
    force: bool
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.contents.step if self.contents else 0

    @property
    def trackers(self) -> Again:
        """By which trackers continue the run."""
        return Again(self.contents.state["trackers"] if self.contents else {}, self.step)

    def put_back_records(self, training: Training) -> None:
        """Cut off what was written after the checkpoint. Raises RunError where what came before is gone."""
        for name, journal in (("metrics", training.metrics), ("samples", training.samples)):
            journal.back_to(self.contents.state[name] if self.contents else None, force=self.force)


def begin(continued: Continued, note: Note) -> Start:
    """Find the checkpoint to go on from; those that are damaged are told and set aside.

    Raises RunError where there are some, but none is whole.
    """
    run, notes = continued.run, list[str]()

    def tell(text: str) -> None:
        notes.append(text)
        note(text)

    remove_leftovers(run.checkpoints)
    contents, damaged = checkpoint.newest(run)
    if contents is None and damaged and not continued.force:
        raise RunError(
            f"No checkpoint of {run.path} is whole.",
            details=[error.what for error in damaged],
            fix="--force begins again at the first step, in this folder; another output=… leaves it.",
        )
    for error in damaged:
        tell(f"{error.what} ({', '.join(error.details) or 'see log.txt'}) The one before it is taken.")
    start = Start(contents, continued.force, notes)
    if damaged:
        checkpoint.set_aside(run, after=start.step)
    planned = continued.facts["steps"]
    where = (
        f"after step {start.step} of {planned}" if contents else "from the beginning: it has no checkpoint"
    )
    tell(f"Going on with {run.path}, {where}.")
    return start


def check(
    continued: Continued, start: Start, ready: Prepared, facts: dict[str, Any], note: Note
) -> dict[str, Any]:
    """Refuse what changed unless it is forced, say what will be otherwise; returns the run's new record.

    `facts` are those of the training as it would be now.
    """
    then = continued.facts

    def tell(text: str) -> None:
        start.notes.append(text)
        note(text)

    changed = [*_unsealed(then, start.contents), *inputs_changed(then, facts)]
    if changed and not continued.force:
        raise RunError(
            f"{continued.run.path} can't go on: what it is made from has changed.",
            details=changed,
            fix="Put it back as it was, or train anew (another output=…, or --no-resume); --force goes on "
            "with what is there now.",
        )
    for line in [*continued.forced, *changed]:
        tell(f"Forced: {line}.")
    _check_length(continued, start, ready, tell)
    if other := machine_changed(then, facts):
        tell(f"The result won't be bit-identical to that of an uninterrupted run: {'; '.join(other)}.")
    entry = {"at": now(), "step": start.step}
    if continued.changes:
        entry["changed"] = [changed_line(name, *both) for name, both in continued.changes.items()]
    if changed:
        entry["forced"] = changed
    if other:
        entry["machine"] = other
    if continued.forced or changed:
        entry["made_from"] = made_from(then)
    settings = {name: to for name, (_, to) in continued.changes.items()}
    new = {"data_sha256", "examples_sha256", "tokenizer_sha256", "template", "base"} if changed else set()
    return {
        **then,
        **{name: facts[name] for name in new},
        "job": with_settings(then["job"], settings),
        "steps": ready.training.steps,
        "resumed": [*then.get("resumed", []), entry],
    }


def set_result_aside(run: RunDir, step: int) -> None:
    """Move the result of a training that is made longer to earlier/, so that the run is unfinished again."""
    if (weights := run.weights) is None:
        return
    target = run.path / EARLIER / f"step-{step:06d}" / weights.name
    make_folder(target.parent)
    while target.exists():
        target = target.with_name(f"{target.name}-again")
    weights.rename(target)
    for folder in (target.parent, run.path):
        sync_folder(folder)


def _unsealed(then: Facts, contents: Contents | None) -> list[str]:
    """What the checkpoint was made from, where job.yaml says otherwise."""
    if contents is None:
        return []
    known = [made_from(then), *(e["made_from"] for e in then.get("resumed", []) if "made_from" in e)]
    return [
        f"{name}: the checkpoint of step {contents.step} was made from another than job.yaml says"
        for name in ("job", "data", "tokenizer", "base")
        if all(seal[name] != contents.made_from.get(name) for seal in known)
    ]


def _check_length(continued: Continued, start: Start, ready: Prepared, tell: Note) -> None:
    """Raise RunError for a length that can't be; say what another one does to the schedule.

    An unfinished run goes on with another length only where its steps so far are those of a training that was
    that long from the start. One that finished has a result of its own; it is made longer in any case.
    """
    steps, before = ready.training.steps, int(continued.facts["steps"])
    run, settings = continued.run, ready.job.train
    if steps < start.step:
        raise RunError(
            f"{run.path} has taken {start.step} steps already; this job has only {steps}.",
            fix="Give more train.epochs or train.max_steps, or train anew with another output=….",
        )
    if not continued.other_length:
        return
    if steps == before:
        why = (
            f"train.max_steps={settings.max_steps} decides"
            if settings.max_steps
            else "it gives no more steps"
        )
        raise RunError(
            f"{run.path} would have {steps} steps as before: {why}.", fix="Give another train.max_steps."
        )
    waited = start.contents.state["without_gain"] if start.contents else 0
    if settings.early_stopping is not None and waited >= settings.early_stopping:
        raise RunError(
            f"{run.path} stopped early, after {waited} evaluations without a better one: with more steps it "
            "would stop again at once.",
            fix="--force with a larger train.early_stopping, or null, goes on.",
        )
    longer = "longer" if steps > before else "shorter"
    told = f"The training is made {longer}: {before} -> {steps} steps."
    jump = _jump(settings, before, steps, start.step) if start.step else None
    if jump is None:
        tell(f"{told} The rates of the steps so far are those of the {longer} training.")
        return
    rates = f"the rate goes from {jump[0]:.2g} at step {start.step} to {jump[1]:.2g} at the next one"
    if run.weights is None:
        changes = [f"{line}: {before} -> {steps} steps" for line in continued.lengths]
        if not continued.force:
            raise RunError(
                f"{run.path} is unfinished, and its schedule {settings.schedule} has {before} steps.",
                details=[*changes, f"learning rate: laid over {steps} steps from here, {rates}"],
                fix="Give the length as it was, and make the run longer when it is finished; or train anew "
                "(another output=…, or --no-resume); --force goes on with the new length.",
            )
        for line in changes:
            tell(f"Forced: {line}.")
    tell(
        f"{told} The schedule {settings.schedule} is laid over all of them: {rates}. A training of {steps} "
        "steps from the start would have had other rates before, too."
    )


def _jump(settings: TrainSettings, before: int, steps: int, done: int) -> tuple[float, float] | None:
    """The last step's rate as it was and the next one's, where the other length had other rates so far."""
    old, new = (_rates(settings, length, done + 1) for length in (before, steps))
    same = all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(old[:done], new[:done], strict=True))
    return None if same else (old[done - 1], new[done])


def _rates(settings: TrainSettings, steps: int, count: int) -> list[float]:
    """The learning rates of the first `count` steps of a training of so many."""
    schedule: Any = build_schedule(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate), settings, steps
    )
    (share,) = schedule.lr_lambdas
    return [settings.learning_rate * share(step) for step in range(1, count + 1)]
