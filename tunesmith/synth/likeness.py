"""How much of one text stands in another: sets of character n-grams, compared through an inverted index.

Letters are compared without case, width, punctuation and white space: a copy with other line breaks is
a copy.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field


def plain(text: str) -> str:
    """Letters and digits alone, in one width and case (NFKC)."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def shingles(text: str, length: int) -> frozenset[str]:
    """The n-grams of a text's letters and digits; of a shorter text, itself."""
    letters = plain(text)
    if len(letters) <= length:
        return frozenset([letters] if letters else [])
    return frozenset(letters[i : i + length] for i in range(len(letters) - length + 1))


@dataclass
class Likeness:
    """Texts that were seen, and which of them another is most like.

    `jaccard`: shared n-grams of all; else shared of the smaller text's (a text within another is like it).
    """

    length: int
    jaccard: bool = True
    _sets: list[int] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _index: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, text: str) -> None:
        """Remember a text."""
        found = shingles(text, self.length)
        for one in found:
            self._index[one].append(len(self._sets))
        self._sets.append(len(found))
        self._names.append(name)

    def nearest(self, text: str) -> tuple[float, str]:
        """The likeness, from 0 to 1, of the text that is most alike, and its name; (0, "") for none."""
        best, where = 0.0, ""
        for name, likeness in self.like(text):
            if likeness > best:
                best, where = likeness, name
        return best, where

    def like(self, text: str) -> list[tuple[str, float]]:
        """The names of all texts that share an n-gram, in the order they came, with their likeness."""
        found = shingles(text, self.length)
        shared = Counter(at for one in found for at in self._index.get(one, ()))
        sizes = {
            at: (len(found) + self._sets[at] - count) if self.jaccard else min(len(found), self._sets[at])
            for at, count in shared.items()
        }
        return [(self._names[at], shared[at] / sizes[at]) for at in sorted(shared)]
