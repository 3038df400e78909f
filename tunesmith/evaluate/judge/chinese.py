"""Every sentence and name of a judgement's sections in Chinese, as patterns with their expansions."""

from __future__ import annotations

SHARE = r"(\d+ % \[\d+ %, \d+ %\])"

PHRASES = (
    # titles and columns
    (r"Two answers compared$", "两个回答的比较"),
    (r"Scores by a rubric, from 1 to 5$", "按评分标准打分（1 到 5）"),
    (r"The judge$", "评判模型"),
    (r"The judge beside people$", "评判模型与人的对照"),
    (r"criterion$", "标准"),
    (r"score \[95 %\]$", "得分 [95 %]"),
    (r"overall$", "总分"),
    (r"verdict$", "结论"),
    # names of rows
    (r"rows$", "数据行"),
    (r"B's share of wins$", "B 获胜比例"),
    (r"sign test$", "符号检验"),
    (r"wins needed$", "所需胜数"),
    (r"both orders the same$", "两种顺序结论相同"),
    (r"flipped with the order$", "结论随顺序反转"),
    (r"first answer taken$", "选先出现的回答"),
    (r"longer answer won$", "较长的回答获胜"),
    (r"calls$", "调用"),
    (r"tokens$", "token 数"),
    (r"the same verdict$", "结论相同"),
    (r"Cohen's kappa$", "Cohen κ"),
    # their values
    (r"B (\d+), A (\d+), ties (\d+) \(left out below\)$", r"B \1，A \2，平 \3（下面不计平局）"),
    (rf"{SHARE}, Wilson, 95 %$", r"\1，Wilson，95 %"),
    (r"(p = \S+), exact, two-sided$", r"\1，精确，双侧"),
    (r"(\d+) of (\d+) for p < 0\.05$", r"\2 中的 \1，才有 p < 0.05"),
    (r"(\d+) of (\d+)( rows)?$", r"\2 中的 \1"),
    (r"(\d+), (\d+) malformed, (\d+) failed$", r"\1 次，其中格式有误 \2 次，失败 \3 次"),
    (r"([\d,]+) read, ([\d,]+) written$", r"读 \1，写 \2"),
    # verdicts
    (r"([AB]) is preferred\.$", r"更偏好 \1。"),
    (
        r"Cannot tell with n = (\d+); at least (\d+) that aren't ties are needed\.$",
        r"n = \1 看不出差别；至少需 \2 个非平局。",
    ),
    (r"Cannot tell with n = (\d+); about (\d+) are needed\.$", r"n = \1 看不出差别；约需 \2 条。"),
    (r"Cannot tell with n = (\d+)\.$", r"n = \1 看不出差别。"),
    # notes
    (r"(\d+) rows? left out: both answers are the same, .*", r"\1 行未计入：两个回答相同，没有询问。"),
    (r"(\d+) rows? left out: a side gave no answer\.$", r"\1 行未计入：有一方没有回答。"),
    (r"(\d+) rows? left out: a call to the judge failed\.$", r"\1 行未计入：调用评判模型失败。"),
    (r"(\d+) rows? left out: the judge's reply .*", r"\1 行未计入：评判模型的回复要求更正后仍无法读取。"),
    (r"The judge is (A and B|[AB]) itself: .*", r"评判模型就是 \1 本身：模型偏爱自己的回答。"),
    (
        r"The judge took the first answer more often .*",
        "评判模型选先出现的回答多于随机；交换顺序消除了这一影响，代价是更多平局。",
    ),
    (
        r"The judge took the second answer more often .*",
        "评判模型选后出现的回答多于随机；交换顺序消除了这一影响，代价是更多平局。",
    ),
    (
        r"The longer answer won (\d+) of (\d+) decided rows: .*",
        r"分出胜负的 \2 行中，较长的回答赢了 \1 行：可能是偏爱长度，交换顺序消除不了。",
    ),
    (
        r"In more than a quarter of the rows the judge took the opposite side .*",
        "超过四分之一的行里，交换顺序后评判模型改选另一方：它几乎分不出这些回答的高下。",
    ),
)
"""(English, Chinese): regular expressions from the beginning of a text."""
