"""`judge` from names to files: answers of models, runs, endpoints or files, then a judge's verdicts on them.

    RUN/eval/<data>.judged-<digest>.json    the figures; without a run in eval/ of the working folder
    ….jsonl                                 a line a row: both answers, the verdict, every call with its reply
    ….jsonl.partial                         while it's made: the calls, each as it comes
The digest is of what was asked, so that the same command finds what an earlier one did.
"""

from __future__ import annotations

import gc
import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.disk import write_json
from tunesmith.errors import GenerateError
from tunesmith.evaluate.answerers import Note, Watch
from tunesmith.evaluate.blind.answers import Pair
from tunesmith.evaluate.judge import graded, pairs, people
from tunesmith.evaluate.judge.asked import Asked, Request
from tunesmith.evaluate.judge.asking import ask
from tunesmith.evaluate.judge.earlier import earlier_answers, earlier_calls
from tunesmith.evaluate.judge.notes import notes_on
from tunesmith.evaluate.judge.prompts import GRADE, PAIR, Language, language_of, sha256
from tunesmith.evaluate.judge.replies import pair_schema, read_pair, read_scores, scores_schema
from tunesmith.evaluate.judge.rubric import Rubric, read_rubric
from tunesmith.evaluate.report.write import renew_report
from tunesmith.evaluate.results import beside
from tunesmith.evaluate.run import ANSWERS, made_by, worklog_answers
from tunesmith.infer.answerer import Answerer, answerer
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import is_endpoint
from tunesmith.settings import build
from tunesmith.worklog import Claim, claim, write_lines

AGAIN = "The same command goes on."


@dataclass(frozen=True)
class Judged:
    """What came out, as JSON, and where it was written."""

    content: dict[str, Any]
    file: Path


@dataclass(frozen=True)
class _Row:
    """A row with the answers of all sides; `why` says why it isn't judged: "unanswered", "alike" or ""."""

    answer: graded.Answer
    why: str


def judge(
    request: Request, sampling: Sampling, *, watch: Watch | None = None, note: Note = lambda _: None
) -> Judged:
    """Have A judged, or A and B. What is wrong with the request is told before anything is asked.

    Raises UsageError, SettingsError, DataError, RunError; GenerateError where no row could be judged.
    """
    asked = Asked.of(request, sampling)
    output = asked.output
    with claim(output, AGAIN) as held:
        sides, texts = {}, []
        for side, name in zip("ab", asked.names, strict=False):
            facts, answers = _answers(held, asked, side, name, sampling, watch, note)
            sides[side] = facts
            texts.append(answers)
        rows = [_row(asked, at, [answers[at] for answers in texts]) for at in range(len(asked.ids))]
        if request.blind is not None:  # never beside a rubric
            said = [(row.answer.prompt, row.answer.texts[0], row.answer.texts[-1]) for row in rows]
            people.check_rated(request.blind, said, request.limit)
        content, lines = _judged(held, asked, rows, watch, note)
        content |= {"sides": sides, "predictions": str(output), "data": asked.data}
        for side, facts in sides.items():
            content[side] = {"model": facts["model"]}
        if request.blind is not None:
            content["people"] = people.agreement(request.blind, lines)
        content["notes"] = notes_on(content)
        write_lines(output, lines)
        file = beside(output, ".json")
        write_json(file, content)
        renew_report(file)
    return Judged(content, file)


def _answers(
    held: Claim, asked: Asked, side: str, name: str, sampling: Sampling, watch: Watch | None, note: Note
) -> tuple[dict[str, Any], list[str | None]]:
    """A side's answer to each row, None where its call failed, and what it was made by."""
    if name in asked.files:
        answered = asked.files[name]
        lines = [answered.lines[key] for key in asked.ids]
        return {"model": answered.model or name, "file": name}, [
            None if line.get("finish") == "error" else line["prediction"] for line in lines
        ]
    request = asked.request
    model = answerer(name, dtype=request.dtype, template=request.template, sampling=sampling, say=note)
    facts = {**made_by(model), "rows": asked.sha256}
    worklog, other = held.worklog(facts, len(asked.prompts), part=f".{side}")
    if other:
        note(other)
    if worklog.empty and (before := earlier_answers(held.output, side, facts, again=request.again)):
        worklog.append(ANSWERS, {at: asdict(answer) for at, answer in before.items()})
    worklog_answers(worklog, model, asked.prompts, watch)
    answers = worklog.rows(ANSWERS)
    del model
    gc.collect()
    return facts, [
        None if answers[at]["finish"] == "error" else str(answers[at]["text"])
        for at in range(len(asked.prompts))
    ]


def _row(asked: Asked, at: int, texts: Sequence[str | None]) -> _Row:
    known = tuple(text or "" for text in texts)
    why = ""
    if any(text is None for text in texts):
        why = "unanswered"
    elif asked.request.rubric is None and len({text.strip() for text in known}) == 1:
        why = "alike"  # nothing to choose: no call is spent on it
    return _Row(graded.Answer(asked.ids[at], asked.questions[at], known, asked.references[at]), why)


def _judged(
    held: Claim, asked: Asked, rows: Sequence[_Row], watch: Watch | None, note: Note
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures, and a line for each row in order."""
    request = asked.request
    todo = [row.answer for row in rows if not row.why]
    if not todo:
        raise GenerateError(
            "There is nothing to judge: every row is alike on both sides, or wasn't answered.",
            fix="Are these two different models? Sampling settings that draw differ more: temperature=0.7.",
        )
    language = request.language or language_of([text for row in todo for text in (row.prompt, *row.texts)])
    rubric = read_rubric(request.rubric, language) if request.rubric is not None else None
    model = _judge(request, rubric, note)
    words = (GRADE if rubric else PAIR)[language]
    facts: dict[str, Any] = {
        "judge": made_by(model),
        "prompt": sha256(words),
        "rubric": sha256(rubric.model_dump_json())[:16] if rubric else None,
        "language": language,
        "references": request.references,
        "rows": sha256(json.dumps([asdict(row) for row in todo]))[:16],
    }
    prompts = _prompts(todo, rubric, language, references=request.references)
    worklog, other = held.worklog(facts, len(prompts))
    if other:
        note(other)
    if worklog.empty:
        for kind, calls in earlier_calls(held.output, facts, again=request.again).items():
            if calls:
                worklog.append(kind, calls)
    if not worklog.empty:
        note(f"{model.name}: {worklog.size()} were there already.")
    outcomes = ask(
        worklog, model, prompts, read_scores(rubric.names) if rubric else read_pair, language, watch
    )
    if rubric:
        lines = graded.rows_of(todo, outcomes, rubric)
        figures = graded.figures(lines, rubric, "ab"[: len(asked.names)])
    else:
        lines = pairs.rows_of([_pair(row) for row in todo], outcomes)
        figures = pairs.figures(lines)
    if not figures["n"]:
        raise GenerateError(
            f"{model.name} judged none of {len(todo)} rows.",
            details=list(dict.fromkeys(str(line["problem"]) for line in lines)),
            fix="Take a judge that can answer in JSON; what was said stands in the file .partial.",
        )
    content = {
        "kind": "judgement",
        "mode": "rubric" if rubric else "pairs",
        "judge": {"model": model.name, **facts["judge"]},
        "language": language,
        "prompt": {"sha256": sha256(words), "text": words},
        **({"rubric": rubric.model_dump(mode="json")} if rubric else {}),
        "references": request.references and any(row.references for row in todo),
        **figures,
        "rows": len(rows),
        "left_out": _left_out(rows, lines),
        "calls": _calls(lines),
        "made_by": facts,
    }
    done = iter(lines)
    return content, [_excluded(row) if row.why else next(done) for row in rows]


def _judge(request: Request, rubric: Rubric | None, note: Note) -> Answerer:
    """The judge: greedy, and held to the form of the reply where decoding can be guided."""
    settings: dict[str, Any] = {"max_new_tokens": request.tokens}
    if not is_endpoint(request.judge) and importlib.util.find_spec("llguidance") is not None:
        settings["json_schema"] = scores_schema(rubric.names) if rubric else pair_schema()
    return answerer(request.judge, sampling=build(Sampling, settings), say=note)


def _prompts(
    rows: Sequence[graded.Answer], rubric: Rubric | None, language: Language, *, references: bool
) -> list[str]:
    if rubric is not None:
        return graded.prompts_of(rows, rubric, language, references=references)
    return pairs.prompts_of([_pair(row) for row in rows], language, references=references)


def _pair(row: graded.Answer) -> Pair:
    return Pair(row.id, row.prompt, row.texts[0], row.texts[1], row.references)


def _excluded(row: _Row) -> dict[str, Any]:
    one = row.answer
    texts = dict(zip("ab", one.texts, strict=False))
    return {"id": one.id, "prompt": one.prompt, **texts, "references": list(one.references),
            "verdict": None, "excluded": row.why, "calls": []}  # fmt: skip


def _left_out(rows: Sequence[_Row], lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rows without a verdict, by reason."""
    counts = Counter([row.why for row in rows if row.why])
    counts.update(str(line["excluded"]) for line in lines if "excluded" in line)
    return {name: counts[name] for name in ("alike", "unanswered", "failed", "malformed")}


def _calls(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    calls = [call for line in lines for call in line["calls"]]
    return {
        "n": len(calls),
        "mended": sum(bool(call["problem"]) for call in calls),
        "failed": sum(call["finish"] == "error" for call in calls),
        "prompt_tokens": sum(call["prompt_tokens"] for call in calls),
        "tokens": sum(call["tokens"] for call in calls),
        "seconds": round(sum(call["seconds"] for call in calls), 3),
    }
