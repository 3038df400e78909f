"""What an answer copies from training rows, by hand-made rows whose copies are known."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.findings.made import row, trained
from tunesmith.evaluate.findings.copied import copies
from tunesmith.evaluate.metrics import tokens

POEM = "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"
RULE = "A student asks the office for leave three days before and hands in a written form"


def test_the_longest_run_its_share_and_its_row() -> None:
    answer = "他說：白日依山盡，黃河入海流。欲窮天下。"
    (copy,) = copies([row(answer)], [*trained("床前明月光，疑是地上霜。"), *trained(POEM)])
    assert copy is not None
    assert copy.text == "白日依山盡黃河入海流欲窮"
    assert (copy.length, copy.cover) == (12, 12 / 16)
    assert copy.origin == "train.jsonl:1"


def test_words_count_where_there_are_no_han_characters() -> None:
    said = "Please note: a STUDENT asks the office for leave three days before, and hands in nothing."
    (copy,) = copies([row(said)], trained(RULE))
    assert copy is not None
    assert (
        copy.text == "student asks office for leave three days before and hands in"
    )  # articles aren't tokens


def test_nine_in_a_row_are_no_copy_and_ten_are() -> None:
    line = "一二三四五六七八九十"
    assert copies([row(line[:9] + "甲")], trained(line)) == [None]
    assert copies([row(line)], trained(line)) != [None]


def test_what_the_reference_or_the_question_says_is_no_copy() -> None:
    assert copies([row(POEM, reference=POEM)], trained(POEM)) == [None]
    assert copies([row(POEM, prompt=f"請抄寫：{POEM}")], trained(POEM)) == [None]
    # What goes beyond the reference is one.
    (copy,) = copies([row(POEM, reference=POEM[:12])], trained(POEM))
    assert copy is not None


def test_runs_of_several_rows_cover_an_answer_together() -> None:
    first, second = "春眠不覺曉處處聞啼鳥", "夜來風雨聲花落知多少呀"
    (copy,) = copies([row(first + "甲乙" + second)], trained(first, second))
    assert copy is not None
    assert (copy.length, copy.text, copy.origin) == (11, second, "train.jsonl:2")
    assert copy.cover == 21 / 23


@given(st.lists(st.text("甲乙丙", max_size=40), max_size=5), st.text("甲乙丙", max_size=40))
def test_it_is_the_longest_common_run(answers: list[str], said: str) -> None:
    (copy,) = copies([row(said)], trained(*answers), least=3)
    longest = max((_longest(said, answer) for answer in answers), default=0)
    assert (copy.length if copy else 0) == (longest if longest >= 3 else 0)
    if copy is not None:
        assert copy.text in said
        assert any(copy.text in answer for answer in answers)


def test_chance_makes_no_copies() -> None:
    draw = random.Random(0)
    han = [chr(0x4E00 + at) for at in range(500)]
    texts = ["".join(draw.choices(han, k=40)) for _ in range(400)]
    assert set(copies([row(text) for text in texts[:200]], trained(*texts[200:]))) == {None}


def _longest(a: str, b: str) -> int:
    left, right = "".join(tokens(a)), "".join(tokens(b))
    return max(
        (n for at in range(len(left)) for n in range(1, len(left) - at + 1) if left[at : at + n] in right),
        default=0,
    )
