"""Metrics: golden values from an independent script, values worked out by hand, and properties."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunesmith.evaluate.metrics import METRICS, exact_match, f1_char, is_empty, tokens, verse_form

GOLDEN = Path(__file__).parent.parent / "golden" / "text_metrics.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))
TANG = "下面是一首唐詩絕句的前兩句，請續寫後兩句，只輸出詩句。\n"
FIVE, SEVEN = TANG + "石室寒飆警，孫枝雅器裁。", TANG + "經年郵驛許安棲，一會他鄉別恨迷。"
texts = st.text(st.sampled_from("abc the,.!?-'3 1今日海帆飄𠀋豈，。、「」かカ한A\n"), max_size=30)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prediction"][:20])
def test_english_agrees_with_the_published_rules(case: dict) -> None:
    assert exact_match(case["prediction"], case["references"]) == case["exact_match"]
    assert f1_char(case["prediction"], case["references"]) == pytest.approx(case["f1"], abs=1e-12)


def test_golden_file_is_what_its_script_makes() -> None:
    script = runpy.run_path(str(GOLDEN.with_suffix(".py")))
    assert script["golden"]() == CASES


def test_f1_of_chinese_by_hand() -> None:
    # Common: 今 日 = 2; predicted 4, wanted 5. P = 2/4, R = 2/5, F1 = 2*(1/2)*(2/5)/(1/2+2/5) = 4/9.
    assert f1_char("今日天晴", ["今日海帆飄"]) == pytest.approx(4 / 9)
    # A character counts as often as both have it: 春春春 and 春眠 share one. P = 1/3, R = 1/2, F1 = 2/5.
    assert f1_char("春春春", ["春眠"]) == pytest.approx(2 / 5)
    # Order doesn't count, punctuation doesn't either: 5 of 5 characters.
    assert f1_char("裁器雅枝孫。", ["孫枝，雅器裁"]) == 1.0
    # Mixed: tokens 用 python 寫 | 我 用 python. Common 用 python = 2, P = 2/3, R = 2/3, F1 = 2/3.
    assert f1_char("用Python寫", ["我用 python"]) == pytest.approx(2 / 3)
    # The best of the references: 1/3 against 天涯若, 1 against 海.
    assert f1_char("海", ["海內存知己", "海。"]) == 1.0


def test_one_token_for_every_han_character_kana_and_hangul() -> None:
    # Extension A, main block, compatibility ideographs, extension B, extension G, 々, 〇.
    assert tokens("㐀一豈𠀋𰀀々〇") == ["㐀", "一", "豈", "𠀋", "𰀀", "々", "〇"]
    assert tokens("かなカナ한국") == ["か", "な", "カ", "ナ", "한", "국"]
    assert tokens("ｶﾞ") == ["ガ"]
    assert tokens("今日hello world明日") == ["今", "日", "hello", "world", "明", "日"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3.14", ["3.14"]), ("３．１４", ["3.14"]), ("1,000。", ["1,000"]), ("12：30", ["12:30"]),
        ("2026-11-21", ["2026-11-21"]), ("共3.", ["共", "3"]), ("1、2、3", ["1", "2", "3"]), ("v2.", ["v2"]),
        ("iPhone，iPad", ["iphone", "ipad"]), ("don't", ["dont"]), ("Straße", ["strasse"]),
        ("ＡＢＣ", ["abc"]), ("the cat", ["cat"]),
        ("A", ["a"]), ("<think>long\nthought</think>答", ["答"]), ("、。！", []),
        ("the template opened it\n</think>\n\n答", ["答"]), ("答<think>the limit cut it", ["答"]),
        ("a</think>b<think>c</think>d<think>e", ["bd"]),
    ],
)  # fmt: skip
def test_normalisation(text: str, wanted: list[str]) -> None:
    assert tokens(text) == wanted


def test_empty_predictions_score_zero_and_are_known_as_empty() -> None:
    for empty in ("", "  \n\u3000", "<think>all of it</think>\n", "<think>答案 春", "all of it</think>\n"):
        assert is_empty(empty)
        assert [metric.score(empty, ["春。", ""], FIVE) for metric in METRICS.values()] == [0] * len(METRICS)
    assert not is_empty("。")


@given(texts.filter(str.strip))
def test_a_perfect_predictor_scores_one(reference: str) -> None:
    assume(not is_empty(reference))
    assert exact_match(reference, ["別的", reference]) == f1_char(reference, ["別的", reference]) == 1.0


@given(texts.filter(str.strip), texts.filter(str.strip))
def test_swapped_arguments_keep_f1_and_scores_stay_in_range(left: str, right: str) -> None:
    assert f1_char(left, [right]) == pytest.approx(f1_char(right, [left]))
    assert 0 <= f1_char(left, [right]) <= 1 + 1e-12
    assert exact_match(left, [right]) <= f1_char(left, [right]) + 1e-12


@given(st.text("甲乙丙", min_size=1, max_size=9), st.text("天地玄黃", min_size=1, max_size=9))
def test_a_verbose_answer_is_punished(reference: str, chatter: str) -> None:
    assert f1_char(reference + chatter, [reference]) < 1
    assert f1_char(reference + chatter * 2, [reference]) < f1_char(reference + chatter, [reference])


@pytest.mark.parametrize(
    ("prompt", "answer", "wanted"),
    [
        (FIVE, "坐來山水操，弦斷弔塵埃。", 1),
        (FIVE, " 坐來山水操，弦斷弔塵埃。\n", 1),
        (FIVE, "<think>五言</think>坐來山水操，弦斷弔塵埃。", 1),
        (FIVE, "今日海帆飄萬里，不堪腸斷對含啼。", 0),  # seven characters where five are asked for
        (SEVEN, "今日海帆飄萬里，不堪腸斷對含啼。", 1),
        (SEVEN, "今日海帆飄萬里，不堪腸斷對含啼", 0),  # no full stop
        (SEVEN, "今日海帆飄萬里,不堪腸斷對含啼。", 0),  # half-width comma
        (SEVEN, "今日海帆飄萬里，不堪腸斷對含。", 0),
        (SEVEN, "後兩句：今日海帆飄萬里，不堪腸斷對含啼。", 0),
        (SEVEN, "今日海帆飄萬里，不堪腸斷對含啼。今日海帆飄萬里，不堪腸斷對含啼。", 0),
        (
            SEVEN,
            "今日海帆飄万里，不堪腸斷對𠀋豈。",
            1,
        ),  # extension B and a compatibility ideograph count as Han
        (SEVEN, "今日海帆飄abc，不堪腸斷對含啼。", 0),
        (SEVEN, "The second couplet is:", 0),
        (SEVEN, "", 0),
        ("請寫一聯詩", "今日海帆飄萬里，不堪腸斷對含啼。", 1),
        ("請寫一聯詩", "坐來山水操，弦斷弔塵埃。", 1),
        ("請寫一聯詩", "坐來山水操，不堪腸斷對含啼。", 0),  # 5 and 7
        ("請寫一聯詩", "山水操，弔塵埃。", 0),
        ("續寫：\n少年不識愁滋味，愛上層樓。", "而今識盡愁滋味，欲說還休。", 1),  # 7 and 4, as asked
        ("續寫：\n少年不識愁滋味，愛上層樓。", "今日海帆飄萬里，不堪腸斷對含啼。", 0),
    ],
)
def test_verse_form(prompt: str, answer: str, wanted: int) -> None:
    assert verse_form(answer, [], prompt) == wanted
