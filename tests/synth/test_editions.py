"""Two editions of one text, cut at other places: what is held out doesn't stand in training."""

from __future__ import annotations

import random

from tunesmith.synth.chunk import Chunk, cut
from tunesmith.synth.documents import Document
from tunesmith.synth.likeness import shingles
from tunesmith.synth.parts import NEAR, Part, split_sections, too_near


def sentences(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return "".join(
        "".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(24)) + "。" for _ in range(count)
    )


def editions() -> list[Chunk]:
    """The second begins with half a chunk that is new, so that its cuts are in the middle of the first's."""
    body = sentences(400, 1)
    first = cut(Document("a", "a", body), 1000)
    second = Document("b", "b", sentences(20, 2) + body)
    return [*first, *cut(second, 1000, first_section=first[-1].section + 1)]


def test_a_chunk_of_which_each_half_stands_in_another_is_held_out_of_none() -> None:
    chunks = editions()
    parts = split_sections(chunks, 0.1, 0.1, 42)
    near = too_near(chunks, parts)
    train = {one for chunk in chunks if parts[chunk.section] == "train" for one in shingles(chunk.text, 8)}
    held = [chunk for chunk in chunks if parts[chunk.section] != "train"]
    copied = {}
    for chunk in held:
        own = shingles(chunk.text, 8)
        copied[chunk.id] = len(own & train) / len(own)
    assert len(held) > 4
    assert max(copied.values()) > 0.9
    assert all(share < NEAR for name, share in copied.items() if name not in near)


def test_a_chunk_of_test_that_straddles_two_of_valid_goes_too() -> None:
    chunks = editions()
    second = next(chunk.section for chunk in chunks if chunk.document.name == "b")
    parts: dict[int, Part] = {
        chunk.section: "test" if chunk.section >= second else "valid" for chunk in chunks
    }
    near = too_near(chunks, parts)
    theirs = [chunk.id for chunk in chunks if chunk.section >= second]
    assert len(theirs) > 9
    assert set(theirs[1:]) <= set(near)  # of the first, half is new


def test_a_short_chunk_of_train_inside_a_long_one_that_is_held_out() -> None:
    inside = sentences(4, 3)
    long = cut(Document("a", "a", sentences(20, 4) + inside + sentences(20, 5)), 2000)
    short = cut(Document("b", "b", inside), 2000, first_section=1)
    assert too_near([*long, *short], {0: "valid", 1: "train"}) == {long[0].id: short[0].id}
