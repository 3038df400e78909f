"""The rater's page in a real browser: by keyboard alone, from a file and a server, on a phone, dark."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluate.blind.made_test import HOSTILE, made, made_test
from tunesmith.evaluate.blind.folder import BlindTest
from tunesmith.evaluate.blind.page import blind_page
from tunesmith.evaluate.blind.ratings import read_raters
from tunesmith.evaluate.blind.report import blind_report
from tunesmith.serve.blind import BlindServer

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"),
    reason="Chromium isn't installed (apt-get install chromium)",
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
CODE = "```python\ndef f(x):\n    return x < 1 & x > 0\n```"
LONG = "今日無人見，空山有鳥來。" * 60 + "x" * 300
TEXTS = [HOSTILE, CODE, LONG, "", "第一行\n\n\t第三行  兩格", "短"]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def test(tmp_path: Path) -> BlindTest:
    """Ten pairs, the first of which are hostile, long, empty and of several lines."""
    return made(
        tmp_path, 10, lambda i: TEXTS[i % 6] + f"甲{i}" * (i != 3), lambda i: f"乙{i}", references=True
    ).test


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    context = browser.new_context(locale="en-US", viewport={"width": 1100, "height": 800})
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    yield page
    context.close()


@pytest.fixture
def server(test: BlindTest) -> Iterator[BlindServer]:
    with BlindServer(test) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def begin(page: sync_api.Page, name: str = "李雷") -> None:
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#start", state="hidden")


def press(page: sync_api.Page, key: str, done: int) -> None:
    """Press a key and wait until so many items are rated."""
    page.keyboard.press(key)
    rated(page, done)


def rated(page: sync_api.Page, done: int) -> None:
    # No wait_for_function: it evaluates strings, which the page's policy forbids.
    sync_api.expect(page.locator("#count")).to_have_text(re.compile(f"^{done} / "))


def test_a_file_from_first_key_to_report_by_keyboard_alone(
    test: BlindTest, page: sync_api.Page, tmp_path: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    file = blind_page(test.path)
    page.goto(file.as_uri())
    begin(page)
    items = test.public()["items"]
    for at, item in enumerate(items):
        assert page.inner_text("#count") == f"{at} / {len(items)}"
        press(page, {"甲": "1", "乙": "2"}["乙" if "乙" in item["right"] else "甲"], at + 1)
    page.wait_for_selector("#done:not([hidden])")
    text = page.inner_text("body")
    assert not re.search(r"\d", text.replace(f"{len(items)} / {len(items)}", "")), "no totals"
    page.keyboard.press("Tab")
    page.focus("#save")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "ratings-李雷.json"
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    assert asked == [file.as_uri()] + [url for url in asked[1:] if url.startswith("blob:")]
    assert page.errors == []
    report = blind_report(test.path, [saved])
    assert (report["wins"], report["losses"], report["raters"][0]["name"]) == (10, 0, "李雷")
    assert report["repeats"] == {"n": 1, "same": 1, "same_side": 0}


def test_a_file_goes_on_where_a_rater_stopped_and_takes_back(test: BlindTest, page: sync_api.Page) -> None:
    page.goto(blind_page(test.path).as_uri())
    begin(page)
    press(page, "1", 1)
    press(page, "Numpad2", 2)
    second = page.inner_text("#left")
    press(page, "0", 3)
    press(page, "Backspace", 2)
    assert page.inner_text("#left") == second
    page.reload()
    begin(page)
    rated(page, 2)
    with page.expect_download() as download:
        page.click("#save_early")
    kept = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert [rating["choice"] for rating in kept["ratings"]] == ["left", "right"]
    page.reload()
    begin(page, "韓梅梅")  # another person begins anew
    assert page.inner_text("#count") == f"0 / {len(test.public()['items'])}"


def test_the_server_keeps_each_choice_and_says_when_it_cant(
    test: BlindTest, page: sync_api.Page, server: BlindServer
) -> None:
    page.goto(server.link)
    assert page.url == server.link.partition("?")[0]  # the key isn't left in the address
    begin(page)
    press(page, "1", 1)
    press(page, "2", 2)
    press(page, "Backspace", 1)
    assert list(read_raters(test)[0].choices.values()) == ["left"]
    page.reload()
    begin(page)
    rated(page, 1)
    assert page.errors == []
    page.route("**/rate", lambda route: route.abort())
    page.keyboard.press("2")
    page.wait_for_selector("#problem:not([hidden])")
    assert "isn't saved" in page.inner_text("#problem")
    told, keys = page.locator("#problem").bounding_box(), page.locator("#rate nav").bounding_box()
    assert told["y"] + told["height"] <= keys["y"]  # beside the buttons, not over them
    assert page.inner_text("#count").startswith("1 /")
    page.unroute("**/rate")
    press(page, "2", 2)
    assert page.is_hidden("#problem")
    test.unsealed_file.write_text('{"at": "now"}', encoding="utf-8")
    page.keyboard.press("1")
    page.wait_for_selector("#problem:not([hidden])")
    assert "closed" in page.inner_text("#problem")


def test_a_key_held_down_and_keys_of_the_browser_rate_nothing(test: BlindTest, page: sync_api.Page) -> None:
    page.goto(blind_page(test.path).as_uri())
    begin(page, "12")  # digits of a name are no choices
    assert page.inner_text("#count").startswith("0 /")
    for _ in range(5):
        page.keyboard.down("1")  # repeats from the second one on
    page.keyboard.up("1")
    rated(page, 1)
    page.keyboard.press("Alt+1")
    page.keyboard.press("x")
    assert page.inner_text("#count").startswith("1 /")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_answers_are_text_and_fit_a_phone(browser: sync_api.Browser, test: BlindTest, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, locale="zh-CN", color_scheme=scheme, has_touch=True
    )  # fmt: skip
    page = context.new_page()
    page.goto(blind_page(test.path).as_uri())
    assert page.inner_text("#who button") == "开始"
    page.fill("#name", "李雷")
    page.tap("#who button")
    for item in test.public()["items"]:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for side in ("left", "right"):
            assert page.text_content(f"#{side}") == (item[side] or "（空）")
        assert page.text_content("#prompt") == item["prompt"]
        assert page.text_content("#reference .text") == item["references"][0]
        box = page.locator("[data-choice=right]").bounding_box()
        assert box["y"] + box["height"] <= 844  # always in reach, however long the answers are
        assert box["height"] >= 44
        page.tap("[data-choice=right]")
    assert page.title() == "Blind test · 盲测"
    assert "全部完成" in page.inner_text("#done")
    ground, ink = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("backgroundColor", "color")
    )
    assert (ground < ink) == (scheme == "dark")
    assert abs(ground - ink) > 400
    context.close()


def test_the_switch_changes_every_word(test: BlindTest, page: sync_api.Page) -> None:
    page.goto(blind_page(test.path).as_uri())
    assert "Your name" in page.inner_text("#start")
    page.click("[data-language=zh]")
    assert not re.search("[A-Za-z]{2}", page.inner_text("#start"))
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.focus("#name")
    begin(page)
    words = page.inner_text("#rate nav") + page.inner_text("#ask") + page.inner_text(".answers h2 >> nth=0")
    assert not re.search("[A-Za-z]{2}", words)


def test_the_words_of_both_languages_are_the_same_ones(test: BlindTest, page: sync_api.Page) -> None:
    page.goto(blind_page(test.path).as_uri())
    assert page.evaluate("Object.keys(WORDS.en).join() === Object.keys(WORDS.zh).join()")
    used = page.evaluate("[...document.querySelectorAll('[data-word]')].map(part => part.dataset.word)")
    assert set(used) <= set(page.evaluate("Object.keys(WORDS.en)"))


def test_the_report_in_a_browser(tmp_path: Path, page: sync_api.Page) -> None:
    test = made_test(tmp_path, 12, title=HOSTILE)
    page.goto(blind_page(test.path).as_uri())
    assert page.title() == HOSTILE
    begin(page, "Li")
    for at in range(len(test.public()["items"])):
        press(page, "1", at + 1)
    page.click("#save")
    with page.expect_download() as download:
        page.click("#save")
    blind_report(test.path, [download.value.path()])
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(test.report_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "cannot tell with n = 12" in page.inner_text("body")
    page.click("button[data-language=zh]")
    assert "n = 12 看不出差别" in page.inner_text("body")
    assert page.errors == []
