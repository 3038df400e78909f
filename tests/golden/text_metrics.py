"""Makes text_metrics.json: exact match and F1 of English answers by the rules that SQuAD v1.1 publishes.

The rules (Rajpurkar et al. 2016, section 6.1): lower case; the 32 ASCII punctuation marks dropped; the words
a, an, the dropped; words are what white space separates; exact match compares what is left; F1 compares the
bags of words; both take the best reference. Written from those rules, with nothing of tunesmith's, so that
two independent readings have to agree:

    python tests/golden/text_metrics.py
"""

import json
import string
from fractions import Fraction
from pathlib import Path

CASES = [
    ("Paris", ["Paris"]),
    ("the city of Paris", ["Paris"]),
    ("It is Paris.", ["in Paris", "Paris, France"]),
    ("Don't panic!", ["dont panic"]),
    ("The quick brown fox jumps over the lazy dog", ["A quick brown fox jumped over a lazy dog."]),
    ("well-known author", ["well known author", "a wellknown author"]),
    ("to be or not to be", ["be or not"]),
    ("U.S. Army", ["US army"]),
    ("an apple a day", ["the apple of the day", "day"]),
    ("forty-two", ["42", "forty two"]),
    ("yes yes yes yes", ["yes"]),
    ("Denver Broncos", ["Carolina Panthers"]),
    ('"Santa Clara", California', ["Santa Clara, California", "Levi's Stadium in Santa Clara"]),
    ("The student submits the form to the dean's office two weeks before leave begins", [
        "Submit the form to the dean's office at least two weeks before the leave.",
        "two weeks before",
    ]),
]  # fmt: skip


def words(text):
    text = text.lower()
    text = "".join(character for character in text if character not in string.punctuation)
    return [word for word in text.split() if word not in ("a", "an", "the")]


def f1(prediction, reference):
    predicted, wanted = words(prediction), words(reference)
    left, common = list(wanted), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return Fraction(0)
    precision, recall = Fraction(common, len(predicted)), Fraction(common, len(wanted))
    return 2 * precision * recall / (precision + recall)


def golden():
    return [
        {
            "prediction": prediction,
            "references": references,
            "exact_match": float(any(words(prediction) == words(each) for each in references)),
            "f1": float(max(f1(prediction, each) for each in references)),
            "f1_as_fraction": str(max(f1(prediction, each) for each in references)),
        }
        for prediction, references in CASES
    ]


if __name__ == "__main__":
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(golden(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
