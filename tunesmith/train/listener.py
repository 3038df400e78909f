"""Who hears what happens during a training: a progress bar, a notebook, a test.

The sentences are those of `Lines`, wherever they are shown: terminal, notebook, log.txt.
"""

from __future__ import annotations

import io
import logging
import re
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console

from tunesmith.data.report import named_rows, report_table
from tunesmith.train.config import VALID_LOSS
from tunesmith.words import counted, duration

log = logging.getLogger("tunesmith")

SECONDS_BETWEEN_LINES = 10.0
STEPS_AVERAGED = 20
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Listener(Protocol):
    """Called in the order of the methods here; `step`, `evaluated`, `examined` and `sampled` repeat."""

    def note(self, text: str) -> None:
        """A sentence for the person: what is being done, or something worth knowing."""

    def data(self, report: Mapping[str, Any]) -> None:
        """The data report, before training starts."""

    def started(self, steps: int, facts: Mapping[str, Any]) -> None:
        """Training starts: how many steps, and what the run knows (device, trainable parameters, …)."""

    def step(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl about an optimizer step."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl about the validation rows."""

    def examined(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl about answers that metrics scored."""

    def sampled(self, line: Mapping[str, Any]) -> None:
        """A line of samples.jsonl."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Training is over and the weights are saved."""


class Silent:
    """A listener that hears everything and does nothing."""

    def note(self, text: str) -> None: ...

    def data(self, report: Mapping[str, Any]) -> None: ...

    def started(self, steps: int, facts: Mapping[str, Any]) -> None: ...

    def step(self, line: Mapping[str, Any]) -> None: ...

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def examined(self, line: Mapping[str, Any]) -> None: ...

    def sampled(self, line: Mapping[str, Any]) -> None: ...

    def finished(self, summary: Mapping[str, Any]) -> None: ...


class Undisturbed:
    """A listener whose reader may go away or be slow: whatever its place of writing says, training goes on.

    After the first OSError (a closed pipe, a terminal that is gone, a full disk under a redirected stderr)
    nothing more is handed on; log.txt has it all.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener | None = listener

    def note(self, text: str) -> None:
        self._hand_on("note", text)

    def data(self, report: Mapping[str, Any]) -> None:
        self._hand_on("data", report)

    def started(self, steps: int, facts: Mapping[str, Any]) -> None:
        self._hand_on("started", steps, facts)

    def step(self, line: Mapping[str, Any]) -> None:
        self._hand_on("step", line)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self._hand_on("evaluated", line)

    def examined(self, line: Mapping[str, Any]) -> None:
        self._hand_on("examined", line)

    def sampled(self, line: Mapping[str, Any]) -> None:
        self._hand_on("sampled", line)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self._hand_on("finished", summary)

    def _hand_on(self, name: str, *values: Any) -> None:
        if self._listener is None:
            return
        try:
            getattr(self._listener, name)(*values)
        except OSError as error:
            self._listener = None
            log.warning("nobody reads what this training says (%s); it goes on", error)


def has_room(stream: Any) -> bool:
    """Whether a line can be written without waiting for a reader: a pipe that nobody empties gets full."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return True  # no file of the system: a notebook, a test
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(0))


class Lines:
    """A listener that prints plain lines on stderr: notes, the data report, a line every ten seconds.

    What Python callers hear where they give no listener of their own.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._last_line = time.monotonic()
        self._step_seconds: deque[float] = deque(maxlen=STEPS_AVERAGED)
        self._every: int | None = None  # steps between evaluations by answers; 0: one at the end
        self._answer_seconds = 0.0  # of the last one

    def say(self, text: str, *, style: str = "") -> None:
        """Show a line, if that needs no waiting; `style` is rich's, for places that have colours."""
        del style
        if not has_room(sys.stderr):
            return
        print(_CONTROL.sub("\ufffd", text), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.say(text)

    def data(self, report: Mapping[str, Any]) -> None:
        self.say(report_text(report))

    def started(self, steps: int, facts: Mapping[str, Any]) -> None:
        self._steps = steps
        evaluate = facts.get("job", {}).get("train", {}).get("evaluate")
        self._every = evaluate["every"] if evaluate else None
        self.say(what_is_trained(steps, facts))

    def step(self, line: Mapping[str, Any]) -> None:
        if (said := flagged(line)) is not None:
            self.say(said, style="red")
        # Of the steps alone: an evaluation before the first one would make the estimate far too long.
        self._step_seconds.append(line["tokens"] / line["tokens_per_second"])
        now = time.monotonic()
        if line["step"] == self._steps or now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.progress(line, f"about {duration(self.seconds_left(line['step']))} left")

    def seconds_left(self, step: int) -> float:
        """An estimate: the steps that are left, and the evaluations by answers among them."""
        if not self._step_seconds:
            return 0.0
        steps = sum(self._step_seconds) / len(self._step_seconds) * (self._steps - step)
        return steps + evaluations_left(step, self._steps, self._every) * self._answer_seconds

    def progress(self, line: Mapping[str, Any], left: str) -> None:
        """Show how far the training is, every ten seconds and at its end."""
        self.say(f"step {line['step']}/{self._steps}  {'  '.join(figures(line))}  {left}")

    def evaluated(self, line: Mapping[str, Any]) -> None:
        before = " (before this training)" if line["step"] == 0 else ""
        self.say(
            f"step {line['step']}: validation loss {line['valid_loss']:.3f}, "
            f"perplexity {line['valid_perplexity']:,.1f}{before}",
            style="cyan",
        )

    def examined(self, line: Mapping[str, Any]) -> None:
        self._answer_seconds = line["answer_seconds"]
        self.say(examined_text(line), style="cyan")

    def sampled(self, line: Mapping[str, Any]) -> None:
        prompt, answer = one_line(line["prompt"].rpartition("\n")[2]), one_line(line["answer"])
        self.say(f"step {line['step']}: {prompt} → {answer}")

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.say(how_it_ended(summary), style="bold")


def report_text(report: Mapping[str, Any]) -> str:
    """The data report as a table of plain text, and the first rows that are cut or left out."""
    page = Console(file=io.StringIO(), width=100, markup=False, emoji=False, highlight=False)
    with page.capture() as captured:
        page.print(report_table(dict(report)))
    lines = [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]
    return "\n".join([*lines, *(f"  {line}" for line in named_rows(dict(report)))])


def what_is_trained(steps: int, facts: Mapping[str, Any]) -> str:
    """`Training 4,884,480 of 139,400,064 parameters (3.5 %), 60 steps.`"""
    share = 100 * facts["trainable"] / facts["parameters"]
    return (
        f"Training {facts['trainable']:,} of {facts['parameters']:,} parameters ({share:.3g} %), "
        f"{counted(steps, 'step')}."
    )


def flagged(line: Mapping[str, Any]) -> str | None:
    """What is wrong with a step, in a sentence; None where nothing is."""
    if line.get("skipped"):
        return f"step {line['step']}: the loss or gradient isn't finite; this step changed nothing"
    if "spike" in line:
        return (
            f"step {line['step']}: the loss jumped to {line['loss']:.3f}, {line['spike']:.1f} standard "
            f"deviations above the steps before; its worst rows: {', '.join(line['spike_rows'])}"
        )
    return None


def figures(line: Mapping[str, Any]) -> tuple[str, str, str]:
    """Loss, learning rate and speed of a step."""
    return (
        f"loss {line['loss']:.3f}",
        f"lr {line['learning_rate']:.1e}",
        f"{line['tokens_per_second']:,.0f} tok/s",
    )


def evaluations_left(step: int, steps: int, every: int | None) -> int:
    """Evaluations by answers after this step, its own included: those at multiples, and the last one."""
    if every is None or step > steps:
        return 0
    first = -(-step // every) if every else 0
    return (steps - 1) // every - first + 2 if every and step < steps else 1


def examined_text(line: Mapping[str, Any]) -> str:
    """`step 200: f1_char 0.412, rouge_l 0.380 (50 answers in 12 s)`"""
    shown = ", ".join(f"{name} {line[name]:.3f}" for name in line["metrics"])
    empty = f", {line['empty']} empty" if line.get("empty") else ""
    before = ", before this training" if line["step"] == 0 else ""
    took = duration(line["answer_seconds"])
    return f"step {line['step']}: {shown} ({counted(line['n'], 'answer')} in {took}{empty}{before})"


def spoken(figure: str) -> str:
    """How a figure that chooses the best step is called in sentences."""
    return "validation loss" if figure == VALID_LOSS else figure


def how_it_ended(summary: Mapping[str, Any]) -> str:
    """`Done in 6 min 2 s: 60 steps; best validation loss 2.681 at step 50.`"""
    best = ""
    if summary["best_value"] is not None:
        name = spoken(summary["by"])
        best = f"; best {name} {summary['best_value']:.3f} at step {summary['best_step']}"
    return f"Done in {duration(summary['seconds'])}: {counted(summary['step'], 'step')}{best}."


def one_line(text: str, limit: int = 160) -> str:
    """A text on one line, cut with an ellipsis."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
