"""Metrics with published rules against golden values that reference libraries gave, and their scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import MissingExtraError
from tunesmith.evaluate.metrics import METRICS, resolve, translation
from tunesmith.evaluate.metrics.overlap import lcs_length, rouge_tokens
from tunesmith.evaluate.metrics.reading import cmrc_tokens, longest_run

GOLDEN = Path(__file__).parent.parent / "golden"
READING = json.loads((GOLDEN / "reading_metrics.json").read_text(encoding="utf-8"))
OVERLAP = json.loads((GOLDEN / "overlap_metrics.json").read_text(encoding="utf-8"))
SQUAD = json.loads((GOLDEN / "text_metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", READING, ids=lambda case: case["prediction"][:12])
def test_squad_and_cmrc_are_those_of_the_published_rules(case: dict) -> None:
    assert cmrc_tokens(case["prediction"]) == case["cmrc_tokens"]
    for name in ("cmrc2018_em", "cmrc2018_f1", "squad_em", "squad_f1"):
        assert METRICS[name].score(case["prediction"], case["references"], "") == pytest.approx(case[name])


@pytest.mark.parametrize("case", SQUAD, ids=lambda case: case["prediction"][:20])
def test_squad_agrees_with_a_second_reading_of_its_rules(case: dict) -> None:
    found = [
        METRICS[name].score(case["prediction"], case["references"], "") for name in ("squad_em", "squad_f1")
    ]
    assert found == [case["exact_match"], pytest.approx(case["f1"], abs=1e-12)]


@pytest.mark.parametrize("case", OVERLAP["rouge"], ids=lambda case: case["case"][0][:12])
def test_rouge_is_rouge_scores(case: dict) -> None:
    prediction, references = case["case"]
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert METRICS[name].score(prediction, references, "") == pytest.approx(case[theirs], abs=1e-12)


@pytest.mark.parametrize("corpus", OVERLAP["corpora"], ids=lambda corpus: corpus["tokenizer"])
def test_bleu_and_chrf_are_sacrebleus(corpus: dict) -> None:
    (bleu,) = resolve(["bleu"], [references for _, references in corpus["cases"]])
    assert bleu.name == f"bleu_{corpus['tokenizer']}"
    assert bleu.signature == corpus["signature"]
    for metric, whole, rows in (
        (bleu, corpus["bleu"], corpus["sentence_bleu"]),
        (METRICS["chrf"], corpus["chrf"], corpus["sentence_chrf"]),
    ):
        assert metric.counts is not None
        assert metric.combine is not None
        sums = np.sum([metric.counts(*case) for case in corpus["cases"]], axis=0)
        assert metric.combine(sums.tolist()) == pytest.approx(whole)
        assert [metric.score(*case, "") for case in corpus["cases"]] == pytest.approx(rows)


def test_thinking_is_no_part_of_any_score() -> None:
    for metric in (*METRICS.values(), *resolve(["bleu", "f1_jieba"], [["今天很好"]])):
        plain, thought = (
            metric.score(text, ["今天很好"], "") for text in ("今天好", "<think>很</think>今天好")
        )
        assert thought == pytest.approx(plain), metric.name


def test_words_of_jieba_by_hand() -> None:
    (metric,) = resolve(["f1_jieba"], [["我来到了清华大学"]])
    # 我 来到 北京 清华大学 | 我 来到 了 清华大学: 3 of 4 and 3 of 4.
    assert metric.score("我来到北京清华大学。", ["我来到了清华大学"], "") == pytest.approx(3 / 4)
    assert metric.score("The iPhone", ["iphone，"], "") == 1.0


@pytest.mark.parametrize(("name", "package"), [("bleu", "sacrebleu.metrics"), ("f1_jieba", "jieba")])
def test_a_missing_package_is_named_with_its_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules is how Python says that a module can't be imported.
    monkeypatch.setitem(translation.importlib.sys.modules, package, None)  # type: ignore[attr-defined]
    from_cache = resolve.__globals__["f1_jieba"].__globals__["_cutter"]
    from_cache.cache_clear()
    with pytest.raises(MissingExtraError, match=r"tunesmith\[metrics\]"):
        resolve([name], [["今"]])
    from_cache.cache_clear()


words = st.lists(st.sampled_from("甲乙丙丁"), max_size=12)


@given(words, words)
def test_the_longest_common_subsequence_is_that_of_the_table(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(left, right) == table[-1][-1]
    assert longest_run(left, right) <= lcs_length(left, right)


def test_rouge_keeps_what_its_reference_deletes() -> None:
    assert rouge_tokens("Café 今日") == ["café", "今", "日"]
