"""Findings as people read them: every sentence is there in Chinese, and says what the figures say."""

from __future__ import annotations

import re
import string
from typing import Any

import pytest

from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.findings import sections
from tunesmith.evaluate.findings.sentences import SENTENCES, phrases
from tunesmith.evaluate.pages import told as told_in_page
from tunesmith.evaluate.section import Section

DIFFERENCE = {"value": -0.25, "low": -0.4, "high": -0.1}
COUNTS = {"n": 60, "difference": DIFFERENCE, "wins": 1, "losses": 16, "ties": 43, "p_value": 0.0003}
ROW = {
    "id": "7",
    "prompt": "請續寫。\n白日依山盡，",
    "references": ["黃河入海流。"],
    "b": "長" * 90,
    "score_b": 0.1,
}
SIDES = {**ROW, "a": "The", "score_a": 0.4}
FOUND: dict[str, Any] = {
    "a": "smollm2-135m",
    "b": "runs/tang-1",
    "metric": "f1_char",
    "forgetting": {
        **COUNTS, "verdict": "worse", "a": 20, "b": 5, "seconds": 19.2,
        "by": {"zh": {"n": 30, "a": 5, "b": 1}, "en": {"n": 30, "a": 15, "b": 4}},
        "lost": [{"id": "en-01", "question": "Capital?", "answer": "Tokyo", "a": "Tokyo.", "b": "詩"}],
        "gained": [],
    },
    "training": {"rows": 5000, "gone": 3},
    "copied": {
        **COUNTS, "verdict": "worse", "least": 10, "a": 1, "b": 16,
        "rows": [{"id": "3", "prompt": "", "length": 14, "text": "白日依山盡黃河入海流欲窮千里", "cover": 0.7,
                  "origin": "/home/x/tang.json:12", "b": ""}],
    },
    "coverage": {
        "n": 60, "held": 20, "by_letter": 6, "wrong": 12, "wrong_not_held": 8,
        "question": 0.3, "truth": 0.2, "p_value": 0.001, "verdict": "better",
        "scores": {"held": DIFFERENCE, "not_held": DIFFERENCE}, "difference": DIFFERENCE,
    },
    "invention": {
        "wrong": 12, "side": "below", "limit": 0.5, "most": 50, "n": 9, "own_likelier": 7,
        "truth_likelier": 2, "per_token": 1, "not_held": 8, "held_own": 1,
        "rows": [{"id": "7", "prompt": "", "reference": "黃河", "b": "長江", "score": 0.0, "truth_nll": 3.0,
                  "truth_tokens": 3, "own_nll": 1.0, "own_tokens": 2, "question_cover": 0.5,
                  "truth_cover": 0.25,
                  "nearest": {"origin": "/home/x/tang.json:9", "question": "", "answer": ""}}],
    },
    "changed": {"better": 3, "worse": 2, "same": 5, "worst": [ROW],
                "most_better": [SIDES], "most_worse": [SIDES]},
    "advice": ["not_in_data", "decoding", "copies", "forgets"],
}  # fmt: skip


def with_part(name: str, **changes: Any) -> dict[str, Any]:
    return {"findings": {**FOUND, name: {**FOUND[name], **changes}}}


def told(result: dict[str, Any], title: str) -> Section:
    return next(section for section in sections(result) if section.title == title)


RESULTS = [
    {"findings": FOUND},
    {"findings": {**FOUND, "advice": ["not_learnt"]}},
    with_part("forgetting", verdict="better", a=3),
    with_part("forgetting", verdict="cannot tell with n = 60; about 200 are needed"),
    with_part("copied", a=None),
    with_part("copied", b=0),
    with_part("copied", verdict="cannot tell with n = 60"),
    with_part("coverage", verdict="worse"),
    with_part("coverage", verdict="cannot tell"),
    with_part("invention", truth_likelier=0, side="above"),
    with_part("invention", side="third", limit=None),
    {
        "findings": {
            **FOUND,
            "training": {"error": "There is no file x.json."},
            "copied": None,
            "coverage": None,
        }
    },
]


@pytest.mark.parametrize("result", RESULTS)
def test_every_word_of_ours_is_there_in_chinese(result: dict[str, Any]) -> None:
    made = sections(result)
    assert len(made) >= 5
    for section in made:
        for text in (section.title, *section.sentences, *section.columns):
            chinese = in_chinese(text)
            assert re.search("[一-龥]", chinese), text
            numbers = re.compile(r"\d[\d.,]*\d|\d")
            assert sorted(numbers.findall(chinese)) == sorted(numbers.findall(text)), text
        assert all(len(row) == len(section.columns) for row in section.rows)


def test_what_people_and_models_wrote_stays_as_it_is() -> None:
    """An answer may be one of our own words ("lower"): in the Chinese report it is still the answer."""
    row = {
        **SIDES,
        "id": "loss",
        "references": ["lower"],
        "a": "criterion",
        "b": "calls",
        "prompt": "overall",
    }
    lost = {"id": "en-01", "question": "task", "answer": "higher", "a": "value", "b": "seconds"}
    result = with_part("changed", worst=[row], most_better=[row], most_worse=[])
    result["findings"]["forgetting"] = {**FOUND["forgetting"], "lost": [lost]}
    written = {"loss", "lower", "criterion", "calls", "overall", "task", "higher", "value", "seconds"}
    cells = [
        cell for section in sections(result) for line in section.rows for cell in line if cell in written
    ]
    assert len(cells) >= 10
    assert [in_chinese(cell) for cell in cells] == cells
    assert [told_in_page(cell) for cell in cells] == cells
    assert in_chinese("lower") == "更低"


def test_all_sentences_are_used_and_have_the_same_values_in_both_languages() -> None:
    for english, chinese in SENTENCES.values():
        names = [
            [name for _, name, _, _ in string.Formatter().parse(text) if name] for text in (english, chinese)
        ]
        assert set(names[0]) == set(names[1]), english
    said = {
        text
        for result in RESULTS
        for one in sections(result)
        for text in (one.title, *one.sentences, *one.columns)
    }
    said |= {row[0] for one in sections(RESULTS[0]) for row in one.rows}
    cells = {"now right"}  # the sample has no row that got right
    unsaid = [e for e, _ in phrases() if not any(re.match(f"^{e}", text) for text in said | cells)]
    assert unsaid == []


def test_sentences_say_the_figures() -> None:
    general = told({"findings": FOUND}, "General questions")
    assert general.sentences[0] == (
        "A answers 20 of 60 general questions rightly, B 5: B − A = −25.0 % [−40.0 %, −10.0 %] "
        "(McNemar: p < 0.001)."
    )
    assert general.sentences[1].startswith(
        "B has lost general knowledge: 1 right before and wrong now, 0 the other"
    )
    assert "--no-forgetting" in general.sentences[-1]
    copied = told({"findings": FOUND}, "Copied from the training rows")
    assert copied.rows == (("3", "14", "白日依山盡黃河入海流欲窮千里", "70 %", "tang.json:12"),)
    worst = told({"findings": FOUND}, "Rows with the lowest score")
    assert worst.rows[0][2] == "白日依山盡，"  # the prompt's last line
    assert worst.rows[0][3] == "長" * 59 + "…"


def test_of_several_pairs_the_one_that_they_are_about_has_them() -> None:
    names = ("runs/other", "runs/tang-1")
    pairs = [{"a": {"model": "smollm2-135m"}, "b": {"model": name}, "findings": FOUND} for name in names]
    assert sections(pairs[0]) == []
    assert sections(pairs[1]) == sections({"findings": FOUND})


def test_of_several_the_sentences_have_the_letters_of_the_tables() -> None:
    pair = {"a": {"model": "base"}, "b": {"model": "runs/tang-1"}, "keys": ["a", "c"], "findings": FOUND}
    general, copied = sections(pair)[:2]
    assert general.sentences[0].startswith("A answers 20 of 60 general questions rightly, C 5: C − A = ")
    assert in_chinese(general.sentences[0]).startswith("60 个通用问题，A 答对 20 个，C 答对 5 个：C − A = ")
    assert general.columns[-1] == "C's answer"
    assert in_chinese(general.columns[-1]) == "C 的回答"
    assert any("C − A" in line for line in copied.sentences)
    ours = re.sub("McNemar|--[a-z-]+", "", " ".join(general.sentences))
    assert not re.search(r"\bB\b", ours)


def test_results_without_findings_have_no_sections() -> None:
    assert sections({}) == sections({"findings": {}}) == []


def test_what_earlier_versions_concluded_from_means_is_not_told() -> None:
    before = {name: FOUND["invention"][name] for name in ("n", "own_likelier", "truth_likelier", "not_held")}
    result = {"findings": {**FOUND, "invention": {**before, "rows": []}, "advice": ["decoding", "forgets"]}}
    made = sections(result)
    assert "Why the worst answers are wrong" not in {section.title for section in made}
    assert len(made[-1].sentences) == 1
    assert made[-1].sentences[0].startswith("It forgets what it knew")
