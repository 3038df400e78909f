"""Answers graded by a rubric: a mean for each criterion and for all together, with intervals.

With two sides the answers of a row are paired, as in `compare`. A row of which a call failed or stayed
malformed, on either side, is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.evaluate.judge.asking import Outcome
from tunesmith.evaluate.judge.prompts import Language, grade_prompt
from tunesmith.evaluate.judge.replies import HIGHEST, LOWEST
from tunesmith.evaluate.judge.rubric import Rubric
from tunesmith.evaluate.statistics import Interval, holm, mean_interval, paired, verdict

OVERALL = "overall"
TOP = float(HIGHEST - LOWEST)  # statistics work on scores from 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with the answers of one side or two."""

    id: str
    prompt: str
    texts: tuple[str, ...]
    references: tuple[str, ...] = ()


def prompts_of(
    answers: Sequence[Answer], rubric: Rubric, language: Language, *, references: bool
) -> list[str]:
    """A prompt an answer: all sides of a row, then the next row."""
    return [
        grade_prompt(
            language, rubric.lines(), rubric.form(), row.prompt, text, row.references if references else ()
        )
        for row in answers
        for text in row.texts
    ]


def rows_of(answers: Sequence[Answer], outcomes: Sequence[Outcome], rubric: Rubric) -> list[dict[str, Any]]:
    """A row a question, as the result's JSONL has it: the scores of each side, or None with the reason."""
    rows, at = [], 0
    for answer in answers:
        mine = outcomes[at : at + len(answer.texts)]
        at += len(answer.texts)
        without = next((outcome for outcome in mine if outcome.verdict is None), None)
        sides = "ab"[: len(mine)]
        rows.append(
            {
                "id": answer.id,
                "prompt": answer.prompt,
                **dict(zip(sides, answer.texts, strict=True)),
                "references": list(answer.references),
                "scores": None
                if without
                else {s: _scores(o, rubric) for s, o in zip(sides, mine, strict=True)},
                **({"excluded": without.why, "problem": without.problem} if without else {}),
                "calls": [
                    {"side": side, **call}
                    for side, outcome in zip(sides, mine, strict=True)
                    for call in outcome.calls
                ],
            }
        )
    return rows


def figures(rows: Sequence[Mapping[str, Any]], rubric: Rubric, sides: str) -> dict[str, Any]:
    """{"n", "criteria": {name: {weight, a: {value, low, high}, b, difference, verdict}}}, overall first."""
    graded = [row["scores"] for row in rows if row["scores"] is not None]
    names = [OVERALL, *rubric.names]
    weights = {one.name: one.weight for one in rubric.criteria}
    found: dict[str, Any] = {
        name: {
            **({"weight": weights[name]} if name in weights else {}),
            **{side: _mean([scores[side][name] for scores in graded]) for side in sides},
        }
        for name in names
        if graded
    }
    if len(sides) == 2 and graded:
        results = [
            paired([s["a"][name] - LOWEST for s in graded], [s["b"][name] - LOWEST for s in graded], top=TOP)
            for name in names
        ]
        # The overall score is the primary figure; of several criteria one differs by chance.
        raised = holm([1.0 if one.p_value is None else one.p_value for one in results[1:]])
        tests = [results[0].p_value, *raised]
        for name, result, p_value in zip(names, results, tests, strict=True):
            told = verdict(replace(result, p_value=p_value), len(graded))
            found[name] |= {**result.to_json(), "verdict": told}
    return {"n": len(graded), "criteria": found}


def _scores(outcome: Outcome, rubric: Rubric) -> dict[str, float]:
    assert outcome.verdict is not None
    scores = {name: outcome.verdict[name]["score"] for name in rubric.names}
    return {OVERALL: rubric.overall(scores), **scores}


def _mean(scores: Sequence[float]) -> dict[str, float]:
    found = mean_interval([score - LOWEST for score in scores], top=TOP)
    return Interval(found.value + LOWEST, found.low + LOWEST, found.high + LOWEST).to_json()
