"""Makes form_metrics.json: what is copied and repeated, how long lines are and how they are marked.

Written from the descriptions in docs/eval.md with nothing of tunesmith's: loops over characters, so that two
readings have to agree. The cases have Han characters and marks alone, where a character is a token.

    python tests/golden/form_metrics.py
"""

import json
from fractions import Fraction
from pathlib import Path

MARKS = "，。、；：！？"
SEVEN = "經年郵驛許安棲，一會他鄉別恨迷。"
CASES = [
    # prompt, answer, reference
    (SEVEN, "今日海帆飄萬里，不堪腸斷對含啼。", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, "經年郵驛許安棲，不堪腸斷對含啼。", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, SEVEN, "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, "他鄉，別恨。", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, "今日海帆飄萬里，今日海帆飄萬里，今日海帆飄萬里。", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, "今日海帆飄，不堪腸斷對含啼。", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, "今日海帆飄萬里。不堪腸斷對含啼。", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (SEVEN, "今日海帆飄萬里不堪腸斷對含啼", "今日海帆飄萬里，不堪腸斷對含啼。"),
    (
        "床前明月光，疑是地上霜。",
        "舉頭望明月，低頭思故鄉。床前明月光，疑是地上霜。",
        "舉頭望明月，低頭思故鄉。",
    ),
    ("春眠", "夜來風雨聲！花落知多少？", "夜來風雨聲，花落知多少。"),
    ("春眠", "夜", "夜來風雨聲，花落知多少。"),
    ("春眠", "", "夜來風雨聲，花落知多少。"),
]


def characters(text):
    return [char for char in text if char not in MARKS]


def lines(text):
    found = [""]
    for char in text:
        if char in MARKS:
            found.append("")
        else:
            found[-1] += char
    return [line for line in found if line]


def copied(prompt, answer):
    said, asked = "".join(characters(answer)), "".join(characters(prompt))
    if not said:
        return Fraction(0)
    inside = 0
    for at in range(len(said)):
        # Is this character in some run of three that the prompt has?
        runs = [said[start : start + 3] for start in (at - 2, at - 1, at) if 0 <= start <= len(said) - 3]
        inside += any(run in asked for run in runs)
    return Fraction(inside, len(said))


def repeated(answer):
    said = lines(answer)
    again = sum(line in said[:at] for at, line in enumerate(said))
    return Fraction(again, len(said)) if said else Fraction(0)


def longest_common(left, right):
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if one == other else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def lengths(answer, reference):
    left, right = ([len(line) for line in lines(text)] for text in (answer, reference))
    return Fraction(longest_common(left, right), max(len(left), len(right))) if answer else Fraction(0)


def punctuation(answer, reference):
    left, right = ([char for char in text if char in MARKS] for text in (answer, reference))
    same = sum(one == other for one, other in zip(left, right, strict=False))
    if not answer or not same:
        return Fraction(int(bool(answer) and not left and not right))
    precision, recall = Fraction(same, len(left)), Fraction(same, len(right))
    return 2 * precision * recall / (precision + recall)


def golden():
    return [
        {
            "prompt": prompt,
            "prediction": answer,
            "references": [reference],
            "copied": float(copied(prompt, answer)),
            "repeated_lines": float(repeated(answer)),
            "line_lengths": float(lengths(answer, reference)),
            "punctuation": float(punctuation(answer, reference)),
        }
        for prompt, answer, reference in CASES
    ]


if __name__ == "__main__":
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
