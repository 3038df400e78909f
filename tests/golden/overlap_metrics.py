"""Makes overlap_metrics.json: BLEU and chrF by sacrebleu, ROUGE by rouge_score.

ROUGE of Chinese: rouge_score with a tokenizer of one token a character, since its own deletes all of them.

    pip install sacrebleu rouge_score; python tests/golden/overlap_metrics.py

Made with sacrebleu 2.6.0 and rouge_score 0.1.2.
"""

import json
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

ENGLISH = [
    ("The cat sat on the mat.", ["The cat is on the mat.", "There is a cat on the mat."]),
    ("Submit the form two weeks before leave begins, please!", [
        "Submit the form to the dean's office two weeks before the leave begins.",
        "Please submit it two weeks earlier.",
    ]),
    ("Don't worry; it's 3.50 dollars (U.S.)", ["It costs 3.5 U.S. dollars.", "Do not worry: it is $3.50"]),
    ("yes", ["no", "yes"]),
    ("A completely different sentence about nothing at all", ["Unrelated words here", "Something else"]),
]  # fmt: skip
CHINESE = [
    ("今天天气很好，适合出门散步。", ["今天天气真好，适合出去散步。", "天气好，去散步吧。"]),
    ("学生应在开学前两周提交申请表。", ["学生需要在开学两周之前提交申请表格。", "开学前两周提交申请。"]),
    ("使用Python 3.11运行程序", ["用 Python 3.11 运行这个程序", "运行 Python 程序"]),
    ("不堪腸斷對含啼", ["今日海帆飄萬里，不堪腸斷對含啼。", "春眠不覺曉"]),
]
RARE = [("𠀋豈有此理", ["𠀋豈無理", "豈有此理"]), ("𡈽地廟", ["𡈽地公廟", "土地廟"])]


class Characters:
    """One token a character that is no mark."""

    def tokenize(self, text):
        return [char for char in text if char.isalnum()]


def rouge(case, scorer):
    prediction, references = case
    found = scorer.score_multi(references, prediction)
    return {name: score.fmeasure for name, score in found.items()}


def corpus(cases, metric):
    predictions = [prediction for prediction, _ in cases]
    streams = [list(stream) for stream in zip(*(references for _, references in cases), strict=True)]
    return metric.corpus_score(predictions, streams).score


def translated(cases, tokenizer):
    bleu = BLEU(tokenize=tokenizer)
    score = corpus(cases, bleu)
    return {
        "tokenizer": tokenizer,
        "cases": cases,
        "bleu": score,
        "signature": f"BLEU|{bleu.get_signature()}",
        "sentence_bleu": [
            BLEU(tokenize=tokenizer, effective_order=True).sentence_score(*case).score for case in cases
        ],
        "chrf": corpus(cases, CHRF()),
        "sentence_chrf": [CHRF().sentence_score(*case).score for case in cases],
    }


if __name__ == "__main__":
    names = ["rouge1", "rouge2", "rougeL"]
    english, chinese = RougeScorer(names), RougeScorer(names, tokenizer=Characters())
    han_only = [case for case in CHINESE if "Python" not in case[0]]
    golden = {
        "rouge": [{"case": case, **rouge(case, english)} for case in ENGLISH]
        + [{"case": case, **rouge(case, chinese)} for case in han_only + RARE],
        "corpora": [translated(ENGLISH, "13a"), translated(CHINESE, "zh"), translated(RARE, "char")],
    }
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
