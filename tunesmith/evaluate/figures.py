"""A metric's figure over rows, and the difference of two models': the right interval and test for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from tunesmith.evaluate.clusters import by_document, clustered_mean, clustered_paired
from tunesmith.evaluate.corpus import Rows, corpus_interval, corpus_paired
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.statistics import Interval, Paired, holm, mean_interval, paired, verdict


def settled(metrics: Sequence[Metric], sides: Sequence[Sequence[RowResult]]) -> list[Metric]:
    """The metrics with what only their scores of all rows and models tell: that those of one without bounds
    are all 0 or 1, or between which ends they lie.
    """
    return [metric if metric.top is not None else _settled(metric, sides) for metric in metrics]


def value(metric: Metric, rows: Sequence[RowResult]) -> float:
    """The figure of these rows alone, without its interval."""
    if metric.combine is not None:
        return metric.combine([sum(counts) for counts in zip(*_counts(metric, rows, None), strict=True)])
    return sum(row.scores[metric.name] for row in rows) / len(rows)


def figure(metric: Metric, rows: Sequence[RowResult]) -> Interval:
    """The figure of these rows with its interval; over documents where the rows name theirs."""
    documents = documents_of(rows)
    if metric.combine is not None:
        return corpus_interval(_counts(metric, rows, documents), metric.combine, top=metric.top or 1.0)
    scores = [row.scores[metric.name] for row in rows]
    if documents is not None:
        found = clustered_mean(scores, documents, top=metric.top, seen=metric.seen)
    else:
        found = mean_interval(scores, binary=metric.binary, top=metric.top, seen=metric.seen)
    return found if metric.least is None else replace(found, low=max(metric.least, found.low))


def difference(metric: Metric, a: Sequence[RowResult], b: Sequence[RowResult]) -> Paired:
    """B against A on the same rows; wins are rows on which B is better (higher where neither is)."""
    documents = documents_of(b)
    scores_a, scores_b = ([row.scores[metric.name] for row in rows] for rows in (a, b))
    if metric.combine is not None:
        result = corpus_paired(
            _counts(metric, a, documents),
            _counts(metric, b, documents),
            metric.combine,
            top=metric.top or 1.0,
            scores=(scores_a, scores_b),
        )
    elif documents is not None:
        result = clustered_paired(scores_a, scores_b, documents, top=metric.top, seen=metric.seen)
    else:
        result = paired(scores_a, scores_b, binary=metric.binary, top=metric.top, seen=metric.seen)
    if metric.better == "lower":
        return replace(result, wins=result.losses, losses=result.wins)
    return result


def corrected(results: Sequence[Sequence[Paired]]) -> list[list[float]]:
    """p values of [model][metric], raised by Holm within each of two families of tests: those of the first
    metric, which is the primary one, a test for each model; and those of all other metrics of all models.
    """
    p_values = [[1.0 if one.p_value is None else one.p_value for one in paired] for paired in results]
    primary = iter(holm([p for of_model in p_values for p in of_model[:1]]))
    others = iter(holm([p for of_model in p_values for p in of_model[1:]]))
    return [[*islice(primary, len(one[:1])), *islice(others, len(one[1:]))] for one in p_values]


def verdicts(
    metrics: Sequence[Metric],
    results: Sequence[Paired],
    rows: Sequence[RowResult],
    p_values: Sequence[float],
) -> list[str]:
    """The verdict on each metric's difference, by its interval and its p value out of `corrected`."""
    documents = documents_of(rows)
    return [
        verdict(
            replace(one, p_value=p_value),
            len(rows),
            lower_is_better=metric.better == "lower",
            neutral=metric.better == "neither",
            documents=None if documents is None else len(set(documents)),
        )
        for metric, one, p_value in zip(metrics, results, p_values, strict=True)
    ]


def documents_of(rows: Sequence[RowResult]) -> list[str] | None:
    """The document of each row; None where rows don't say it, or each has its own."""
    documents = [row.document for row in rows]
    return documents if all(documents) and len(set(documents)) < len(documents) else None


def losses_of(rows: Sequence[RowResult]) -> list[RowLoss]:
    """The losses of rows for intervals and tests: where rows name their documents, the sums of each."""
    losses = [row.loss for row in rows if row.loss is not None]
    documents = documents_of(rows)
    if documents is None or len(losses) < len(rows):
        return losses
    sums = by_document([(loss.nll_sum, loss.tokens, loss.bytes) for loss in losses], documents)
    return [RowLoss(nll, int(tokens), int(size)) for nll, tokens, size in sums.tolist()]


def _settled(metric: Metric, sides: Sequence[Sequence[RowResult]]) -> Metric:
    scores = {row.scores[metric.name] for rows in sides for row in rows}
    if not scores:
        return metric
    if metric.least is None and scores <= {0.0, 1.0}:
        return replace(metric, binary=True, least=0.0, top=1.0)
    return replace(metric, seen=(min(scores), max(scores)))


def _counts(metric: Metric, rows: Sequence[RowResult], documents: Sequence[str] | None) -> Rows:
    assert metric.counts is not None
    counts = [metric.counts(row.completion.text, row.references) for row in rows]
    return counts if documents is None else by_document(counts, documents).tolist()
