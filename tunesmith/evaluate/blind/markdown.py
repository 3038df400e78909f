"""A blind test's report as Markdown, in English or Chinese."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.evaluate.blind.tables import RATER_COLUMNS, in_chinese, rater_rows, summary_rows
from tunesmith.evaluate.formats import MARK, Language
from tunesmith.evaluate.markdown import escaped, fenced, joined, table

CHINESE = {
    "Blind test by people": "人工盲测",
    "Items and votes": "题目与票",
    "prompt": "提示",
    "reference": "参考",
    "votes": "票",
    "neither": "不分上下",
}
NOTE = (
    "What most raters prefer is an item's one vote; repeats don't count there. Another choice of rows or "
    "another training seed isn't covered."
)
CHINESE |= {NOTE: "每题以多数评审的偏好计一票，重复的题不计入。未涵盖换一批数据或换一个训练种子的差异。"}


def blind_markdown(content: Mapping[str, Any], language: Language = "en") -> str:
    """The whole report of a blind test, every item with its votes at the end."""
    return joined([MARK, *blind_lines(content, language, level=1), *_items(content, language)])


def blind_lines(content: Mapping[str, Any], language: Language, level: int = 2) -> Iterator[str]:
    """Verdict, figures and raters, without the items; a part of a longer report."""

    def say(text: str) -> str:
        return in_chinese(CHINESE.get(text, text)) if language == "zh" else text

    name = content["title"] or content["ask"] or "A / B"
    yield f"{'#' * level} {say('Blind test by people')} · {escaped(name)}"
    yield ""
    yield escaped(f"A = {content['a']['model']}, B = {content['b']['model']}")
    yield ""
    yield f"**{escaped(say(content['verdict']))}**"
    yield ""
    yield from table(("", ""), summary_rows(content, chinese=language == "zh"))
    yield say(NOTE)
    yield ""
    for note in content["notes"]:
        yield escaped(say(note))
        yield ""
    rows = [(*row[:-1], say(row[-1])) for row in rater_rows(content)]
    yield from table([say(name) for name in RATER_COLUMNS], rows)


def _items(content: Mapping[str, Any], language: Language) -> Iterator[str]:
    def say(text: str) -> str:
        return CHINESE[text] if language == "zh" else text

    yield f"## {say('Items and votes')}"
    yield ""
    for at, row in enumerate(content["rows"], 1):
        yield f"**{at}.** {say('prompt')}"
        yield from fenced(row["prompt"])
        for side in ("a", "b"):
            yield side.upper()
            yield from fenced(row[side])
        for reference in row["references"]:
            yield say("reference")
            yield from fenced(str(reference))
        told = [
            f"{name} {say('neither') if vote == 'tie' else vote.upper()}"
            for name, vote in row["votes"].items()
        ]
        yield escaped(f"{say('votes')}: {', '.join(told)}")
        yield ""
