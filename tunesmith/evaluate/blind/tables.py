"""A blind test's figures as rows of tables, in English and Chinese; no numpy, for the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

RATER_COLUMNS = ("rater", "rated", "B", "A", "ties", "p", "left", "repeats the same", "")

# A row's name and words, by language.
WORDS = {
    "items": ("items", "{n} rated of {items}", "题目", "共 {items} 题，已评 {n} 题"),
    "votes": (
        "votes",
        "B {wins}, A {losses}, ties {ties} (left out below)",
        "票数",
        "B {wins}，A {losses}，平 {ties}（下面不计平局）",
    ),
    "share": (
        "B's share of wins",
        "{value:.0%} [{low:.0%}, {high:.0%}], Wilson, 95 %",
        "B 获胜比例",
        "{value:.0%} [{low:.0%}, {high:.0%}]，Wilson，95 %",
    ),
    "p": ("sign test", "p = {p_value:.3g}, exact, two-sided", "符号检验", "p = {p_value:.3g}，精确，双侧"),
    "wins_needed": (
        "wins needed",
        "{wins_needed} of {decided} for p < 0.05",
        "所需胜数",
        "{decided} 中的 {wins_needed}，才有 p < 0.05",
    ),
    "same": (
        "raters agree",
        "the same in {same} of {pairs} pairs of votes",
        "评审间一致性",
        "{pairs} 对票中 {same} 对相同",
    ),
    "alpha": ("", "Krippendorff's alpha {alpha:.2f}", "", "Krippendorff α {alpha:.2f}"),
    "kappa": ("", "Cohen's kappa {kappa:.2f}", "", "Cohen κ {kappa:.2f}"),
    "repeats": (
        "repeats, sides swapped",
        "the same answer both times in {same} of {n}; the same side in {same_side}",
        "左右交换后重复的题",
        "{n} 题中 {same} 题两次选同一回答；{same_side} 题两次选同一侧",
    ),
    "left": (
        "left answer taken",
        "{value:.0%} [{low:.0%}, {high:.0%}]",
        "选左边的比例",
        "{value:.0%} [{low:.0%}, {high:.0%}]",
    ),
}
CHINESE = {
    "rater": "评审",
    "rated": "已评",
    "ties": "平",
    "left": "选左",
    "repeats the same": "重复题一致",
    "late, not counted": "迟到，未计入",
}
_SENTENCES = [
    (r"(\d+) rows? on which both gave the same answer: .*", r"\1 题两边回答相同：未显示，未计入。"),
    (r"(\d+) answers? of ([AB]) reached the limit .*", r"\2 的 \1 个回答达到长度上限，可能被截断。"),
    (r"(\d+) of (\d+) items were rated by nobody\.", r"\2 题中有 \1 题没有人评。"),
    (
        r"Raters took the left answer more often .*",
        "评审选左边多于随机。两个模型在左右两侧的次数相同，因此不偏向任何一方，但会模糊结果。",
    ),
    (
        r"Raters took the right answer more often .*",
        "评审选右边多于随机。两个模型在左右两侧的次数相同，因此不偏向任何一方，但会模糊结果。",
    ),
    (r"Ratings that came after the unsealing: (.*)", r"解封之后到达的评分：\1"),
    (r"([AB]) is preferred", r"更偏好 \1"),
    (
        r"cannot tell with n = (\d+); at least (\d+) that aren't ties are needed",
        r"n = \1 看不出差别；至少需 \2 个非平局",
    ),
    (r"cannot tell with n = (\d+); about (\d+) are needed", r"n = \1 看不出差别；约需 \2 条"),
    (r"cannot tell with n = (\d+)", r"n = \1 看不出差别"),
]


def in_chinese(sentence: str) -> str:
    """A verdict, a note or a column's name of ours in Chinese; anything else as it is."""
    for english, chinese in _SENTENCES:
        if found := re.fullmatch(english, sentence):
            return found.expand(chinese)
    return CHINESE.get(sentence, sentence)


def summary_rows(content: Mapping[str, Any], *, chinese: bool = False) -> list[tuple[str, str]]:
    """(name, value) rows of the figures, for the terminal and the page."""

    def row(name: str, **figures: Any) -> tuple[str, str]:
        label, words = WORDS[name][2:] if chinese else WORDS[name][:2]
        return label, words.format(**figures).replace("%", " %").replace("  %", " %")

    rows = [row("items", **content), row("votes", **content)]
    if content["share"]:
        rows += [row("share", **content["share"]), row("p", **content)]
    if content["wins_needed"]:
        rows.append(row("wins_needed", **content))
    if agreement := content["agreement"]:
        alpha, kappa = agreement["krippendorff_alpha"], agreement["cohen_kappa"]
        label, words = row("same", **agreement)
        told = [words]
        told += [row("alpha", alpha=alpha)[1]] if alpha is not None else []
        told += [row("kappa", kappa=kappa)[1]] if kappa is not None else []
        rows.append((label, ("，" if chinese else ", ").join(told)))
    if content["repeats"]["n"]:
        rows.append(row("repeats", **content["repeats"]))
    if content["first_position"]:
        rows.append(row("left", **content["first_position"]["share"]))
    return rows


def rater_rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a rater under RATER_COLUMNS."""
    return [
        (
            rater["name"],
            f"{rater['rated']}/{rater['of']}",
            str(rater["b"]),
            str(rater["a"]),
            str(rater["ties"]),
            "" if rater["p_value"] is None else f"{rater['p_value']:.3g}",
            f"{rater['left']}/{rater['left'] + rater['right']}",
            f"{rater['repeats']['same']}/{rater['repeats']['n']}",
            "" if rater["counted"] else "late, not counted",
        )
        for rater in content["raters"]
    ]
