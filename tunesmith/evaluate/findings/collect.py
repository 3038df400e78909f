"""All that `result["findings"]` holds, as JSON: what changed, was copied, forgotten, invented, and why.

    {"a": name or null, "b": name, "metric": what rows are ranked by,
     "changed":    {"better", "worse", "same", "most_better", "most_worse", "worst": [row]}         changed.py
     "forgetting": {"n", "a", "b": right answers, "difference": {value, low, high}, "wins", "losses", "ties",
                    "p_value", "verdict", "by": {language: {n, a, b}}, "lost", "gained": [row], "seconds"}
     "training":   {"rows", "gone"} or {"error"}
     "copied":     {"n", "least", "a", "b": answers with a copy, "difference", …, "verdict", "rows": [copy]}
     "coverage":   {"n", "held", "by_letter", "wrong", "wrong_not_held", "question", "truth": mean covers,
                    and, of 6 independent rows or more on either side,
                    "scores": {"held", "not_held": interval}, "difference", "p_value", "verdict"}
     "invention":  {"wrong": rows that are, "side", "limit", "most", "n": those compared,
                    "own_likelier", "truth_likelier", "per_token", "not_held", "held_own": counts,
                    "rows": [row]},
     "advice":     [names of what to change]}

What can't be had is left out: `forgetting` where it wasn't asked, all from `training` on without a run, and
where nothing was answered, as with `choices` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.evaluate.clusters import clustered_paired
from tunesmith.evaluate.figures import documents_of
from tunesmith.evaluate.findings.changed import changed, ranking
from tunesmith.evaluate.findings.copied import LEAST, Copy, copies
from tunesmith.evaluate.findings.coverage import HELD, Cover, apart, covers
from tunesmith.evaluate.findings.general import GENERAL, are_general
from tunesmith.evaluate.findings.probes import Probes
from tunesmith.evaluate.findings.training_rows import TrainingRow, read_training_rows
from tunesmith.evaluate.findings.wrong import MOST, could_be_known, wrong
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.run import Evaluation
from tunesmith.evaluate.statistics import FEWEST, Paired, paired, verdict
from tunesmith.records import Conversation
from tunesmith.rundir import RunDir

NAMED = 20
"""Rows of a list in the JSON."""


def collect(
    sides: Sequence[Evaluation],
    conversations: Sequence[Conversation],
    run: RunDir | None,
    probes: Probes | None,
) -> dict[str, Any]:
    """The findings on the last of `sides`, against the first where there are two or more.

    `run` is what the last side was trained by, if it is a run. Empty where no metric has a direction.
    Rows that a side failed on are left out, as they are of the sides' own rows.
    """
    left_out = {at for side in sides for at in side.failed}
    places = [at for at in range(len(conversations)) if at not in left_out]
    conversations = [conversations[at] for at in places]
    losses = {} if probes is None else probes.own
    own = {at: losses[place] for at, place in enumerate(places) if place in losses}
    a, b = (sides[0] if len(sides) > 1 else None), sides[-1]
    metric = ranking(b.metrics)
    if metric is None:
        return {}
    found: dict[str, Any] = {
        "a": None if a is None else a.model,
        "b": b.model,
        "metric": metric.name,
        "changed": changed(metric, None if a is None else a.rows, b.rows),
    }
    if probes is not None and (general := probes.general_pair()) is not None:
        found["forgetting"] = _forgetting(*general)
    answered = all(row.answered for row in b.rows)
    if run is not None and answered and not are_general(conversations):
        found |= _of_training(metric, a, b, conversations, run, own)
    found["advice"] = _advice(found)
    return found


def _forgetting(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    name = GENERAL.name
    result = paired(a.scores(name), b.scores(name), binary=True)
    languages: dict[str, dict[str, int]] = {}
    lost: list[dict[str, str]] = []
    gained: list[dict[str, str]] = []
    for before, after in zip(a.rows, b.rows, strict=True):
        right = before.scores[name], after.scores[name]
        # zh-01, en-01: the id begins with the language.
        counts = languages.setdefault(after.id.partition("-")[0], {"n": 0, "a": 0, "b": 0})
        counts["n"] += 1
        counts["a"] += int(right[0])
        counts["b"] += int(right[1])
        if right[0] != right[1]:
            row = {"id": after.id, "question": after.prompt, "answer": after.references[0]}
            told = {**row, "a": before.completion.text, "b": after.completion.text}
            (lost if right[0] else gained).append(told)
    seconds = [each.seconds for each in (a, b) if each.seconds is not None]
    return {
        **_told(result, b.n, lower_is_better=False),
        "a": int(sum(a.scores(name))),
        "b": int(sum(b.scores(name))),
        "by": languages,
        "lost": lost,
        "gained": gained,
        "seconds": round(sum(seconds), 1),
    }


def _of_training(
    metric: Metric,
    a: Evaluation | None,
    b: Evaluation,
    conversations: Sequence[Conversation],
    run: RunDir,
    own: Mapping[int, RowLoss],
) -> dict[str, Any]:
    try:
        training = read_training_rows(run)
    except TunesmithError as error:
        return {"training": {"error": error.what}}
    found: dict[str, Any] = {"training": {"rows": training.rows, "gone": training.gone}}
    if not training.replies:
        return found
    found["copied"] = _copied(a, b, training.replies)
    asked = [row.last_asked for row in conversations]
    questions = covers(asked, [row.question for row in training.replies])
    truths = covers([row.truth for row in b.rows], [row.answer for row in training.replies])
    found["coverage"] = _coverage(metric, b.rows, questions, truths)
    if own:
        found["invention"] = _invention(metric, b.rows, own, questions, truths, training.replies)
    return found


def _copied(a: Evaluation | None, b: Evaluation, training: Sequence[TrainingRow]) -> dict[str, Any]:
    found = copies(b.rows, training)
    told: dict[str, Any] = {"n": b.n, "least": LEAST, "a": None, "b": sum(copy is not None for copy in found)}
    if a is not None:
        floor = [float(copy is not None) for copy in copies(a.rows, training)]
        result, documents = _paired(floor, [float(copy is not None) for copy in found], b.rows)
        told |= {**_told(result, b.n, lower_is_better=True, documents=documents), "a": int(sum(floor))}
    longest = sorted(
        ((copy, row) for copy, row in zip(found, b.rows, strict=True) if copy is not None),
        key=lambda pair: -pair[0].length,
    )
    return {**told, "rows": [_copy(copy, row) for copy, row in longest[:NAMED]]}


def _paired(a: Sequence[float], b: Sequence[float], rows: Sequence[RowResult]) -> tuple[Paired, int | None]:
    """B's shares against A's, over documents where rows name theirs, and how many documents there are."""
    documents = documents_of(rows)
    if documents is None:
        return paired(a, b, binary=True), None
    return clustered_paired(a, b, documents), len(set(documents))


def _copy(copy: Copy, row: RowResult) -> dict[str, Any]:
    shown = {"length": copy.length, "text": copy.text, "cover": round(copy.cover, 3), "origin": copy.origin}
    return {"id": row.id, "prompt": row.prompt, **shown, "b": row.completion.text}


def _coverage(
    metric: Metric,
    rows: Sequence[RowResult],
    questions: Sequence[Cover | None],
    truths: Sequence[Cover | None],
) -> dict[str, Any]:
    held = [_share(truth) >= HELD for truth in truths]
    scores = [row.scores[metric.name] for row in rows]
    inside = [score for score, here in zip(scores, held, strict=True) if here]
    outside = [score for score, here in zip(scores, held, strict=True) if not here]
    at_fault = [at for at in wrong(metric, rows).rows if could_be_known(rows[at])]
    told: dict[str, Any] = {
        "n": len(rows),
        "held": len(inside),
        "by_letter": sum(row.named_by_letter for row in rows),
        "wrong": len(at_fault),
        "wrong_not_held": sum(not held[at] for at in at_fault),
        "question": mean(map(_share, questions)),
        "truth": mean(map(_share, truths)),
    }
    # Rows of one document aren't independent, and can't be dealt out one by one.
    alone = documents_of(rows) is None
    between = apart(outside, inside, binary=metric.binary, top=metric.top) if alone else None
    if between is not None:
        less = metric.better == "lower"
        told |= {
            "scores": {"held": between.second.to_json(), "not_held": between.first.to_json()},
            "difference": between.difference.to_json(),
            "p_value": between.p_value,
            "verdict": ("better" if (between.difference.value > 0) != less else "worse")
            if between.told
            else "cannot tell",
        }
    return told


def _invention(
    metric: Metric,
    rows: Sequence[RowResult],
    own: Mapping[int, RowLoss],
    questions: Sequence[Cover | None],
    truths: Sequence[Cover | None],
    training: Sequence[TrainingRow],
) -> dict[str, Any]:
    told: list[dict[str, Any]] = []
    looked_at = wrong(metric, rows)
    for at in looked_at.worst:
        row, said = rows[at], own.get(at)
        if said is None or row.loss is None or not said.tokens or not row.loss.tokens:
            continue
        nearest = questions[at]
        told.append(
            {
                "id": row.id,
                "prompt": row.prompt,
                "reference": row.shown_references[0],
                "b": row.completion.text,
                "score": row.scores[metric.name],
                "truth_nll": row.loss.nll_sum,
                "truth_tokens": row.loss.tokens,
                "own_nll": said.nll_sum,
                "own_tokens": said.tokens,
                "question_cover": _share(questions[at]),
                "truth_cover": _share(truths[at]),
                "nearest": None
                if nearest is None
                else {"origin": training[nearest.row].origin, "question": training[nearest.row].question,
                      "answer": training[nearest.row].answer},
            }
        )  # fmt: skip
    # Whole texts, ends included: the probability of a text is what choosing tokens looks for.
    own_likelier = [row for row in told if row["own_nll"] < row["truth_nll"]]
    truth_likelier = [row for row in told if row["truth_nll"] < row["own_nll"]]
    return {
        "wrong": len(looked_at.rows),
        "side": looked_at.side,
        "limit": looked_at.limit,
        "most": MOST,
        "n": len(told),
        "own_likelier": len(own_likelier),
        "truth_likelier": len(truth_likelier),
        "per_token": sum(map(_likelier_per_token, truth_likelier)),
        "not_held": sum(row["truth_cover"] < HELD for row in told),
        "held_own": sum(row["truth_cover"] >= HELD for row in own_likelier),
        "rows": told[:NAMED],
    }


def _likelier_per_token(row: Mapping[str, Any]) -> bool:
    """Whether the true answer is so per token too: then it isn't for being the shorter one."""
    return bool(row["truth_nll"] / row["truth_tokens"] < row["own_nll"] / row["own_tokens"])


def _advice(found: Mapping[str, Any]) -> list[str]:
    """What to change, the most telling first; of fewer than 6 wrong rows nothing is concluded."""
    advice = []
    invention, coverage = found.get("invention"), found.get("coverage")
    missing = False
    if coverage:
        missing = coverage["wrong_not_held"] >= coverage["wrong"] / 2
        if missing and coverage["wrong"] >= FEWEST:
            advice.append("not_in_data")
    if invention and (n := invention["n"]) >= FEWEST:
        if not missing and invention["held_own"] >= n / 2:
            advice.append("not_learnt")
        if invention["per_token"] >= n / 2:
            advice.append("decoding")
    copied = found.get("copied")
    if copied and (
        copied.get("verdict") == "worse" or (copied["a"] is None and copied["b"] > copied["n"] / 4)
    ):
        advice.append("copies")
    if found.get("forgetting", {}).get("verdict") == "worse":
        advice.append("forgets")
    return advice


def _told(result: Paired, n: int, *, lower_is_better: bool, documents: int | None = None) -> dict[str, Any]:
    told = verdict(result, n, lower_is_better=lower_is_better, documents=documents)
    return {"n": n, **result.to_json(), "verdict": told}


def _share(cover: Cover | None) -> float:
    return 0.0 if cover is None else cover.share
