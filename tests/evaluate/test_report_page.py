"""report.html in a real browser: it asks for nothing, fits a phone, and runs no foreign script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluate.browser import NEEDED, chromium, sync_api
from tests.evaluate.made_run import PROMPT, made_run
from tunesmith.evaluate.report import write_report

pytestmark = NEEDED
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"

DIFFERENCE = {"value": -0.123, "low": -0.221, "high": -0.042}
METRIC = {"a": 0.5, "b": 0.6, "wins": 123, "losses": 104, "ties": 273, "difference": DIFFERENCE}
UNDECIDED = "no difference beyond chance on these rows"
COMPARISON = {
    "kind": "comparison", "data": "test.jsonl", "n": 500,
    "a": {"model": "smollm2-135m", "perplexity": 12.1, "mean_length": 12, "seconds": 3},
    "b": {"model": "runs/tang-1", "perplexity": 8.3, "mean_length": 11, "seconds": 3},
    "loss": {"a": 2.5, "b": 2.1, "difference": DIFFERENCE, "verdict": "better"},
    "metrics": {"exact_match": {**METRIC, "verdict": UNDECIDED}, "f1_char": {**METRIC, "verdict": UNDECIDED}},
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with comparisons, whose last sample answer is an attack."""
    run = made_run(tmp_path_factory.mktemp("report") / "tang-1")
    with run.samples_file.open("a", encoding="utf-8") as file:
        line = {"step": 41, "prompt": PROMPT, "answer": HOSTILE, "reference": HOSTILE}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    run.eval.mkdir(exist_ok=True)
    (run.eval / "test.compare.json").write_text(json.dumps(COMPARISON), encoding="utf-8")
    return write_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A page as on a phone, 390 points wide, in light or dark."""
    size = {"width": 390, "height": 844}
    context = browser.new_context(viewport=size, color_scheme=request.param, locale="en-US")
    yield context.new_page()
    context.close()


def test_the_page_asks_for_nothing_and_has_no_errors(page: sync_api.Page, report: Path) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    assert errors == []


def test_it_fits_a_phone(page: sync_api.Page, report: Path) -> None:
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("svg:visible").first.bounding_box()["width"] > 250


@pytest.mark.parametrize("width", [1100, 900, 390])
def test_nothing_is_cut_off_at_any_width(browser: sync_api.Browser, report: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, locale="en-US")
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    hidden = (
        "[...document.querySelectorAll('.scroll, pre')].filter(part => part.scrollWidth > part.clientWidth)"
    )
    assert page.evaluate(f"{hidden}.map(part => part.outerHTML.slice(0, 200))") == []
    for verdict in page.locator(".compared td:last-child .verdict").all():
        box = verdict.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    # A place in a file stays on one line where there is room for it.
    for place in page.locator(".named td:first-child").all() if width > 720 else []:
        assert place.bounding_box()["height"] < 2 * 24
    page.close()


def test_the_switch_changes_every_label(page: sync_api.Page, report: Path) -> None:
    page.goto(report.as_uri())
    assert "Validation loss" in page.inner_text("body")
    assert "验证损失" not in page.inner_text("body")
    page.click("button[data-language=zh]")
    assert "验证损失" in page.inner_text("body")
    assert "Validation loss" not in page.inner_text("body")


def test_a_chinese_reader_gets_chinese_at_once(browser: sync_api.Browser, report: Path) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(report.as_uri())
    assert "验证损失" in page.inner_text("body")
    context.close()


def test_answers_are_text_never_html(page: sync_api.Page, report: Path) -> None:
    page.goto(report.as_uri())
    assert page.title() == "tang-1 · tunesmith"
    assert "<script>document.title" in page.locator("body").text_content()


def test_dark_is_dark_and_light_is_light(page: sync_api.Page, report: Path) -> None:
    page.goto(report.as_uri())
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ground, ink = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("backgroundColor", "color")
    )
    assert (ground < ink) == dark
    assert abs(ground - ink) > 400
