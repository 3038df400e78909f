"""Rows of the report in a real browser: searched, filtered, sorted, paged, by keyboard; also very many."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.browser import LOW_CONTRAST, NEEDED, PHONE, chromium, opened, sync_api
from tests.evaluate.made_result import made_result
from tests.evaluate.made_run import made_run
from tunesmith.evaluate.report.write import report

pytestmark = NEEDED
expect = sync_api.expect


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison of 60 rows that belongs to no run."""
    return report(made_result(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, alone: Path) -> Iterator[Any]:
    with opened(browser, alone, viewport={"width": 1280, "height": 900}) as page:
        yield page
        assert page.errors == []
        assert page.asked == [alone.as_uri()]
        assert page.title() == "base → runs/tang-1 · tunesmith"  # no answer ran


def ids(page: Any) -> list[int]:
    return [int(text) for text in page.locator(".row-head .id").all_inner_texts()]


def by(page: Any) -> Any:
    """The list of measures."""
    return page.locator("label", has_text="依据").locator("select")


def test_all_rows_are_there_a_page_at_a_time(page: Any) -> None:
    assert ids(page) == list(range(25))
    expect(page.locator(".status")).to_have_text("Rows 1–25 of 60第 1–25 行，共 60 行")
    back, more = page.locator(".pages button").all()
    expect(back).to_be_disabled()
    more.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert ids(page) == list(range(50, 60))
    expect(more).to_be_disabled()
    back.click()
    assert ids(page) == list(range(25, 50))


def test_search_finds_chinese_and_english_at_once(page: Any) -> None:
    search = page.get_by_label("Search")
    search.fill("answer plain 49")
    assert ids(page) == [49]
    assert page.locator("mark").all_inner_texts()[:3] == ["Plain", "ANSWER", "49"]
    search.fill("水三")
    assert ids(page) == [2, 12, 22, 32, 42, 52]  # 坐來山水三
    search.fill("水三 七言")  # groups are found too, and every word must be there
    assert ids(page) == [12, 42]
    search.fill("ＰＬＡＩＮ　ＡＮＳＷＥＲ　59")  # full width
    assert ids(page) == [59]
    search.fill("<img src=x")
    assert ids(page)[:2] == [4, 10]
    search.fill("not there at all")
    assert ids(page) == []
    expect(page.locator(".status")).to_contain_text("Rows 0 of 0 (60 in all)")


def test_filters(page: Any) -> None:
    show, measure = page.get_by_label("Show"), by(page)
    assert measure.input_value() == "1"  # f1_char, the primary metric, behind the loss
    show.select_option("better")
    assert ids(page)[:4] == [0, 3, 6, 9]
    show.select_option("worse")
    assert ids(page) == []
    show.select_option("same")
    assert len(ids(page)) == 25
    show.select_option("identical")
    assert ids(page)[:4] == [1, 5, 7, 11]
    show.select_option("empty")
    assert ids(page) == list(range(2, 60, 6))
    show.select_option("cut")
    assert ids(page) == list(range(4, 60, 5))
    page.get_by_label("form").select_option(label="七言")
    assert ids(page) == list(range(9, 60, 15))
    show.select_option("all")
    measure.select_option(label="loss")
    show.select_option("better")  # less is better
    assert ids(page)[:3] == [0, 3, 6]
    expect(page.locator(".status")).to_contain_text("of 20 (60 in all)")


def test_sorting_by_change_and_length(page: Any) -> None:
    order = page.get_by_label("Order")
    order.select_option("down")
    assert ids(page)[:4] == [0, 3, 6, 9]
    by(page).select_option(label="length")
    assert ids(page)[:2] == [4, 10]  # the hostile ones are the longest
    order.select_option("up")
    assert ids(page)[0] % 6 == 2  # the empty ones
    order.select_option("long")
    assert ids(page)[:2] == [4, 10]
    order.select_option("file")
    assert ids(page)[:2] == [0, 1]


def test_everything_is_reached_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.closest('label, nav, summary')?.innerText || ''")
        )
    named = " ".join(reached)
    for name in ("Search", "Show", "Order", "form", "Next →", "all scores"):
        assert name in named, name
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


def test_the_switch_changes_the_tools_too(page: Any) -> None:
    page.click("button[data-language=zh]")
    assert "变好最多在前" in page.get_by_label("排序").inner_text()
    assert page.get_by_label("搜索").get_attribute("placeholder") == "文字，words"
    expect(page.locator(".status")).to_contain_text("第 1–25 行，共 60 行")
    text = page.inner_text("main")
    for english in ("better", "Rows", "Before and after", "By group", "worse", "verdict", "cannot tell"):
        assert english not in text, english


def test_without_a_script_the_first_rows_are_there(browser: Any, tmp_path: Path) -> None:
    file = report(made_result(tmp_path, 120))
    with opened(browser, file, java_script_enabled=False) as page:
        assert page.locator(".rows .answer").count() == 100
        assert "These are the first rows" in page.inner_text("main")
        assert page.get_by_label("Search").count() == 0


def test_charts_have_words_for_who_cannot_see_them(page: Any) -> None:
    charts = page.locator("svg:visible").all()
    assert len(charts) >= 5
    for chart in charts:
        assert chart.get_attribute("role") == "img"
        assert chart.locator("> title").text_content()
        assert chart.locator("> desc").text_content()
    told = page.locator("svg:visible > desc").first.text_content()
    assert "f1_char (n = 60): +0.3" in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_all_text_stands_out(browser: Any, alone: Path, scheme: str, width: int) -> None:
    with opened(browser, alone, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        page.get_by_label("Search").fill("山水")
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        seen = page.evaluate(LOW_CONTRAST, 4.5)
        assert seen["found"] == []
        assert seen["colours"] >= 3  # ink, soft, better
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ("21, 24, 27" in ground) == (scheme == "dark")


@pytest.mark.parametrize("width", [360, 600, 821, 1280])
def test_no_width_scrolls_sideways(browser: Any, alone: Path, width: int) -> None:
    with opened(browser, alone, viewport={"width": width, "height": 800}) as page:
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        hidden = (
            "[...document.querySelectorAll('table, figure, .tools, .answer')]"
            ".filter(part => part.getBoundingClientRect().right > innerWidth + 0.5)"
        )
        assert page.evaluate(f"{hidden}.map(part => part.outerHTML.slice(0, 200))") == []


def test_paper_is_white_without_tools_and_with_everything_open(
    browser: Any, alone: Path, tmp_path: Path
) -> None:
    with opened(browser, alone, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate(LOW_CONTRAST, 4.5)["found"] == []
        assert not page.locator(".tools").is_visible()
        assert not page.locator(".languages").is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details:not([open])").count() > 0
        page.pdf(path=str(tmp_path / "page.pdf"))
        assert (tmp_path / "page.pdf").stat().st_size > 20_000


def test_five_thousand_rows_are_quick_and_small(browser: Any, tmp_path: Path) -> None:
    figures = made_result(tmp_path, 60)
    lines = [json.loads(line) for line in figures.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    many = [
        {**lines[at % 60], "id": str(at), "prompt": f"第{at}題。" + "石室寒飆警，" * 20} for at in range(5000)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in many)
    figures.with_suffix(".jsonl").write_text(text, encoding="utf-8")
    file = report(figures)
    assert file.stat().st_size < 8_000_000
    with opened(browser, file, viewport=PHONE) as page:
        expect(page.locator(".status")).to_contain_text("of 5,000")
        search = page.get_by_label("Search")
        search.fill("題")  # the first search makes the texts ready
        begun = time.monotonic()
        search.fill("第4999題")
        expect(page.locator(".row-head .id")).to_have_text(["4999"])
        assert time.monotonic() - begun < 2  # 50 ms, and the neighbours of this machine


def test_a_run_has_the_same_rows(browser: Any, tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    made_result(run.eval)
    made_result(run.eval / "other")  # not a result of the run's own folder
    with opened(browser, report(run), viewport=PHONE) as page:
        assert page.locator("[data-rows]").count() == 1
        assert page.locator("h1").inner_text() == "tang-1"
        assert ids(page) == list(range(25))
        assert page.errors == []
