"""What decides without a model: parts, likeness, filters, and how replies are read."""

from __future__ import annotations

import json

import pytest

from tunesmith.errors import SettingsError
from tunesmith.synth.chunk import Chunk, cut
from tunesmith.synth.config import least_scores, read_price
from tunesmith.synth.documents import Document
from tunesmith.synth.filters import flags, numbers, problem
from tunesmith.synth.likeness import Likeness
from tunesmith.synth.parts import split_sections, too_near
from tunesmith.synth.prompts import MAKE, judge_prompt, language_of, make_prompt, shown, tagged, versions
from tunesmith.synth.replies import Malformed, read_rows, read_verdict, stands_in

RULES = "".join(
    f"第{n}章 规定{n}\n\n这里写的是第{n}项内容，编号{n * 7919}，与别处{n * 104729}不同。\n\n"
    for n in range(1, 21)
)


def chunks(text: str, size: int = 100) -> list[Chunk]:
    return cut(Document("a.txt", "ab" * 32, text), size)


def test_whole_sections_go_to_one_part_by_the_seed() -> None:
    found = chunks(RULES)
    parts = split_sections(found, 0.1, 0.2, 1)
    assert sorted(parts.values()).count("valid") == 2
    assert sorted(parts.values()).count("test") == 4
    assert parts == split_sections(found, 0.1, 0.2, 1)
    assert parts != split_sections(found, 0.1, 0.2, 2)
    assert set(split_sections(found, 0, 0, 1).values()) == {"train"}


def test_a_part_that_is_wanted_gets_a_section_if_there_are_enough() -> None:
    long = (
        "第一章 甲\n"
        + "甲乙丙丁。" * 200
        + "\n第二章 乙\n"
        + "子丑寅卯。" * 50
        + "\n第三章 丙\n"
        + "天地玄黄。" * 100
    )
    assert sorted(split_sections(chunks(long), 0.01, 0.01, 3).values()) == ["test", "train", "valid"]
    assert split_sections(chunks(long), 0.01, 0, 3)[1] == "valid"  # the smallest
    one = split_sections(chunks("只有一段文字，没有别的。"), 0.1, 0.1, 3)
    assert set(one.values()) == {"train"}


def test_what_nearly_stands_in_train_is_no_question_for_valid() -> None:
    rule = "学生请假三天以内由辅导员批准，三天以上由学院批准，七天以上由教务处批准。"
    copy = rule.replace("，", "，\n").replace("学院", "院系")  # other lines, a word changed
    other = "图书馆每晚十点关门，借书期限为三十天，可以续借一次，逾期按天收费。"
    found = [
        Chunk("t", Document("a", "1", rule), 0, len(rule), 0),
        Chunk("v", Document("b", "2", copy), 0, len(copy), 1),
        Chunk("w", Document("c", "3", other), 0, len(other), 2),
    ]
    assert too_near(found, {0: "train", 1: "valid", 2: "valid"}) == {"v": "t"}
    assert too_near(found, {0: "train", 1: "train", 2: "valid"}) == {}
    assert too_near(found, {0: "valid", 1: "test", 2: "train"}) == {"v": "t"}  # nor in valid for test


def test_likeness_is_exact() -> None:
    seen = Likeness(2)
    seen.add("a", "abcd")  # ab bc cd
    assert seen.nearest("ABCE") == (2 / 4, "a")  # ab bc | ce
    assert seen.nearest("ＡＢ, c.d!") == (1.0, "a")
    assert seen.nearest("xyz") == (0.0, "")
    within = Likeness(2, jaccard=False)
    within.add("a", "abcdefgh")
    assert within.nearest("cde") == (1.0, "a")


PASSAGE = "一等奖学金每学年3,000元，比例为百分之五，由《奖励办法》规定。NASA signs it."


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("", "答", "empty question"), ("一等奖学金多少？", "", "empty answer"), ("奖？", "答", "question too short"),
        ("奖" * 401, "答", "question too long"), ("一等奖学金多少？", "答" * 4001, "answer too long"),
        ("根据上述规定，奖学金多少？", "答", "points at a text that nobody sees"),
        ("What does the passage say?", "It says so.", "points at a text that nobody sees"),
        ("根据材料，奖学金多少？", "答", "points at a text that nobody sees"),
        ("根据《奖励办法》，一等奖学金多少？", "3000元。", ""),
        ("Where do the students pass the exam?", "Here.", ""),
    ],
)  # fmt: skip
def test_rows_that_need_no_judge(question: str, answer: str, why: str) -> None:
    assert problem("qa", question, answer, PASSAGE)[0] == why


def test_numbers_and_names_that_the_passage_does_not_have() -> None:
    question = "一等奖学金多少？"
    assert flags(question, "每学年三千元，占百分之5，见《奖励办法》，NASA 签署。", PASSAGE) == []
    assert flags(question, "每学年5000元，共二十人。", PASSAGE) == [("number not in the passage", "20, 5000")]
    assert flags(question, "见《处分办法》, signed by Alice.", PASSAGE) == [
        ("name not in the passage", "处分办法, Alice")
    ]
    assert flags("五等奖学金？", "1. 五等没有。\n2. 一般不设，统一处理。", PASSAGE) == []


@pytest.mark.parametrize(
    ("answer", "strange"),
    [
        ("收费标准为 0.55 元，加收: 3.5 元，共： 12.75 元。", ""),  # a decimal is one number
        ("The fee is 3.5 per day; 0.55 of it is returned.", ""),
        ("The fee is 99.", "99"), ("押金（99）元。", "99"), ("押金：（99）元。", "99"), ("押金：99", "99"),
        ("It costs this: 99. Pay it at once.", "99"), ("押金为\n99. ", "99"), ("比例是 3.5:1、其余不计", "1"),
        ("1. 甲。\n2. 乙。\n3) 丙。\n（4）丁。", ""), ("步骤：1、申请；2、审批；（3）学生领取。", ""),
        ("These steps: 1. Ask the office. 2. Wait.", ""), ("①甲②乙", ""),
        ("应在30天内申请。", "30"), ("按第30条办理。", ""), ("按第三十条、第 31 条办理。", "31"),
        ("See Article 30.", ""),
    ],
)  # fmt: skip
def test_a_list_s_numbers_are_none_of_the_answer_s(answer: str, strange: str) -> None:
    passage = "第三十条 标准为每度 0.55 元，超出部分 3.5 元，合计 12.75 元。"
    found = dict(flags("收费多少？", answer, passage))
    assert found.get("number not in the passage", "") == strange


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("三百二十一", {"321"}), ("二〇二四年", {"2024"}), ("三万五千", {"35000"}), ("一亿二千万", {"120000000"}),
        ("３天、03 天", {"3"}), ("1,000.50", {"1000.5"}), ("十五", {"15"}), ("twelve of them", {"12"}), ("无", set()),
    ],
)  # fmt: skip
def test_numbers_are_the_same_however_written(text: str, values: set[str]) -> None:
    assert numbers(text) == values


def test_replies_of_the_maker_are_read_or_malformed() -> None:
    rows = '{"rows": [{"question": " 问？ ", "answer": "答。"}]}'
    for text in (
        rows,
        f"```json\n{rows}\n```",
        f"<think>想 {{}}</think>\n{rows}",
        '[{"question": "问？", "answer": "答。"}]',
        f"好的，以下是结果：{rows}希望对你有帮助！",
        f"见[1]：\n```json\n{rows}\n```\n以上。",
    ):
        assert read_rows(text) == [("问？", "答。")]
    assert read_rows('{"rows": []}') == []
    for text in (
        "",
        f"{rows} or {rows}",
        '{"rows": [{"question": "问"}]}',
        '{"rows": [{"question": 1, "answer": "2"}]}',
        "[" * 9999,
    ):
        with pytest.raises(Malformed):
            read_rows(text)


def test_replies_of_the_judge_are_read_or_malformed() -> None:
    good = {"reason": "好", "quote": "三天", "grounded": 5, "complete": 4, "clear": 1}
    assert read_verdict(json.dumps(good)) == good
    assert read_verdict(json.dumps(good | {"grounded": "5", "clear": " 1 "})) == good
    for change in (
        {"clear": 0},
        {"clear": 6},
        {"clear": "4.5"},
        {"clear": True},
        {"clear": 4.5},
        {"quote": None},
        {"more": 1},
    ):
        with pytest.raises(Malformed):
            read_verdict(json.dumps(good | change))


def test_a_quote_stands_in_the_passage_whatever_its_spaces_and_width() -> None:
    assert stands_in("每学年 3，000 元 ", "一等奖学金每学年\n3,000元")
    assert not stands_in("每学年5000元", "一等奖学金每学年3,000元")
    assert not stands_in("元", "3,000元")  # it proves nothing


def test_prompts_follow_the_language_and_hold_what_they_are_about() -> None:
    (chunk,) = chunks("第一章 奖励\n第一条 一等奖学金每学年三千元。")
    prompt = make_prompt("qa", "zh", chunk, 3)
    assert "写出 3 个" in prompt
    assert "<document>\na > 第一章 奖励\n</document>\n<passage>\n第一章 奖励\n第一条" in prompt
    assert '{"rows": [{"question"' in prompt
    asked = judge_prompt("qa", "en", chunk, "How much?", "3000")
    assert "<question>\nHow much?\n</question>\n<answer>\n3000\n</answer>" in asked
    assert language_of("学生们 must apply") == "zh"
    assert language_of("The students of 北京 must apply in time") == "en"
    # A text can't close its own tag.
    assert tagged([("passage", "x</passage>y")]) == "<passage_>\nx</passage>y\n</passage_>"


def test_a_prompt_s_version_changes_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions(["qa"])
    assert set(before) == {"qa.en", "qa.zh", "judge.en", "judge.zh", "repair.en", "repair.zh"}
    monkeypatch.setitem(MAKE["qa"], "zh", MAKE["qa"]["zh"] + "。")
    after = versions(["qa"])
    assert [name for name in before if before[name] != after[name]] == ["qa.zh"]
    assert f"== qa.zh  (version {after['qa.zh']})" in shown(["qa"])


def test_thresholds_and_prices_are_read_or_explained() -> None:
    assert least_scores(["3", "grounded=5"]) == {"grounded": 5, "complete": 3, "clear": 3}
    assert read_price("0.3,1.1") is not None
    for word in ("6", "grounded", "x=3", "0"):
        with pytest.raises(SettingsError):
            least_scores([word])
    for word in ("1", "a,b", "-1,2", "nan,1", "1,inf"):
        with pytest.raises(SettingsError):
            read_price(word)
