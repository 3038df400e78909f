"""Sections -> train, valid, test, before anything is made of them: no row is made from two sides of the line.

A chunk of valid or test that is nearly a chunk of train is left out: it would be a question on what was
trained on.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from tunesmith.synth.chunk import Chunk
from tunesmith.synth.likeness import shingles

Part = Literal["train", "valid", "test"]
NEAR = 0.5  # of a text's 8-grams
SHINGLE = 8


def split_sections(chunks: Sequence[Chunk], valid: float, test: float, seed: int) -> dict[int, Part]:
    """The part of each section, by its number. `valid` and `test` are shares of all characters.

    Sections come in random order by `seed`; one is taken where it brings a part nearer to its share. Each
    part that is wanted gets one section at least, if there are enough.
    """
    sizes: dict[int, int] = {}
    for chunk in chunks:
        sizes[chunk.section] = sizes.get(chunk.section, 0) + chunk.end - chunk.start
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    total = sum(sizes.values())
    found: dict[int, Part] = {}
    shares: list[tuple[Part, float]] = [("valid", valid), ("test", test)]
    wanted = [(part, share) for part, share in shares if share > 0]
    for part, share in wanted:
        taken, target = 0, share * total
        for section in order:
            if section not in found and abs(taken + sizes[section] - target) < target - taken:
                found[section], taken = part, taken + sizes[section]
        if not taken and len(sizes) > len(found) + 1:
            # None is small enough: the smallest of those left, so that the part isn't empty.
            least = min((section for section in order if section not in found), key=lambda s: sizes[s])
            found[least] = part
    return {section: found.get(section, "train") for section in sorted(sizes)}


def too_near(chunks: Sequence[Chunk], parts: Mapping[int, Part]) -> dict[str, str]:
    """Chunks of valid and test that nearly stand in train, or test's in valid: their id -> the other's."""
    order = {part: [chunk for chunk in chunks if parts[chunk.section] == part] for part in get_args(Part)}
    found = _copies([*order["valid"], *order["test"]], order["train"])
    valid, test = ([chunk for chunk in order[part] if chunk.id not in found] for part in ("valid", "test"))
    return found | _copies(test, valid)


def _copies(held: Sequence[Chunk], others: Sequence[Chunk]) -> dict[str, str]:
    """Held chunks whose n-grams are in the others, all of these together, or that have one of them inside.

    Another edition is cut at other places: half of a chunk is then in one of the others, half in the next.
    The id that is found is of the one that was too much.
    """
    sizes: list[int] = []
    index: defaultdict[str, list[int]] = defaultdict(list)  # the held chunks alone are in memory
    for at, chunk in enumerate(held):
        own = shingles(chunk.text, SHINGLE)
        sizes.append(len(own))
        for one in own:
            index[one].append(at)
    copied: list[set[str]] = [set() for _ in held]
    found: dict[str, str] = {}
    for chunk in others:
        theirs = shingles(chunk.text, SHINGLE)
        shared: Counter[int] = Counter()
        for one in theirs:
            for at in index.get(one, ()):
                shared[at] += 1
                copied[at].add(one)
        for at, count in shared.items():
            if count >= NEAR * len(theirs) or len(copied[at]) >= NEAR * sizes[at]:
                found.setdefault(held[at].id, chunk.id)
    return found
