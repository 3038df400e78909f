"""Makes reading_metrics.json: SQuAD v1.1 and CMRC 2018 by their published rules, with nltk for English words.

CMRC 2018 (Cui et al. 2019; evaluation script v5): lower case; the marks of its list dropped; a character of
U+4E00 to U+9FA5 is a token, what lies between is cut by nltk's word tokenizer; F1 of the longest common
substring of tokens; exact match of what is left of the text. SQuAD v1.1 (Rajpurkar et al. 2016): lower case,
string.punctuation and a/an/the dropped, white space; F1 of bags. The best reference counts. Written with
nothing of tunesmith's:

    pip install nltk; python tests/golden/reading_metrics.py

Made with nltk 3.10.
"""

import difflib
import json
import string
from collections import Counter
from pathlib import Path

from nltk.tokenize import word_tokenize

MARKS = list("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CASES = [
    ("北京大学", ["北京大学"]),
    ("是北京大学。", ["北京大学", "北大"]),
    ("《红楼梦》的作者曹雪芹", ["曹雪芹", "作者是曹雪芹"]),
    ("大约3.5公里", ["3.5公里", "约3,500米"]),
    ("使用iPhone 15 Pro拍摄", ["用 iPhone 15 拍摄"]),
    ("Don't Panic, it's only 5%", ["don't panic", "it's 5%"]),
    ("1998年5月4日", ["1998-05-04", "1998年5月"]),
    ("学生需在开学前两周提交申请表。", ["开学前两周", "需提前两周提交"]),
    ("……不知道……", ["不知道"]),
    ("“知之为知之”", ["知之为知之，不知为不知"]),
    ("完全无关", ["答案"]),
    ("U.S. Army (1st Division)", ["US army", "1st division"]),
    ("他说‘好’", ["他说“好”"]),
    ("the theory of an atom", ["theory of the atom"]),
    ("𠀋豈", ["𠀋"]),
    ('He said "yes".', ["yes", "he said: yes"]),
]


def cmrc_text(text):
    return "".join(c for c in text.lower().strip() if c not in MARKS)


def cmrc_tokens(text):
    found, english = [], ""
    for char in cmrc_text(text) + "\u4e00":  # the last one is taken off again
        if "\u4e00" <= char <= "\u9fa5":
            # Without a model for sentences, which is a download; a full stop inside stays with its word.
            found += word_tokenize(english, preserve_line=True) if english else []
            found.append(char)
            english = ""
        else:
            english += char
    return found[:-1]


def cmrc_f1(prediction, reference):
    left, right = cmrc_tokens(prediction), cmrc_tokens(reference)
    same = difflib.SequenceMatcher(None, left, right, autojunk=False).find_longest_match().size
    return (
        2 * (same / len(left)) * (same / len(right)) / (same / len(left) + same / len(right)) if same else 0.0
    )


def squad_words(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def squad_f1(prediction, reference):
    left, right = squad_words(prediction), squad_words(reference)
    same = sum((Counter(left) & Counter(right)).values())
    return (
        2 * (same / len(left)) * (same / len(right)) / (same / len(left) + same / len(right)) if same else 0.0
    )


if __name__ == "__main__":
    golden = [
        {
            "prediction": prediction,
            "references": references,
            "cmrc_tokens": cmrc_tokens(prediction),
            "cmrc2018_em": float(any(cmrc_text(prediction) == cmrc_text(each) for each in references)),
            "cmrc2018_f1": max(cmrc_f1(prediction, each) for each in references),
            "squad_em": float(any(squad_words(prediction) == squad_words(each) for each in references)),
            "squad_f1": max(squad_f1(prediction, each) for each in references),
        }
        for prediction, references in CASES
    ]
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
