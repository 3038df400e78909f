"""Texts that a tokenizer may stumble over, drawn from a seed: the same in every export, everywhere.

Each kind of text is what once broke a converted tokenizer in somebody's hands: runs of spaces, marks that
combine, emoji of several code points, digits, code, Chinese beside English, special tokens inside a text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

SEED = 20261123

_COMMON = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"  # noqa: E501
_RARE = "龘靐齉齾爩鱻麤龗灪吁籲讟钃厵爨虋鬱霊髙﨑𠮷𡈽𪚥𠀋"
_TEXT = (
    "the of and to in is that it was for on are with as his they at be this from have or by one had not but "
    "what all were when we there can an your which their said if do will each about how up out them then she "
    "many some so these would other into has more her two like him see time could no make than first been "
    "its who now people my made over did down only way find use may water long little very after "
    "words called don't it's we're I'll they've Déjà naïve façade Zürich smørrebrød Привет мир שלום مرحبا "
    "नमस्ते สวัสดี こんにちは 안녕하세요 Ελλάδα"
)
_WORDS = _TEXT.split()
_CODE = (
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}", "SELECT * FROM t;",
    "if __name__ == '__main__':\n\tmain()\n", "#include <stdio.h>", "{\"a\": [1, 2, {\"b\": null}]}",
    "<div class=\"x\">&nbsp;</div>",
    "x = lambda a,b: a<<2 | b>>1", "$HOME/.bashrc && echo \"$?\"", "C:\\temp\\new",
    "\\frac{a}{b} \\sum_{i=0}^{n}", "```python\nprint('你好')\n```", "https://例子.测试/路径?q=1&r=2#top",
)  # fmt: skip
_PICTURES = "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇨🇳 🇩🇪 ✈️ 1️⃣ ☃ 🫠 👩🏿‍🚀"
_EMOJI = _PICTURES.split()
_SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u2028",
    "        ",
)
_MARKS = (
    "é",
    "ñ",
    "ǖ",
    "ﬁ",
    "½",
    "№",
    "…",
    "—",
    "“”",
    "‘",
    "，",
    "。",
    "！？",
    "《》",
    "１２３",
    "Ａｂ",
    "\u0301",
    "\ufeff",
    "\x00",
    "\x07",
    "�",
)


def texts(special: Sequence[str], count: int, seed: int = SEED) -> list[str]:
    """`count` texts, no two alike in kind for long; `special` are the tokenizer's own tokens, put into
    some."""
    chance = random.Random(seed)
    kinds: list[Callable[[random.Random], str]] = [
        _chinese, _english, _mixed, _digits, _spaced, _code, _emoji, _anything,
        lambda c: _with_special(c, special),
    ]  # fmt: skip
    fixed = ["", " ", "\n", "a", "的", "Hello", "你好，世界", *_CODE, *_EMOJI, *_SPACES, *_MARKS, *special]
    return (fixed + [kinds[at % len(kinds)](chance) for at in range(max(0, count - len(fixed)))])[:count]


def _chinese(c: random.Random) -> str:
    text = "".join(c.choice(_COMMON if c.random() < 0.95 else _RARE) for _ in range(c.randint(1, 30)))
    return text + c.choice(["", "。", "？", "，", "……"])


def _english(c: random.Random) -> str:
    words = [c.choice(_WORDS) for _ in range(c.randint(1, 16))]
    words = [w.upper() if c.random() < 0.1 else w.capitalize() if c.random() < 0.2 else w for w in words]
    return " ".join(words) + c.choice(["", ".", "!", "?", "...", ";"])


def _mixed(c: random.Random) -> str:
    return c.choice(["", " "]).join(
        c.choice((_chinese, _english, _digits))(c) for _ in range(c.randint(2, 4))
    )


def _digits(c: random.Random) -> str:
    number = "".join(c.choice("0123456789") for _ in range(c.randint(1, 14)))
    return c.choice(
        [number, f"-{number}", f"{number}.{number[:3]}", f"${number}", f"{number}%", f"{number[:4]}年"]
    )


def _spaced(c: random.Random) -> str:
    pieces = [c.choice((*_SPACES, c.choice(_WORDS), c.choice(_COMMON))) for _ in range(c.randint(2, 12))]
    return "".join(pieces)


def _code(c: random.Random) -> str:
    return c.choice(["", "\n", "    "]).join(c.choice(_CODE) for _ in range(c.randint(1, 3)))


def _emoji(c: random.Random) -> str:
    return "".join(c.choice((*_EMOJI, *_MARKS, " ", c.choice(_WORDS))) for _ in range(c.randint(1, 8)))


def _anything(c: random.Random) -> str:
    """Characters from everywhere but the surrogates, which are no text."""
    points = (
        c.randint(0x20, 0x2FFF) if c.random() < 0.7 else c.randint(0x3000, 0xD7FF)
        for _ in range(c.randint(1, 12))
    )
    return "".join(map(chr, points))


def _with_special(c: random.Random, special: Sequence[str]) -> str:
    if not special:
        return _mixed(c)
    pieces = [
        c.choice((c.choice(special), _english(c), _chinese(c), " ", "\n")) for _ in range(c.randint(1, 6))
    ]
    return "".join(pieces)
