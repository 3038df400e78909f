"""Pictures of the report and of the blind test's pages for these docs: `make screenshots RUN=runs/tang-1`.

RUN is a run with a comparison of its own (`make demo` leaves one). The blind test is made of the answers that
this comparison has; its votes are made up by rule. Needs Chromium and playwright, and Pillow to make the
pictures small.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import tunesmith
from tunesmith.evaluate.blind.folder import BlindTest
from tunesmith.evaluate.blind.new import Request, new
from tunesmith.evaluate.blind.page import blind_page
from tunesmith.evaluate.blind.ratings import append
from tunesmith.evaluate.blind.report import blind_report
from tunesmith.rundir import read_jsonl

IMAGES = Path(__file__).with_name("images")
MOST_BYTES = 150_000
WIDE, PHONE = {"width": 1000, "height": 1240}, {"width": 360, "height": 780}
DARK = {"width": 1000, "height": 720}
RATERS = {"李雷": 0.8, "韓梅梅": 0.72, "Anna": 0.7}  # how often each prefers B


def main(folder: str = "runs/tang-1") -> None:
    """Make every picture anew, and say how large it is."""
    run = tunesmith.open_run(folder)
    report = tunesmith.report(run)
    comparison = max(filter(_is_comparison, sorted(run.eval.glob("*.json"))), key=_rows)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        alone = tunesmith.report(comparison, Path(place) / "report.html")
        shoot(browser, alone, "report", locale="en-US", viewport=WIDE)
        shoot(browser, alone, "report-zh", locale="zh-CN", viewport=WIDE)
        shoot(browser, report, "report-dark", _at_rows, locale="en-US", viewport=DARK, color_scheme="dark")
        phone: dict[str, Any] = {"viewport": PHONE, "device_scale_factor": 2, "locale": "zh-CN"}
        shoot(browser, alone, "report-phone", _at_changes, **phone)
        test = made_test(Path(place), comparison)
        shoot(
            browser,
            blind_page(test.path),
            "blind",
            _rated,
            locale="en-US",
            viewport={"width": 960, "height": 560},
        )
        rate(test)
        blind_report(test.path)
        tall = {"width": 960, "height": 900}
        shoot(browser, test.report_file, "blind-report", locale="en-US", viewport=tall)
        browser.close()


def _rows(comparison: Path) -> int:
    return int(json.loads(comparison.read_text(encoding="utf-8"))["n"])


def shoot(
    browser: Browser, file: Path, name: str, before: Callable[[Page], None] | None = None, **context: Any
) -> None:
    """A picture of what a reader sees of a page, after `before` has done something to it."""
    made = browser.new_context(**context)
    page = made.new_page()
    page.goto(file.absolute().as_uri())
    if before:
        before(page)
    picture = IMAGES / f"{name}.png"
    page.screenshot(path=str(picture))
    made.close()
    with Image.open(picture) as taken:
        taken.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)
    size = picture.stat().st_size
    print(f"{picture.name}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"{picture} is larger than {MOST_BYTES / 1000:.0f} kB.")


def made_test(place: Path, comparison: Path) -> BlindTest:
    """A blind test of the comparison's two sides, as files of answers; the same pictures each time."""
    result = json.loads(comparison.read_text(encoding="utf-8"))
    files = []
    for side in ("a", "b"):
        lines = [
            {"id": row["id"], "prompt": row["prompt"], "model": result[side]["model"], **_kept(row[side])}
            for row in read_jsonl(comparison.with_suffix(".jsonl"))
        ]
        files.append(place / f"{side}.jsonl")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files[-1].write_text(text, encoding="utf-8")
    asked = Request(
        *map(str, files),
        title="Tang quatrains · 唐詩絕句",
        ask="Which continues the poem better? 哪一首續得更好？",
    )
    return new(asked, lambda *_: None, output=place / "blind").test


def rate(test: BlindTest) -> None:
    """Made-up votes of three raters who prefer B more or less often."""
    draw, sides = random.Random(4), {place["id"]: place for place in test.key()["items"]}
    for name, share in RATERS.items():
        lines = []
        for item in test.public()["items"]:
            whose = "b" if draw.random() < share else "a"
            side = "left" if sides[item["id"]]["left"] == whose else "right"
            choice = "tie" if draw.random() < 0.12 else side
            lines.append({"rater": name, "session": "", "item": item["id"], "choice": choice, "at": ""})
        append(test, lines)


def _kept(answer: dict[str, Any]) -> dict[str, Any]:
    return {"prediction": answer["prediction"], "finish": answer["finish"]}


def _is_comparison(file: Path) -> bool:
    return json.loads(file.read_text(encoding="utf-8")).get("kind") == "comparison"


def _at_rows(page: Page) -> None:
    page.get_by_label("Search").first.fill("春風")
    page.evaluate("document.querySelector('[data-rows] h3').scrollIntoView()")
    page.mouse.wheel(0, -20)
    page.wait_for_timeout(200)


def _at_changes(page: Page) -> None:
    page.evaluate("document.querySelector('main h2').scrollIntoView()")


def _rated(page: Page) -> None:
    page.fill("#name", "李雷")
    page.keyboard.press("Enter")
    for key in "12012101":
        page.keyboard.press(key)
        page.wait_for_timeout(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
