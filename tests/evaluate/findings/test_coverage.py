"""How much of a text training rows say, worked out by hand, and groups of scores that differ or don't."""

from __future__ import annotations

import math
import random

import pytest

from tunesmith.evaluate.findings.coverage import HELD, apart, covers, features


def test_features_are_words_and_pairs_of_han_characters() -> None:
    assert features("请假需要3天, see Form B-2") == {"请假", "假需", "需要", "3", "天", "see", "form", "b2"}
    assert features("好 OK 好") == {"好", "ok"}
    assert features("") == set()


def test_a_cover_by_hand() -> None:
    rows = ["red green", "red blue", "red"]
    # N = 3. red in 3 rows: log(4/4) = 0; green and blue in 1: log(4/2); grey in none: log(4/1) = 2 log 2.
    green, grey = math.log(2), 2 * math.log(2)
    (found,) = covers(["red green grey"], rows)
    assert found is not None
    assert found.row == 0
    assert found.share == pytest.approx(green / (green + grey))
    assert found.share == pytest.approx(1 / 3)
    assert covers(["grey"], rows) == [None]
    assert covers([""], rows) == [None]
    assert covers(["red"], []) == [None]


def test_what_every_row_says_is_held_by_the_shortest() -> None:
    (found,) = covers(["red"], ["red green", "red"])
    assert found is not None
    assert (found.share, found.row) == (1.0, 1)


def test_the_row_that_says_it_alone_wins() -> None:
    rows = [
        "事假须提前三天申请，病假须附医院证明，婚假另行规定。",
        "事假须提前三天申请。",
        "图书馆八点开门。",
    ]
    (found,) = covers(["事假须提前三天申请"], rows)
    assert found is not None
    assert found.row == 1
    assert found.share == pytest.approx(1.0)


def test_an_instruction_that_all_rows_have_weighs_nothing() -> None:
    rows = [f"請續寫：{poem}" for poem in ("白日依山盡", "床前明月光", "春眠不覺曉")]
    known, unknown = covers(["請續寫：床前明月光", "請續寫：紅豆生南國"], rows)
    assert known is not None
    assert (known.row, known.share) == (1, pytest.approx(1.0))
    assert unknown is None or unknown.share < HELD / 2


def test_groups_that_differ_are_told_apart() -> None:
    draw = random.Random(1)
    low, high = [draw.gauss(0.2, 0.1) for _ in range(30)], [draw.gauss(0.4, 0.1) for _ in range(12)]
    found = apart(low, high)
    assert found is not None
    assert found.told
    assert found.difference.low < 0.2 < found.difference.high
    assert found.difference.value == pytest.approx(found.second.value - found.first.value)
    assert apart(low, high[:5]) is None


def test_equal_groups_are_seldom_told_apart() -> None:
    draw = random.Random(2)
    told = 0
    for _ in range(40):
        found = apart([draw.random() for _ in range(15)], [draw.random() for _ in range(15)])
        assert found is not None
        told += found.told
    assert told <= 5
