"""Our own sentences in the report, in Chinese. What people, models and libraries wrote stays as it is."""

from __future__ import annotations

import re

from tunesmith.evaluate.findings.sentences import phrases
from tunesmith.evaluate.judge import chinese as judged
from tunesmith.evaluate.section import Quoted

_TEMPLATES = (("its server", "其服务器的模板"), ("model's own", "模型自带的模板"))
# Whole texts or their parts; what isn't known stays English.
_PHRASES = [
    (re.compile(f"^{english}"), chinese)
    for english, chinese in (
        *phrases(),
        *judged.PHRASES,
        # benchmarks
        (r"Tasks$", "任务"),
        (r"task$", "任务"),
        (r"metric$", "指标"),
        (r"value$", "数值"),
        (r"standard error$", "标准误"),
        (
            r"By lm-evaluation-harness (\S+), whose standard errors these are\.$",
            r"由 lm-evaluation-harness \1 评测，标准误亦由其给出。",
        ),
        (r"(\d+) solved examples before each question\.$", r"每题之前有 \1 个解答示例。"),
        (r"The first (\d+) questions of each task\.$", r"每个任务取前 \1 题。"),
        (r"Prompts are written by the chat template\.$", "提示由对话模板写成。"),
        # verdicts
        (r"better$", "更好"),
        (r"worse$", "更差"),
        (r"higher$", "更高"),
        (r"lower$", "更低"),
        (
            r"cannot tell with n = (\d+) from (\d+) documents; at least (\d+) documents are needed$",
            r"n = \1（来自 \2 份文档）看不出差别；至少需 \3 份文档",
        ),
        (
            r"cannot tell with n = (\d+); at least (\d+) are needed$",
            r"n = \1 看不出差别；至少需 \2 条",
        ),
        (r"cannot tell with n = (\d+); about (\d+) are needed$", r"n = \1 看不出差别；约需 \2 条"),
        (r"cannot tell with n = (\d+)$", r"n = \1 看不出差别"),
        (r"the tokenizers differ: see bits_per_byte$", "分词器不同：请看 bits_per_byte"),
        # notes of a comparison
        (
            r"(\d+) of these (\d+) rows (?:was|were) trained on by (.+): figures on them show .*",
            r"这 \2 条数据中有 \1 条是 \3 训练过的：这些条上的数字反映的是背诵。没有见过的数据更能说明问题。",
        ),
        (
            r"(\d+) of (\d+) prompts don't show the row's choices, .*",
            r"\2 条提示中有 \1 条没有列出该行的选项，模型无从知道字母代表什么："
            r"指标 `choice` 在这些行上意义不大。"
            "请把选项写进题目。",
        ),
        *(
            (
                rf"The prompts are written by different templates: A by {a}, (?P<who>[B-Z]) by {b}\.$",
                rf"两个模型的提示由不同模板写成：A 用{a_chinese}，\g<who> 用{b_chinese}。",
            )
            for a, a_chinese in (*_TEMPLATES, (r"(?P<a>.+)", r" \g<a>"))
            for b, b_chinese in (*_TEMPLATES, (r"(?P<b>.+)", r" \g<b>"))
        ),
        (
            r"The (\d+) rows come from (\d+) documents: intervals and tests are over documents\.$",
            r"这 \1 条数据来自 \2 份文档：区间与检验按文档计算。",
        ),
        (r"The sampling settings differ\.$", "两边的采样设置不同。"),
        (
            r"(.+) failed on (\d+) rows? of (\d+), left out of all figures: (.*)",
            r"\1 在 \3 条数据中有 \2 条没有答上来，未计入任何数字：\4",
        ),
        (r"Compared are the (\d+) rows that all answered\.$", r"只比较了各方都答上来的 \1 条数据。"),
        (
            r"Taken: answers from (`.+`), references from (.+), prompts from (`.+`)\.$",
            r"所取的列：回答 \1，参考 \2，提示 \3。",
        ),
        (r"Taken: answers from (`.+`), references from (.+)\.$", r"所取的列：回答 \1，参考 \2。"),
        (
            r"(\d+) lines of (.+) have other references than their rows; those of (.+) are taken\.$",
            r"\2 中有 \1 行的参考答案与数据不同；以 \3 的为准。",
        ),
        (
            r"(.+) is joined to (.+) by prompts, as no line has an `id`\.$",
            r"\1 没有 `id`，按提示与 \2 对应。",
        ),
        (
            r"(.+) is joined to (.+) by the order of lines, as no line has an `id`\.$",
            r"\1 没有 `id`，按行的顺序与 \2 对应。",
        ),
        # rows of the data report
        (r"longer than (\d+) tokens$", r"超过 \1 个 token"),
        (r"its last reply alone is longer than (\d+) tokens$", r"仅最后一个回答就超过 \1 个 token"),
        (r"no label is left$", "没有剩下可训练的标签"),
        (r"it has no label$", "没有可训练的标签"),
        (r"windows without a label left out$", "去掉了没有标签的窗口"),
        (r"no reply to train on \(.*\)$", "没有可训练的回答"),
        (r"no reply is marked `train: true`$", "没有标记为 `train: true` 的回答"),
        (r"prompt and reply tokenised apart, .*", "提示与回答分开分词，因为有 token 跨越二者的边界"),
        (r"the template ends a reply with no special token; .*", "模板没有在回答末尾写结束符；已补上 eos"),
        (r"earlier replies without an end token, .*", "前面的回答没有结束符，因为模板没有写"),
        (r"text that the template writes in front of the reply .*", "模板写在回答之前的文字不参与训练"),
        (
            r"the template's generation blocks leave out the end .*",
            "模板的 generation 块漏掉结束符；仍参与训练",
        ),
        (r"one example for each trained reply, .*", "每个训练的回答各成一个样本，因为模板改写前面的回答"),
        (
            r"messages after the last trained reply left out.*",
            "最后一个训练的回答之后的消息被去掉：学不到东西",
        ),
        (
            r"messages marked `train: true` that aren't replies.*",
            "标记为 `train: true` 但不是回答的消息；只训练回答",
        ),
        (r"the tokenizer has no eos token, .*", "分词器没有 eos，因此文本末尾没有结束符"),
        # formats, templates, times
        (r"(\S+), because every row has (.+)$", r"\1，因为每一行都有 \2"),
        (r"(\S+), because the only row has (.+)$", r"\1，因为唯一的一行有 \2"),
        (r"(\S+), because (\d+) of (\d+) rows have (.+)$", r"\1，因为 \3 行中有 \2 行有 \4"),
        (r"(\S+), because it is a plain text file$", r"\1，因为是纯文本文件"),
        (r"(the )?model's own$", "模型自带"),
        (r"(\d+) s$", r"\1 秒"),
        (r"(\d+) min$", r"\1 分钟"),
        (r"(\d+) min (\d+) s$", r"\1 分 \2 秒"),
        (r"(\d+) h (\d+) min$", r"\1 小时 \2 分钟"),
        (r"(\d+) d$", r"\1 天"),
        (r"train$", "训练"),
        (r"valid$", "验证"),
    )
]


def in_chinese(text: str) -> str:
    """The sentence in Chinese, or as it is where it isn't one of ours."""
    if isinstance(text, Quoted):
        return text
    for english, chinese in _PHRASES:
        if found := english.match(text):
            told = found.expand(chinese)
            # A time within a sentence has words of its own.
            time = found.groupdict().get("time")
            return told.replace(time, in_chinese(time)) if time else told
    return text
