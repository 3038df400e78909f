"""Rows without an answer, because a call failed: counted, named, and left out of every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import GenerateError
from tunesmith.evaluate.perplexity import total
from tunesmith.infer.predictions import answered
from tunesmith.records import Completion, Conversation
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.evaluate.run import Evaluation

NAMED = 5


@dataclass(frozen=True, slots=True)
class Failed:
    """A row whose call failed, and why."""

    id: str
    prompt: str
    references: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt": self.prompt,
            "prediction": "",
            "references": list(self.references),
            "scores": {},
            "finish": "error",
            "error": self.why,
        }


def check_some(name: str, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise GenerateError where no row at all was answered."""
    if rows and not answered(rows):
        reasons = dict.fromkeys(str(row.get("error", "")) for row in rows.values())
        raise GenerateError(
            f"{name} answered none of {counted(len(rows), 'row')}.",
            details=list(reasons),
            fix="Ask the model again."
            if Path(name).suffix in (".jsonl", ".json")
            else "Check the URL and the model's name if these words aren't an OpenAI-compatible server's. "
            "The same command asks again.",
        )


def failed_rows(rows: Sequence[Conversation], answers: Sequence[Completion]) -> dict[int, Failed]:
    """The rows without an answer, by their place."""
    return {
        at: Failed(row.key, row.question, row.references, answer.error)
        for at, (row, answer) in enumerate(zip(rows, answers, strict=True))
        if answer.finish == "error"
    }


def failure_notes(result: Evaluation) -> list[str]:
    """A sentence on the rows that are left out, with the first of them."""
    if not result.failed:
        return []
    failed = list(result.failed.values())
    named = "; ".join(f"{row.id}: {row.why}" for row in failed[:NAMED])
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    return [
        f"{result.model} failed on {counted(len(failed), 'row')} of {len(failed) + result.n}, left out of "
        f"all figures: {named}{more}."
    ]


def answered_by_all(results: Sequence[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    """The evaluations with the rows that all of them answered, in pairs as before, and what is left out.

    All figures are of the rows that are kept, but for the costs, which are of all that a side answered.

    Raises GenerateError where no row is left.
    """
    notes = [note for result in results for note in failure_notes(result)]
    left_out = {at for result in results for at in result.failed}
    if not left_out:
        return list(results), notes
    count = results[0].n + len(results[0].failed)
    if len(left_out) == count:
        raise GenerateError(
            "No row was answered by all.", details=notes, fix="The same command asks endpoints again."
        )
    kept = []
    for result in results:
        places = [at for at in range(count) if at not in result.failed]
        rows = [row for at, row in zip(places, result.rows, strict=True) if at not in left_out]
        apart = [row for at, row in zip(places, result.rows, strict=True) if at in left_out]
        losses = [row.loss for row in rows if row.loss is not None]
        loss = total(losses) if losses else None
        kept.append(replace(result, rows=rows, loss=loss, apart=[*result.apart, *apart]))
    return kept, [*notes, f"Compared are the {count - len(left_out)} rows that all answered."]
