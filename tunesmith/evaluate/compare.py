"""Measure models on the same rows, and say what the differences from the first one are worth.

Typically A is the base and B the tuned model, or B, C, … are several. Every row is answered by all, so
differences are paired: what one row makes hard for everybody doesn't blur the result.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch

from tunesmith.errors import UsageError
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.cost import Meter
from tunesmith.evaluate.figures import settled
from tunesmith.evaluate.left_out import answered_by_all
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.pairing import differences, unlike
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.run import AGAIN, Evaluation, measured
from tunesmith.records import Completer, Conversation
from tunesmith.worklog import Claim, claim, write_lines

KEYS = ascii_lowercase
"""What the sides are called in lines and worklogs: a, b, c, …; people read A, B, C."""
Side = Completer | Callable[[], Completer]
"""A model, or a function that loads it when its turn comes, so that two large ones needn't fit at once."""
Also = Callable[[int, Completer, Evaluation], None]
"""Called in a side's turn, when it has answered all rows: its number, the model, what was measured."""


def part(at: int) -> str:
    """What tells the worklog of side number `at` from the others of an output."""
    return f".{KEYS[at]}"


@dataclass
class Comparison:
    """Evaluations of the same rows. Differences are from the first side; verdicts are said of the others.

    `left_out` says which rows weren't answered by all.
    """

    sides: list[Evaluation]
    output: Path
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def a(self) -> Evaluation:
        """The reference."""
        return self.sides[0]

    @property
    def b(self) -> Evaluation:
        """The first of the others."""
        return self.sides[1]

    @property
    def n(self) -> int:
        return self.a.n

    def rows(self) -> list[tuple[RowResult, ...]]:
        """The results of each row, one of each side, in the rows' order."""
        return list(zip(*(side.rows for side in self.sides), strict=True))

    def lines(self) -> list[dict[str, Any]]:
        """What stands in `output`: a line a row, with everybody's answers."""
        return [_line(row) for row in self.rows()]

    def to_json(self) -> dict[str, Any]:
        """The figures; of two sides

        {"kind", "n", "metrics": {name: {a, b, difference: {value, low, high}, wins, losses, ties, p_value,
        verdict}}, "primary", "loss": {a, b, difference, verdict}, "groups", "notes": […], "predictions",
        "a": evaluation, "b": evaluation}

        and of more {"kind", "n", "primary", "notes", "predictions", "sides": [evaluation, …], "comparisons":
        [{"metrics", "loss", "groups", "notes"}, …]}: one with the first side for each other one, which
        `results.pairs` makes into the form of two. There metrics and loss have their `p_corrected`, too.
        """
        evaluations = [side.to_json() for side in self.sides]
        found = differences(self.sides, evaluations)
        metrics = self.a.metrics
        common = {
            "kind": "comparison",
            "n": self.n,
            **({"primary": metrics[0].name} if metrics else {}),
            "notes": [*self.left_out, *self.notes],
            "predictions": str(self.output),
        }
        if len(self.sides) == 2:
            return {**common, **found[0], "a": evaluations[0], "b": evaluations[1]}
        for one, side, key in zip(found, self.sides[1:], KEYS[1:], strict=False):
            one["notes"] = [*self.left_out, *unlike(self.a, side, names=("A", key.upper()))]
        return {**common, "sides": evaluations, "comparisons": found}


def compare(
    a: Side,
    b: Side,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    output: Path,
    more: Sequence[Side] = (),
    watch: Watch | None = None,
    note: Note = lambda _: None,
) -> Comparison:
    """Measure A, then B and `more`, on the same conversations; all answers of a row go to `output` (JSONL).

    A line has id, prompt, references, and under `a`, `b`, … what `evaluate` writes of an answer; of two sides
    also `prediction` (B's). While it runs, answers are in OUTPUT.a.partial, OUTPUT.b.partial and so on.
    """
    with claim(output, AGAIN) as held:
        comparison = compared(held, (a, b, *more), conversations, metrics, watch=watch, note=note)
        write_lines(output, comparison.lines())
    return comparison


def compared(
    held: Claim,
    sides: Sequence[Side],
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    *,
    order: Sequence[int] | None = None,
    watch: Watch | None = None,
    note: Note = lambda _: None,
    also: Also = lambda *_: None,
) -> Comparison:
    """`compare`, without writing the output, which is held already; `order` is that of their turns."""
    done = {
        at: _measured(held, sides[at], at, conversations, metrics, watch, note, also)
        for at in order or range(len(sides))
    }
    results, left_out = answered_by_all([done[at] for at in range(len(sides))])
    known = tuple(settled(metrics, [result.rows for result in results]))
    results = [replace(result, metrics=known) for result in results]
    notes = [
        told
        for at, other in enumerate(results[1:], 1)
        for told in unlike(results[0], other, names=("A", KEYS[at].upper()))
    ]
    return Comparison(results, held.output, list(dict.fromkeys(notes)), left_out)


def check_count(count: int) -> None:
    """Raise UsageError for more sides than have a letter."""
    if count > len(KEYS):
        raise UsageError(f"{count} models are too many: {len(KEYS)} can be compared.", fix="Leave some out.")


def _measured(
    held: Claim,
    side: Side,
    at: int,
    conversations: Sequence[Conversation],
    metrics: Sequence[Metric],
    watch: Watch | None,
    note: Note,
    also: Also,
) -> Evaluation:
    model = side() if callable(side) else side
    meter = Meter(model, watch)
    result = measured(held, model, conversations, metrics, part=part(at), watch=meter, note=note)
    result = replace(result, facts={**result.facts, **meter.facts()})
    also(at, model, result)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def _line(row: Sequence[RowResult]) -> dict[str, Any]:
    last = row[-1]
    return {
        "id": last.id,
        "prompt": last.prompt,
        # Of several predictions none is the one: those of three and more stand under their letters only.
        **({"prediction": last.completion.text} if len(row) == 2 else {}),
        "references": list(last.references),
        **last.place_json(),
        **{KEYS[at]: result.answer_json() for at, result in enumerate(row)},
    }
