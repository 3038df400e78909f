"""Whether verdicts keep what they promise: few false ones, and the power at the number of rows named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.evaluate import corpus
from tunesmith.evaluate.clusters import clustered_mean
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.corpus import corpus_interval, corpus_paired
from tunesmith.evaluate.metrics import METRICS, Metric, resolve
from tunesmith.evaluate.perplexity import RowLoss, total
from tunesmith.evaluate.predicted import Predictions
from tunesmith.evaluate.row import RowResult
from tunesmith.evaluate.statistics import Interval, Paired, holm, mean_interval, paired, rows_needed, verdict
from tunesmith.records import Completion, Conversation, Message, Origin

pytestmark = pytest.mark.usefixtures("few_questions")

Floats = np.ndarray
Draw = Callable[[np.random.Generator, int], tuple[Floats, Floats, bool]]


def scores(shift: float) -> Draw:
    """F1-like scores of A and B that share a row's difficulty; B's are higher by `shift` on average."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Floats, Floats, bool]:
        hard = generator.beta(2, 3, n)
        a, b = (np.clip(hard + generator.normal(0, 0.15, n), 0, 1) for _ in range(2))
        return a, np.clip(b + shift, 0, 1), False

    return draw


def hits(p: float, q: float) -> Draw:
    """0/1 scores: B alone is right on a share p of rows, A alone on q, both on 0.3."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Floats, Floats, bool]:
        kind = generator.choice(4, size=n, p=[p, q, 0.3, 0.7 - p - q])
        return ((kind == 1) | (kind == 2)).astype(float), ((kind == 0) | (kind == 2)).astype(float), True

    return draw


class Compared:
    """What `compare` says of scores: a real comparison, whose rows are replaced draw after draw."""

    def __init__(self, folder: Path) -> None:
        row = Conversation((Message("user", "問"),), Origin("rows", 1, 0), references=("答",))
        sides = [Predictions(name, {row.key: Completion("答", "stop", 0, 0)}) for name in "AB"]
        self.comparison = compare(*sides, [row], [METRICS["exact_match"]], output=folder / "p.jsonl")

    def says(self, a: Floats, b: Floats, metric: Metric, documents: Sequence[str] = ()) -> dict[str, Any]:
        """Its figures of a metric whose scores of the rows these are."""
        for side, scores in ((self.comparison.a, a), (self.comparison.b, b)):
            side.metrics, side.loss = (metric,), None
            side.rows = [
                RowResult(str(i), "問", ("答",), Completion("答", "stop", 0, 0), {metric.name: float(score)},
                          document=documents[i] if len(documents) else "")
                for i, score in enumerate(scores)
            ]  # fmt: skip
        found: dict[str, Any] = self.comparison.to_json()["metrics"][metric.name]
        return found

    def says_of_losses(
        self, a: Floats, b: Floats, tokens: Sequence[int], documents: Sequence[str] = ()
    ) -> str:
        """Its verdict on the losses of rows with so many label tokens."""
        for side, losses in ((self.comparison.a, a), (self.comparison.b, b)):
            of_rows = [RowLoss(float(nll), int(n), int(n)) for nll, n in zip(losses, tokens, strict=True)]
            answer = Completion("答", "stop", 0, 0)
            side.metrics = ()
            names = documents or [""] * len(of_rows)
            side.rows = [
                RowResult("0", "問", ("答",), answer, {}, loss, document=name)
                for loss, name in zip(of_rows, names, strict=True)
            ]
            side.loss = total(of_rows)
        return str(self.comparison.to_json()["loss"]["verdict"])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return Compared(tmp_path_factory.mktemp("compared"))


def drawn(draw: Draw, n: int, seed: int) -> tuple[Floats, Floats, Metric]:
    a, b, binary = draw(np.random.default_rng(seed), n)
    return a, b, METRICS["exact_match" if binary else "f1_char"]


@pytest.mark.parametrize(("draw", "n"), [(scores(0), 40), (scores(0), 12), (hits(0.15, 0.15), 60)])
def test_at_most_7_percent_of_equal_models_are_called_different(
    compared: Compared, draw: Draw, n: int
) -> None:
    verdicts = [compared.says(*drawn(draw, n, seed))["verdict"] for seed in range(200)]
    assert sum(not word.startswith("cannot tell") for word in verdicts) <= 14


def test_at_most_7_percent_of_equal_models_have_different_losses(compared: Compared) -> None:
    def judge(seed: int) -> str:
        generator = np.random.default_rng([3, seed])  # of 4,000 such draws 5.1 % are called different
        tokens = generator.integers(5, 60, 40)
        hard = generator.gamma(4, 0.5, 40)  # nats a token, which both find in a row
        a, b = (tokens * np.maximum(0.01, hard + generator.normal(0, 0.2, 40)) for _ in range(2))
        return compared.says_of_losses(a, b, tokens.tolist())

    assert sum(not judge(seed).startswith("cannot tell") for seed in range(200)) <= 14


def test_swapped_sides_have_mirrored_verdicts(compared: Compared) -> None:
    pairs = (("better", "worse"), ("higher", "lower"))
    mirror = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    draws = [drawn(scores(shift), 40, seed) for seed, shift in enumerate((0.2, 0.06, 0.0))]
    draws += [drawn(hits(0.5, 0.1), 40, 5), drawn(hits(0.2, 0.2), 40, 6)]
    seen = set()
    for a, b, plain in draws:
        for metric in (plain, METRICS["repetition"], METRICS["length"]):
            documents = [str(i // 2) for i in range(40)] if metric.name == "repetition" else []
            one, other = compared.says(a, b, metric, documents), compared.says(b, a, metric, documents)
            assert other["verdict"] == mirror.get(one["verdict"], one["verdict"])
            assert (other["wins"], other["losses"]) == (one["losses"], one["wins"]) or metric.name == "length"
            ends = [-other["difference"][name] for name in ("high", "low")]
            assert ends == pytest.approx([one["difference"][name] for name in ("low", "high")], abs=0.01)
            seen.add(one["verdict"].split(" with")[0].split(";")[0])
    assert seen == {"better", "worse", "higher", "cannot tell"}


@pytest.mark.parametrize(("draw", "pilot"), [(scores(0.06), 20_000), (hits(0.2, 0.1), 20_000)])
def test_the_power_at_the_promised_number_of_rows_is_within_5_points(
    compared: Compared, draw: Draw, pilot: int
) -> None:
    # So many rows that what is seen is the true difference: how many would have done?
    a, b, metric = drawn(draw, pilot, 1)
    seen = paired(a.tolist(), b.tolist(), binary=metric.binary)
    scale = np.sqrt(pilot / 30)
    half = (seen.difference.high - seen.difference.low) / 2 * scale
    value = seen.difference.value
    small = Interval(value, value - half, value + half)
    counts = (round(seen.wins * 30 / pilot), round(seen.losses * 30 / pilot))
    needed = rows_needed(Paired(small, *counts, 30 - sum(counts), None, seen.binary), 30)
    assert needed is not None
    told = sum(compared.says(*drawn(draw, needed, seed))["verdict"] == "better" for seed in range(250))
    assert 0.75 <= told / 250 <= 0.85, (needed, told)


def test_rows_of_one_document_that_count_as_independent_would_find_differences(compared: Compared) -> None:
    def shared(seed: int) -> tuple[Floats, Floats, list[str]]:
        generator = np.random.default_rng(seed)
        documents = np.repeat(np.arange(12), 8)
        effect = generator.normal(0, 0.12, 12)[documents]
        a = np.clip(0.5 + generator.normal(0, 0.05, 96), 0, 1)
        b = np.clip(0.5 + effect + generator.normal(0, 0.05, 96), 0, 1)
        return a, b, [str(name) for name in documents]

    alone = together = 0
    for seed in range(70):
        a, b, documents = shared(seed)
        f1 = METRICS["f1_char"]
        alone += compared.says(a, b, f1)["verdict"] in ("better", "worse")
        together += compared.says(a, b, f1, documents)["verdict"] in ("better", "worse")
    assert together <= 5 < 20 < alone


def test_documents_of_one_row_each_are_rows() -> None:
    values = np.random.default_rng(2).beta(2, 5, 40).tolist()
    rows, documents = mean_interval(values), clustered_mean(values, [str(i) for i in range(40)])
    assert documents.value == pytest.approx(rows.value)
    assert (documents.low, documents.high) == pytest.approx((rows.low, rows.high), abs=0.01)


def test_holm_by_hand() -> None:
    # Of 3: 0.01 * 3, then max(0.03, 0.02 * 2), then max(0.04, 0.3).
    assert holm([0.3, 0.01, 0.02]) == pytest.approx([0.3, 0.03, 0.04])
    assert holm([0.04, 0.04]) == pytest.approx([0.08, 0.08])
    assert holm([]) == []


def corpora(seed: int, n: int, better: float) -> tuple[list[str], list[str], list[str]]:
    """Labels that are right with a probability of 0.6 (A) and 0.6 + `better` (B)."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(["正面", "负面", "中性"], n)
    a, b = (np.where(generator.random(n) < p, truth, "正面") for p in (0.6, 0.6 + better))
    return truth.tolist(), a.tolist(), b.tolist()


def test_figures_of_all_rows_have_a_test_and_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "RESAMPLES", 400)
    monkeypatch.setattr("tunesmith.evaluate.statistics.RESAMPLES", 400)

    def judge(seed: int, n: int, better: float) -> str:
        truth, a, b = corpora(seed, n, better)
        metric = resolve(["classification"], [[label] for label in truth])[1]
        assert metric.counts is not None
        assert metric.combine is not None
        counts = [[metric.counts(said, [t]) for said, t in zip(side, truth, strict=True)] for side in (a, b)]
        rows = [[metric.score(said, [t], "") for said, t in zip(side, truth, strict=True)] for side in (a, b)]
        result = corpus_paired(*counts, metric.combine, top=1.0, scores=(rows[0], rows[1]))
        interval = corpus_interval(counts[1], metric.combine, top=1.0)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        return verdict(result, n)

    assert sum(judge(seed, 40, 0.0) in ("better", "worse") for seed in range(100)) <= 9
    assert sum(judge(seed, 120, 0.3) == "better" for seed in range(20)) >= 18
    assert judge(1, 4, 0.3) == "cannot tell with n = 4; at least 6 are needed"


def test_a_corpus_figure_of_few_or_equal_rows_is_not_certain() -> None:
    (metric,) = resolve(["chrf"], [["好"]])
    assert metric.counts is not None
    assert metric.combine is not None
    zeros = [metric.counts("不", ["好"])] * 15
    zero = corpus_interval(zeros, metric.combine, top=100.0)
    # Wilson at 0 of 15: up to 0.2039 of the rows may be anything.
    assert (zero.value, zero.low, zero.high) == (0.0, 0.0, pytest.approx(20.39, abs=0.01))
    assert corpus_interval(zeros[:1], metric.combine, top=100.0) == Interval(0.0, 0.0, 100.0)
    same = corpus_paired(zeros, zeros, metric.combine, top=100.0, scores=([0.0] * 15, [0.0] * 15))
    assert (same.p_value, verdict(same, 15)) == (1.0, "cannot tell with n = 15")


def test_losses_of_one_document_are_not_independent_either(compared: Compared) -> None:
    alone = together = 0
    for seed in range(70):
        generator = np.random.default_rng([7, seed])
        names = [str(at) for at in np.repeat(np.arange(12), 8)]
        tokens = generator.integers(5, 60, 96)
        effect = np.repeat(generator.normal(0, 0.2, 12), 8)
        a = tokens * 2.0
        b = tokens * (2.0 + effect + generator.normal(0, 0.1, 96))
        alone += not compared.says_of_losses(a, b, tokens.tolist()).startswith("cannot tell")
        word = compared.says_of_losses(a, b, tokens.tolist(), names)
        together += not word.startswith("cannot tell")
    assert together <= 5 < 20 < alone
    few = compared.says_of_losses(a, b, tokens.tolist(), [str(at // 20) for at in range(96)])
    assert few == "cannot tell with n = 96 from 5 documents; at least 6 documents are needed"
