"""Names of our own in the page's tables, in Chinese; names of metrics stay as they are typed."""

from __future__ import annotations

from markupsafe import Markup, escape

from tunesmith.evaluate.pages import both

METRIC_NAMES = ("loss", "perplexity", "bits_per_byte", "exact_match", "f1_char", "verse_form")
LABELS = {
    "loss": "损失",
    "perplexity": "困惑度",
    "bits_per_byte": "每字节比特数",
    "exact_match": "完全一致",
    "f1_char": "字符 F1",
    "verse_form": "诗句格式",
    "mean length": "平均字符数",
    "empty answers": "空回答",
    "cut at the limit": "因长度上限中断",
    "tokens written": "生成 token 数",
    "prompt tokens": "提示 token 数",
    "seconds": "秒",
    "tokens/s": "token/秒",
    "peak memory (GiB)": "内存峰值（GiB）",
    "energy (J)": "能耗（焦耳）",
    "dropped": "丢弃",
    "cut": "截断",
    "split": "拆分",
    "unreadable": "无法解析",
    "template": "对话模板",
    "sampling": "采样设置",
    "device": "机器",
    "dtype": "数值格式",
    "label tokens": "标签 token 数",
}


def label(name: str) -> Markup:
    """A row's name in both languages; names of metrics stay as they are typed on the command line."""
    chinese = in_chinese(name)
    return escape(name) if chinese == name else both(name, chinese)


def in_chinese(name: str) -> str:
    """A row's name in Chinese, a metric's with the name itself; anything else as it is."""
    bare, comma, side = name.partition(", ")
    if bare not in LABELS:
        return name
    return (
        (f"{LABELS[bare]} {bare}" if bare in METRIC_NAMES else LABELS[bare]) + ("，" if comma else "") + side
    )
