"""Labels, letters, yes and no read from answers; patterns and fields; predictors that every metric must bear."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import SettingsError
from tunesmith.evaluate.metrics import METRICS, Metric, resolve
from tunesmith.evaluate.metrics.labels import read_letter, read_yes_no

MORE = ["bleu_zh", "bleu_char", "bleu_13a", "f1_jieba"]
WITH_REFERENCES = [
    *(
        metric
        for metric in METRICS.values()
        if metric.better == "higher" and metric.name not in ("verse_form",)
    ),
    *resolve(MORE, [["好"]]),
]
texts = st.text(st.sampled_from("abc the,.!?-'3 1今日海帆飄𠀋豈，。、「」かカ한A\n"), max_size=30)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("是的。", True), ("对，可以申请。", True), ("没错", True), ("Yes, it is.", True), ("**True**", True),
        ("不是，学校不提供。", False), ("没有。", False), ("不能", False), ("No.", False), ("答案：否", False),
        ("So the answer is no", False), ("<think>不是</think>是", True), ("嗯，是的", True), ("我想，答案是：对。", True),
        ("不一定", None), ("不知道", None), ("对不起，我不清楚。", None), ("是否可以？", None), ("能量守恒", None),
        ("对比两者", None), ("Nobody", None), ("", None),
    ],
)  # fmt: skip
def test_yes_and_no(text: str, wanted: bool | None) -> None:
    assert read_yes_no(text) is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B", "B"), ("b", "B"), ("（Ｃ）", "C"), ("B. Paris", "B"), ("B、北京", "B"), ("**D**", "D"),
        ("答案：C", "C"), ("答案应该是 D", "D"), ("选项B正确", "B"), ("The answer is (B).", "B"), ("我选择 A", "A"),
        ("The correct answer is option C.", "C"), ("排除A，所以选D。", "D"), ("I think B is right", "B"),
        ("<think>A</think>B", "B"), ("(A) because of that", "A"),
        ("A、B都对", None), ("A cat is", None), ("I am not sure", None), ("北京", None), ("", None), ("A or B", None),
    ],
)  # fmt: skip
def test_letters(text: str, wanted: str | None) -> None:
    assert read_letter(text) == wanted


def test_labels_and_their_macro_f1_by_hand() -> None:
    rows = [["正面"], ["负面"], ["负面"], ["中性"], ["正面", "中性"]]
    said = ["情感是正面。", "负面", "非负面，正面", "", "正面和中性"]
    accuracy, macro = resolve(["classification"], rows)
    assert [accuracy.score(*pair, "") for pair in zip(said, rows, strict=True)] == [1, 1, 0, 0, 1]
    assert macro.counts is not None
    assert macro.combine is not None
    sums = np.sum([macro.counts(*pair) for pair in zip(said, rows, strict=True)], axis=0)
    # 中性: 1 hit, 0 extra, 1 lost: 2/3. 正面: 2 hits, 1 extra: 4/5. 负面: 2 hits: 1.
    assert macro.combine(sums.tolist()) == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)


def test_the_longest_label_is_read() -> None:
    accuracy, _ = resolve(["classification"], [["toxic"], ["not toxic"]])
    assert accuracy.score("This is not toxic.", ["not toxic"], "") == 1
    assert accuracy.score("This is not toxic.", ["toxic"], "") == 0
    assert accuracy.score("toxic or not toxic", ["toxic"], "") == 0  # it names both


def test_patterns_and_fields() -> None:
    def score(name: str, prediction: str, reference: str) -> float:
        return resolve([name], [[reference]])[0].score(prediction, [reference], "")

    assert score("regex:\\d{4}年", "在1998年。", "") == 1
    assert score("regex:\\d{4}年", "<think>1998年</think>不知道", "") == 0
    assert score("regex:答案是(.+)", "答案是甲\n不，答案是乙。", "乙") == 1
    assert score("regex:答案是(.+)", "答案是乙\n不，答案是甲。", "乙") == 0
    assert score("json:a.b", '```json\n{"a": {"b": 3}}\n```', '{"a": {"b": 3}}') == 1
    assert score("json:a.1", '{"a": ["北京", "上海"]}', "上海") == 1
    assert score("json:a", '{"a": 1}', "true") == 0
    assert score("json:a", "a 是 1", "1") == 0
    assert score("json:a", '{"a": null}', "null") == 1
    with pytest.raises(SettingsError, match="isn't a regular expression"):
        resolve(["regex:("], [[""]])
    with pytest.raises(SettingsError, match="did you mean 'rouge_l'"):
        resolve(["rougel"], [[""]])


def test_variety_by_hand() -> None:
    def score(name: str, text: str) -> float:
        return METRICS[name].score(text, [], "")

    assert score("distinct_1", "好好好好") == 1 / 4
    assert score("distinct_2", "好好不好好") == 3 / 4  # 好好 好不 不好 好好
    assert score("repetition", "春眠不覺春眠不覺") == pytest.approx(
        1 / 5
    )  # five runs of four, one of them again
    assert score("repetition", "春眠不覺曉") == 0
    assert score("length", "<think>很长</think> 春眠。\n") == 3
    assert METRICS["repetition"].better == "lower"


@pytest.mark.parametrize("metric", WITH_REFERENCES, ids=lambda metric: metric.name)
def test_a_perfect_an_empty_and_a_random_predictor(metric: Metric) -> None:
    reference = "是的，学生应在开学前两周 submit 3 forms。"
    if metric.name == "choice":
        reference = "B"
    top = metric.top or 1.0
    assert metric.score(reference, [reference], "") == pytest.approx(top)
    assert metric.score("", [reference], "") == metric.score("<think>" + reference, [reference], "") == 0.0
    shuffled = random.Random(1).sample("天地玄黄宇宙洪荒日月盈昃", 8)
    assert metric.score("".join(shuffled), [reference], "") <= 0.1 * top


@pytest.mark.parametrize(
    "metric",
    [m for m in WITH_REFERENCES if m.name not in ("yes_no", "choice")],
    ids=lambda metric: metric.name,
)
def test_a_verbose_answer_scores_less_and_more_references_never_do(metric: Metric) -> None:
    reference, noise = "学生应在开学前两周提交申请", "，天地玄黄宇宙洪荒日月盈昃"
    scores = [metric.score(reference + noise * n, [reference], "") for n in (0, 1, 4)]
    assert scores[0] > scores[1] >= scores[2]
    assert metric.score(reference, ["别的", reference], "") == pytest.approx(scores[0])


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_what_every_metric_of_the_catalogue_must_bear(metric: Metric) -> None:
    reference = {"choice": "B", "verse_form": "今日海帆飄萬里，不堪腸斷對含啼。"}.get(
        metric.name, "是的，学生应在开学前两周 submit 3 forms。"
    )
    prompt = "續寫：\n經年郵驛許安棲，一會他鄉別恨迷。"
    predictors = {
        "perfect": reference,
        "empty": "",
        "verbose": reference + prompt * 3,
        "random": "".join(random.Random(2).sample("天地玄黄宇宙洪荒日月盈昃", 8)),
    }
    score = {name: metric.score(said, [reference], prompt) for name, said in predictors.items()}
    for value in score.values():
        assert (metric.least or 0.0) <= value <= (metric.top if metric.top is not None else 1e9)
    if metric.better == "higher":
        assert score["perfect"] == pytest.approx(metric.top or 1.0)
        assert score["empty"] == 0
        assert score["random"] < score["perfect"]
    elif metric.better == "lower":
        assert score["perfect"] == 0 <= score["random"]
        assert score["verbose"] > 0
    # Answers are read for a word or a letter, or looked at without the reference: length is no fault there.
    if metric.name not in ("yes_no", "choice", "repetition") and metric.better != "neither":
        worse = score["verbose"] - score["perfect"]
        assert (worse < 0) if metric.better == "higher" else (worse > 0)


SYMMETRIC = ("exact_match", "f1_char", "rouge_1", "rouge_2", "rouge_l", "squad_em", "squad_f1", "cmrc2018_f1")


@given(texts.filter(str.strip), texts.filter(str.strip))
def test_swapped_sides_and_the_range(left: str, right: str) -> None:
    for metric in WITH_REFERENCES[: len(METRICS)]:
        if metric.name not in MORE:
            assert 0 <= metric.score(left, [right], "") <= (metric.top or 1) + 1e-9
    for name in SYMMETRIC:
        score = METRICS[name].score
        assert score(left, [right], "") == pytest.approx(score(right, [left], "")), name
