"""The training loop: steps, and what follows each of them.

    for each step, from where the training is: gradients -> clip -> optimizer -> schedule -> a line of metrics
      then, now and then: validation loss -> answers scored by metrics -> sample answers -> checkpoint

A checkpoint stands after all of these, or says which of them are still to be done.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.pack import Step
from tunesmith.errors import TrainError
from tunesmith.train import checkpoint, watch
from tunesmith.train.checkpoint import Contents
from tunesmith.train.listener import flagged, spoken
from tunesmith.train.memory import OutOfMemory
from tunesmith.train.progress import Cursor, Progress, capture, restore
from tunesmith.train.saving import Best, Saved, Saver, kept_best
from tunesmith.train.signals import Stopped
from tunesmith.train.smaller import halve
from tunesmith.train.step import Parts, Taken, build_parts, start_again, take_step, warm_up
from tunesmith.train.training import Training

log = logging.getLogger("tunesmith")

NON_FINITE_LIMIT = 3
AT_ONCE = 2.0  # seconds that a checkpoint under way has left when nothing is to be waited for
SCALED_LIMIT = 20  # fp16: the scaler halves its factor at each non-finite step until gradients fit
MOMENTS = 3  # a checkpoint's size in weights, about: themselves and AdamW's two averages


@dataclass
class Outcome:
    """How a loop ended. `best` is the checkpoint of the best step, `best_value` its figure of the kind `by`;
    None where that was never measured.
    """

    step: int
    best: Path | None
    best_value: float | None
    best_step: int | None
    by: str
    stopped_early: bool
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for a listener."""
        return {**asdict(self), "best": str(self.best) if self.best else None}


def run_loop(training: Training, start: Contents | None = None) -> Outcome:
    """Train to the end, from a checkpoint where there is one.

    Raises TrainError when three steps in a row have a non-finite loss or gradient, and Stopped, after a
    checkpoint, when a signal asks to stop.
    """
    parts = build_parts(training)
    at = restore(training, parts, start) if start else Progress()
    loop = _Loop(training, parts, at)
    embedding = training.model.get_input_embeddings()  # type: ignore[operator]
    with training.stop.listening(), parts.neftune.on(embedding):
        if start:
            warm_up(training, parts, [*training.compiled.seen])
            at.generators.put_back()
        try:
            loop.run()
        except Stopped:
            loop.save()
            loop.close()
            raise
        except KeyboardInterrupt:
            loop.close(AT_ONCE)
            raise
        except Exception:
            loop.close()
            raise
        loop.close()
    return loop.outcome()


class _Loop:
    def __init__(self, training: Training, parts: Parts, at: Progress) -> None:
        self.training, self.parts, self.at = training, parts, at
        self.saver = Saver(training, kept_best(training.run, at))
        self._began = 0.0
        self._improved = False
        if at.best_step is not None and self.saver.best is None:
            training.listener.note(
                f"The checkpoint of the best step so far, {at.best_step}, is gone: the result will be a "
                "later one."
            )

    def run(self) -> None:
        """From after the step that `at` is at, to the end."""
        training, at = self.training, self.at
        self._began = time.monotonic() - at.seconds
        begun_at = at.step
        self._follow_up()
        while not self._over:
            for epoch, cursor, step in training.plans.numbered(at.cursor, at.step):
                if self._over:
                    break
                taken = self._take(step)
                if taken is None:
                    break  # the plan is another now: the same step comes again
                self._count(taken, step, epoch, Cursor(*cursor))
                self._follow_up()
        if at.step < training.steps and at.step > begun_at:
            training.listener.note(
                f"Stopped early at step {at.step}: no better {spoken(training.aim.name)} "
                f"in {training.settings.early_stopping} evaluations."
            )

    @property
    def _over(self) -> bool:
        return self.at.step == self.training.steps or watch.patience_ended(self.training, self.at)

    def _take(self, step: Step) -> Taken | None:
        """Take a step; None where memory ran out, and it is to be taken again in smaller forward passes."""
        try:
            return take_step(self.training, step, self.parts)
        except OutOfMemory as error:
            place, rows = error.place, error.rows
        # Out here what the failed pass held is no longer held by the error.
        self.parts = start_again(self.training, self.parts)
        self.at.generators.put_back()
        told = halve(self.training, self.at.cursor, self.at.step, place, rows)
        log.warning("%s", told)
        self.training.listener.note(told)
        return None

    def _count(self, taken: Taken, step: Step, epoch: float, cursor: Cursor) -> None:
        """Write down a step that was taken. Raises TrainError after too many that weren't finite."""
        training, at, line = self.training, self.at, taken.line
        finite = not line.get("skipped")
        if finite:
            training.learnt.update(training.train[i].row for pack in step.microbatches for i in pack)
        at.ended(at.step + 1, epoch, cursor, time.monotonic() - self._began, finite=finite)
        flags = training.guards.see(at.step, line["loss"], taken.losses)
        line = {"step": at.step, "epoch": round(epoch, 4), **line, **flags, "seconds": at.seconds}
        training.metrics.append(line)
        at.done(training)
        training.tracking.log(line)
        training.listener.step(line)
        if (said := flagged(line)) is not None:
            log.warning("%s", said)
        if at.bad >= (SCALED_LIMIT if self.parts.scaler.is_enabled() else NON_FINITE_LIMIT):
            raise _non_finite(training, taken.losses, at.step, at.bad)

    def _follow_up(self) -> None:
        """What belongs after a step: validation, samples, a checkpoint, the end if one is asked for."""
        training, at, settings = self.training, self.at, self.training.settings
        self.tell(self.saver.poll())
        if not at.evaluated and self._due(settings.eval_every):
            self._evaluate()
        at.evaluated = True
        if not at.examined and self._examination_due:
            self._examine()
        at.examined = True
        if not at.sampled and self._due(settings.sample_every):
            training.sample(at.step)
            at.done(training)
        at.sampled = True
        if self._over or self._improved or self.saver.due(at.step):
            self.save()
        if training.stop.requested:
            training.stop.end()

    @property
    def _examination_due(self) -> bool:
        """Also where the training stops early: its last weights are looked at whenever there is an end."""
        evaluate = self.training.settings.evaluate
        return evaluate is not None and (self._over or self._due(evaluate.every))

    @property
    def _last(self) -> bool:
        return self.at.step == self.training.steps

    def _due(self, every: int) -> bool:
        return self.at.step == 0 or self._last or bool(every and self.at.step % every == 0)

    def _evaluate(self) -> None:
        training = self.training
        line = watch.evaluate(training, self.at)
        if line is None:
            return
        self._measured(line)
        training.listener.evaluated(line)

    def _examine(self) -> None:
        training, at = self.training, self.at
        line = watch.examine(training, at)
        if line is None:
            return
        at.seconds = time.monotonic() - self._began
        line["seconds"] = at.seconds
        self._measured(line)
        training.listener.examined(line)

    def _measured(self, line: dict[str, Any]) -> None:
        """Write a line of figures down, and judge the step by it where it has the one that chooses."""
        training, at = self.training, self.at
        training.metrics.append(line)
        self._improved = watch.judge(training, line, at) or self._improved
        at.done(training)
        training.tracking.log(line)

    def save(self) -> None:
        """A checkpoint of where the training is; how the one before ended is told."""
        training, at = self.training, self.at
        best = None
        if self._improved and at.best_value is not None:
            best = Best(checkpoint.folder_of(training.run, at.step), at.step, at.best_value)
        self._improved = False
        if at.step == 0:
            return  # nothing was learnt yet
        training.guards.write(training.run)
        if checkpoint.folder_of(training.run, at.step).is_dir():
            self.saver.best = best or self.saver.best
            return  # nothing was learnt since
        trained = (p for p in training.model.parameters() if p.requires_grad)
        needed = sum(MOMENTS * p.numel() * p.element_size() for p in trained)
        self.tell(
            self.saver.save(lambda copied: capture(training, self.parts, at, copied=copied), needed, best)
        )

    def close(self, seconds: float | None = None) -> None:
        """Wait for the checkpoint that is being written, not longer than `seconds`."""
        self.tell(self.saver.wait(seconds), ended=True)

    def tell(self, saved: Saved | None, *, ended: bool = False) -> None:
        """Say of a save that it failed."""
        if saved is None or saved.error is None:
            return
        newest = next(reversed(self.training.run.saved_steps()), None)
        left = f"the newest whole one is {newest.name}." if newest else "there is none yet."
        lost = ""
        if saved.best and saved.step != self.at.step:
            lost = " This was the best so far: its weights can't be the result."
        left = left.capitalize() if ended else f"Training goes on; {left}"
        self.training.listener.note(
            f"The checkpoint of step {saved.step} couldn't be written: {saved.error} {left}{lost}"
        )

    def outcome(self) -> Outcome:
        """How it ended; the best step is one whose weights are kept."""
        at, best = self.at, self.saver.best
        if at.best_step == at.step and at.best_value is not None:
            # These weights are in memory: the result needs no checkpoint of them.
            best = Best(checkpoint.folder_of(self.training.run, at.step), at.step, at.best_value)
        folder, step, value = (best.folder, best.step, best.value) if best else (None, None, None)
        by, early = self.training.aim.name, at.step < self.training.steps
        return Outcome(at.step, folder, value, step, by, early, at.seconds)


def _non_finite(training: Training, losses: Mapping[int, float], number: int, in_a_row: int) -> TrainError:
    # Where only the gradient isn't finite, any row of the step may be the one.
    rows = [i for i, loss in losses.items() if not math.isfinite(loss)] or list(losses)
    details = training.guards.named({i: losses[i] for i in rows}, len(rows))
    return TrainError(
        f"The loss or the gradient isn't finite, {in_a_row} steps in a row (up to step {number}); "
        "the weights are those before the first of them.",
        details=[f"row of the last step: {named}" for named in details],
        fix="Look at these rows. With a lower train.learning_rate or train.dtype=fp32 train anew, or go on "
        "with --resume --force: as it was, the run would come to the same again.",
    )
