"""Sweeps: every combination, contradictions told before anything runs, figures checked by hand."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tests.infer.test_generate import asked, setup
from tunesmith.device import pick
from tunesmith.errors import SettingsError, UsageError
from tunesmith.evaluate.diversity import distinct, repetition, similarity
from tunesmith.evaluate.sweep import FIGURES, combinations, sweep
from tunesmith.infer.local import LocalModel


def model() -> LocalModel:
    inner, renderer = setup("qwen2")
    return LocalModel("tiny", inner, renderer, pick("fp32"))


def test_the_figures_by_hand() -> None:
    # 白 日 依 山 | 白 日 白 日: 8 tokens, 4 different; pairs 白日 日依 依山 | 白日 日白 白日: 6, 4 different.
    verses = ["白日依山", "白日，白日。"]
    assert distinct(verses, 1) == 4 / 8
    assert distinct(verses, 2) == 4 / 6
    # Common: 白 and 日 once each; twice 2 over 4 + 4.
    assert similarity(verses) == 4 / 8
    # In the second 白日白 日白日: no run comes twice; "a a a a a" has three equal runs of three.
    assert repetition(verses) == 0
    assert repetition(["x x x x x"]) == pytest.approx(2 / 3)
    assert similarity(["The cat sat.", "the cat sat"]) == 1
    assert (similarity(["one"]), distinct([""], 1), repetition(["two words"])) == (None, None, None)


def test_every_combination_once_in_the_order_given() -> None:
    found = combinations(["temperature=0.1,0.7,1.2", "top_p=0.3,0.9", "max_new_tokens=9"])
    assert [one.title for one in found] == [
        f"temperature={t} top_p={p}" for t in ("0.1", "0.7", "1.2") for p in ("0.3", "0.9")
    ]
    assert {one.sampling.max_new_tokens for one in found} == {9}
    assert {(one.sampling.seed, one.sampling.answers) for one in found} == {(0, 3)}
    (greedy,) = combinations([])
    assert (greedy.sampling.given(), greedy.title) == ({}, "as given")


def test_brackets_and_quotes_hold_a_value_together() -> None:
    found = combinations(["stop=[。,！],'，'", "do_sample=false"])
    assert [one.sampling.stop for one in found] == [("。", "！"), ("，",)]


def test_contradictions_of_all_combinations_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        combinations(["temperature=0,0.5", "num_beams=1,3"])
    told = "\n".join(caught.value.details)
    assert "temperature=0 num_beams=1: temperature 0 can't be drawn from" in told
    assert "temperature=0.5 num_beams=3: num_beams 3 searches" in told
    assert "temperature=0.5 num_beams=1:" not in told
    for words, message in (
        (["temprature=1,2"], "temperature"),
        (["temperature"], "isn't a setting"),
        (["top_k=1,2", "top_k=3"], "given twice"),
    ):
        with pytest.raises(SettingsError, match=message):
            combinations(words)
    with pytest.raises(UsageError, match="100 combinations"):
        combinations(["seed=0,1,2,3,4,5,6,7,8,9", "top_k=1,2,3,4,5,6,7,8,9,10"])


def test_a_sweep_answers_side_by_side() -> None:
    whole = model()
    before = whole.sampling
    chosen = combinations(["temperature=0.2,3.0", "max_new_tokens=16", "num_return_sequences=4"])
    told: list[str] = []
    found = sweep(whole, asked(["Hi", "白日依山盡"]), chosen, lambda n, one: told.append(f"{n} {one.title}"))
    assert whole.sampling is before
    assert told == ["0 temperature=0.2", "1 temperature=3.0"]
    cold, hot = found.columns
    assert [len(several) for several in cold.answers] == [4, 4]
    assert set(cold.figures) == set(FIGURES)
    assert hot.figures["distinct_1"] > cold.figures["distinct_1"]  # type: ignore[operator]
    assert hot.figures["similarity"] < cold.figures["similarity"]  # type: ignore[operator]
    again = sweep(whole, asked(["Hi", "白日依山盡"]), chosen)
    assert again.to_json() == found.to_json(), "the same seed for all"


def test_the_page_is_whole_and_offline_and_shows_text_as_text() -> None:
    hostile = "<script>alert(1)</script> & 白日"
    found = sweep(model(), asked([hostile]), combinations(["top_k=1,20", "max_new_tokens=4"]))
    page = found.html()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; 白日" in page
    assert "http:" not in page
    assert "https:" not in page

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
            if tag not in ("meta",):
                self.open.append(tag)
            self.cells += tag == "td"

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.cells == 2 * len(FIGURES) + 2 * 3
