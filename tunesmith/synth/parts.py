"""Sections -> train, valid, test, before anything is made of them: no row is made from two sides of the line.

A chunk of valid or test that is nearly a chunk of train is left out: it would be a question on what was
trained on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from tunesmith.synth.chunk import Chunk
from tunesmith.synth.likeness import Likeness

Part = Literal["train", "valid", "test"]
NEAR = 0.5  # of the smaller text's 8-grams
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
    found: dict[str, str] = {}
    held = Likeness(SHINGLE, jaccard=False)  # the smaller side alone is in memory
    order = {part: [chunk for chunk in chunks if parts[chunk.section] == part] for part in get_args(Part)}
    test = {chunk.id for chunk in order["test"]}
    for chunk in (*order["valid"], *order["test"]):
        held.add(chunk.id, chunk.text)
    for chunk in order["train"]:
        for name, likeness in held.like(chunk.text):
            if likeness >= NEAR:
                found.setdefault(name, chunk.id)
    for chunk in order["valid"]:
        for name, likeness in held.like(chunk.text) if chunk.id not in found else ():
            if likeness >= NEAR and name in test:
                found.setdefault(name, chunk.id)
    return found
