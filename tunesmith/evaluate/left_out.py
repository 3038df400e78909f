"""Rows without an answer are counted, named, and left out of every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.errors import GenerateError
from tunesmith.evaluate.perplexity import total
from tunesmith.evaluate.run import Evaluation
from tunesmith.words import counted

NAMED = 5


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
