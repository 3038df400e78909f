"""Blind tests made of files of answers, and raters who answer by a rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.evaluate.blind.folder import BlindTest
from tunesmith.evaluate.blind.new import Made, Request, new
from tunesmith.evaluate.blind.ratings import append

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
A_NAME, B_NAME = "plain-base-7b", "runs/secret-tuned"


def write_answers(file: Path, answer: Callable[[int], str], n: int, model: str) -> Path:
    """A file as `generate` writes it, with prompts of several lines."""
    lines = [
        {
            "id": f"row-{i}",
            "prompt": f"第{i}題：請續寫。\n石室寒飆警，孫枝雅器裁。",
            "prediction": answer(i),
            "references": [f"參考{i}"],
            "model": model,
            "finish": "length" if i == 1 else "stop",
        }
        for i in range(n)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def made_test(
    folder: Path,
    n: int = 10,
    a: Callable[[int], str] = lambda i: f"甲{i}",
    b: Callable[[int], str] = lambda i: f"乙{i}\n第二行",
    **request: Any,
) -> BlindTest:
    """A test of two files; A's answers begin with 甲, B's with 乙."""
    return made(folder, n, a, b, **request).test


def made(folder: Path, n: int, a: Callable[[int], str], b: Callable[[int], str], **request: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        write_answers(folder / f"{side}.jsonl", answer, n, name)
        for side, answer, name in (("a", a, A_NAME), ("b", b, B_NAME))
    ]
    return new(Request(str(files[0]), str(files[1]), **request), refuse, output=folder / "test")


def refuse(*_: object) -> None:
    raise AssertionError("two files need no model")


def rate(
    test: BlindTest, name: str, choose: Callable[[dict[str, Any], int], str], count: int = 10**6
) -> None:
    """Let a rater choose on the first `count` items, given what the page shows and its place."""
    items = test.public()["items"][:count]
    append(test, [
        {"rater": name, "session": "", "item": item["id"], "choice": choose(item, at), "at": ""}
        for at, item in enumerate(items)
    ])  # fmt: skip


def likes_b(item: dict[str, Any], _: int) -> str:
    """A rater who knows B's answers by their first character."""
    return "left" if item["left"].startswith("乙") else "right"


def saved_file(test: BlindTest, name: str, choose: Callable[[dict[str, Any], int], str], file: Path) -> Path:
    """What the page of a rater elsewhere saves."""
    ratings = [
        {"item": item["id"], "choice": choose(item, at), "at": "2026-01-02T03:04:05Z"}
        for at, item in enumerate(test.public()["items"])
    ]
    kind = {"kind": "tunesmith blind ratings", "test": test.public()["test"], "rater": name, "session": "s1"}
    file.write_text(json.dumps({**kind, "ratings": ratings}, ensure_ascii=False), encoding="utf-8")
    return file
