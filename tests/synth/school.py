"""A small handbook, and a server whose maker and judge answer by rule: the same call, the same reply."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tunesmith
from tests.openai_server import Call, Odd, Server
from tunesmith.synth.run import Result

SUBJECTS = (
    "请假",
    "考试",
    "奖学金",
    "宿舍",
    "图书馆",
    "实验室",
    "食堂",
    "校车",
    "社团",
    "医疗",
    "学费",
    "毕业",
)


def handbook(sections: int = 12) -> str:
    """Chapters of three articles; every sentence has numbers of its own."""
    chapters = []
    for at, subject in enumerate(SUBJECTS[:sections]):
        lines = [f"第{at + 1}章 {subject}"]
        for article in range(3):
            number = at * 3 + article + 1
            lines.append(
                f"第{number}条 {subject}办法第{number}款由第{number + 40}号办公室负责，编号{number * 7919}。"
                f"办理{subject}手续的期限是{number * 131}天，费用是{number * 17}元。"
            )
        chapters.append("\n\n".join(lines))
    return "\n\n".join(chapters) + "\n"


def write_handbook(folder: Path, sections: int = 12) -> Path:
    """The handbook as a file."""
    file = folder / "手册.txt"
    file.write_text(handbook(sections), encoding="utf-8")
    return file


def passage_of(call: Call) -> str:
    """The passage that a call is about."""
    found = re.search(r"<passage>\n(.*)\n</passage>", call.asked, re.DOTALL)
    assert found is not None
    return found[1]


def judging(call: Call) -> bool:
    """Whether the judge is asked."""
    return "<answer>" in call.asked


def mending(call: Call) -> bool:
    """Whether a malformed reply is asked for again."""
    return len(call.body["messages"]) > 1


def made(call: Call) -> str:
    """Two questions for each passage, one on its first sentence with a number, one on its last."""
    sentences = [one for one in re.split(r"[。\n]", passage_of(call)) if re.search(r"\d{2}", one)]
    chosen = [sentences[0], sentences[-1]]
    rows = [{"question": f"学校规定里“{s[:14]}”具体怎么说？", "answer": f"{s}。"} for s in chosen]
    return json.dumps({"rows": rows}, ensure_ascii=False)


def verdict(call: Call, **changes: object) -> str:
    """All scores 5, with a quote from the passage."""
    quote = passage_of(call).split("。")[0].split("\n")[-1]
    value = {"reason": "有依据", "quote": quote, "grounded": 5, "complete": 5, "clear": 5}
    return json.dumps(value | changes, ensure_ascii=False)


def by_rule(call: Call) -> str | Odd:
    """Good rows and good verdicts."""
    return verdict(call) if judging(call) else made(call)


OPTIONS: dict[str, Any] = {"size": 130, "per_chunk": 2}


def make(folder: Path, server: Server, **options: Any) -> Result:
    names = {"model": f"{server.url}#maker", "judge": f"{server.url}#judge"}
    return tunesmith.make(folder / "手册.txt", folder / "rows.jsonl", **{**OPTIONS, **names, **options})


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """What must be the same whatever happened on the way: all but the calls and what they took."""
    return {f.name: f.read_bytes() for f in folder.glob("rows.*jsonl")}


def adds_up(account: dict[str, Any]) -> None:
    kept = sum(account["kept"].values())
    assert account["chunks"] == account["used"] + sum(account["left_out"].values())
    assert account["questions"] == account["answers"] + sum(account["empty"].values())
    written = kept - account["continued"]
    assert account["answers"] == written + account["waiting"] + sum(account["rejected"].values())
