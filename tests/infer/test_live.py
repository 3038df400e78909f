"""Rows that come and go: the same answers in any company, places free at once, errors of one row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families import FAMILIES, WHOLE_TILES, tiny_model, tiny_tokenizer
from tests.infer.test_batching import reads
from tests.infer.test_generate import asked, setup
from tunesmith.data.template import Renderer
from tunesmith.infer.answer import ended
from tunesmith.infer.choosing import Choice, Chooser, row_generator
from tunesmith.infer.config import Sampling
from tunesmith.infer.decoding import PIECE, Decoder, New
from tunesmith.infer.generate import generate
from tunesmith.infer.live import LiveBatch, LiveRow
from tunesmith.model import native
from tunesmith.settings import build

__all__ = ["reads"]  # a fixture

PROMPTS = [
    "白日依山盡，黃河入海流。",
    "Hi",
    "How do I ask for leave?" * 4,
    "圖書館幾點開門？",
    "The weather?",
]
LIMIT = 12


def row(renderer: Renderer, text: str, *, limit: int = LIMIT, answer: int = 0, **settings: Any) -> LiveRow:
    (conversation,) = asked([text])
    ids = renderer.prompt_ids(conversation)
    sampling = build(Sampling, settings)
    return LiveRow(
        ids, limit, Choice(ids, sampling, row_generator(1, 0, answer)), chooser=Chooser(sampling),
        tokenizer=renderer.tokenizer, end_ids=renderer.stop_ids,
    )  # fmt: skip


def text_of(found: LiveRow) -> str:
    stop = found.chooser.sampling.stop or ()
    return ended(found.tokenizer, found.choice.new, limit=found.limit, end_ids=found.end_ids, stop=stop).text


def run(batch: LiveBatch, *, arriving: list[LiveRow] = [], every: int = 3) -> None:  # noqa: B006
    """Step until nothing is left; one more row arrives every few steps."""
    left, steps = list(arriving), 0
    while left or batch.going:
        if left and steps % every == 0:
            batch.add([left.pop(0)])
        batch.step()
        steps += 1
        assert steps < 2000, "it never ends"


def free(batch: LiveBatch) -> list[tuple[int, int]]:
    return batch.decoder.cache._free


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_rows_that_join_are_those_of_rows_alone(family: str) -> None:
    model, renderer = setup(family)
    sampling = build(Sampling, {"max_new_tokens": LIMIT})
    alone = [next(generate(model, renderer, asked([text]), sampling))[0].text for text in PROMPTS]
    batch = LiveBatch(Decoder(model, 1500), 3)
    rows = [row(renderer, text) for text in PROMPTS]
    run(batch, arriving=rows)
    assert [text_of(one) for one in rows] == alone
    assert all(one.done for one in rows)
    assert free(batch) == [(0, batch.decoder.cache.tokens)], "every place is free again"


@pytest.mark.skipif(
    not native.supported() or native.compiler() is None, reason="needs a C++ compiler and products in bf16"
)
def test_in_bf16_an_answer_has_the_same_bits_in_any_company() -> None:
    model = tiny_model("llama", **WHOLE_TILES, initializer_range=0.3).bfloat16()
    renderer = Renderer(tiny_tokenizer("llama"), None)
    settings = {"temperature": 1.5, "logprobs": 2}

    def scores(rows: list[LiveRow], width: int) -> list[Any]:
        batch = LiveBatch(Decoder(model, 6000), width)
        assert batch.decoder.slow is None
        run(batch, arriving=rows)
        return [one.choice.scores for one in rows]

    texts = ["白日依山盡。" * 90, *PROMPTS]  # the first one takes several pieces
    together = scores([row(renderer, text, **settings) for text in texts], 6)
    assert together == [scores([row(renderer, text, **settings)], 1)[0] for text in texts]


def test_each_row_has_settings_of_its_own() -> None:
    model, renderer = setup("llama")
    mixed: list[dict[str, Any]] = [
        {}, {"temperature": 1.5}, {"repetition_penalty": 1.5},
        {"temperature": 0.8, "top_k": 5, "logprobs": 2}, {"stop": ["e"]},
    ]  # fmt: skip
    batch = LiveBatch(Decoder(model, 3000), 8)
    rows = [row(renderer, PROMPTS[0], **settings) for settings in mixed]
    run(batch, arriving=rows, every=1)
    for one, settings in zip(rows, mixed, strict=True):
        own = LiveBatch(Decoder(model, 1000), 1)
        single = row(renderer, PROMPTS[0], **settings)
        run(own, arriving=[single])
        assert one.choice.new == single.choice.new
        assert [s.token for s in one.choice.scores] == [s.token for s in single.choice.scores]
    assert len({tuple(one.choice.new) for one in rows[:4]}) == 4


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(reads: list[list[New]]) -> None:
    model = tiny_model("llama", max_position_embeddings=4096)
    renderer = setup("llama")[1]
    batch = LiveBatch(Decoder(model, 6000), 4)
    short, long = row(renderer, "Hi", limit=40), row(renderer, "白日依山盡，黃河入海流。" * 60)
    assert len(long.ids) > 2 * PIECE
    batch.add([short])
    batch.step()
    reads.clear()
    batch.add([long])
    lengths = []
    while not long.choice.new:
        batch.step()
        lengths.append(len(short.choice.new))
    pieces = [sum(len(new.ids) for new in read) for read in reads if sum(len(new.ids) for new in read) > 1]
    assert max(pieces) == PIECE
    assert len(lengths) == len(pieces) == -(-len(long.ids) // PIECE)
    assert lengths == [*range(lengths[0], lengths[0] + len(lengths))], (
        "the other row had a token in each step"
    )
    run(batch)
    alone = row(renderer, "白日依山盡，黃河入海流。" * 60)
    run(LiveBatch(Decoder(model, 3000), 1), arriving=[alone])
    assert long.choice.new == alone.choice.new


def test_answers_to_one_prompt_read_it_once(reads: list[list[New]]) -> None:
    model, renderer = setup("llama")
    batch = LiveBatch(Decoder(model, 2000), 3)
    rows = [row(renderer, PROMPTS[0], answer=n, temperature=1.0) for n in range(5)]
    batch.add(rows)
    run(batch)
    # Steps of one token are reads too in fp32: those of prompts bring more.
    prompts = sum(len(new.ids) for read in reads for new in read if not new.wanted)
    assert prompts == len(rows[0].ids) - 1
    for n, one in enumerate(rows):
        alone = row(renderer, PROMPTS[0], answer=n, temperature=1.0)
        run(LiveBatch(Decoder(model, 1000), 1), arriving=[alone])
        assert one.choice.new == alone.choice.new
    assert free(batch) == [(0, batch.decoder.cache.tokens)]


@pytest.mark.parametrize("when", ["waiting", "reading", "answering"])
def test_a_dropped_row_is_gone_with_the_next_step(when: str) -> None:
    model = tiny_model("llama", max_position_embeddings=4096)
    renderer = setup("llama")[1]
    batch = LiveBatch(Decoder(model, 3000), 1)
    long = "白日依山盡，黃河入海流。" * 60
    first = row(renderer, long if when == "reading" else "Hi", limit=500)
    second = row(renderer, "幾點？")
    batch.add([first])
    batch.step()
    batch.add([second])
    victim, other = (second, first) if when == "waiting" else (first, second)
    victim.dropped = True
    said = len(victim.choice.new)
    batch.step()
    assert victim.done
    assert len(victim.choice.new) == said, "nothing is computed for it any more"
    assert other in batch.active or when == "waiting"
    other.limit = len(other.choice.new) + 1
    run(batch)
    assert victim not in batch.active


def test_an_error_of_one_row_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer = setup("llama")
    batch = LiveBatch(Decoder(model, 2000), 4)
    good, bad = row(renderer, "Hi"), row(renderer, "幾點？", temperature=1.0)

    def broken(*_: Any) -> None:
        raise ValueError("no such token")

    monkeypatch.setattr(bad, "chooser", broken)
    monkeypatch.setattr(LiveRow, "over", property(lambda self: self.error is not None or self.dropped))
    batch.add([good])
    batch.add([bad])
    run(batch)
    assert isinstance(bad.error, ValueError)
    assert bad.done
    assert good.error is None
    assert len(good.choice.new) == LIMIT
    assert free(batch) == [(0, batch.decoder.cache.tokens)]


def test_a_prompt_that_memory_is_not_enough_for_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer = setup("llama")
    batch = LiveBatch(Decoder(model, 2000), 4)
    good, bad = row(renderer, "Hi", limit=20), row(renderer, PROMPTS[2])
    good.end_ids = ()
    batch.add([good])
    batch.step()
    real = Decoder.read

    def short_of_memory(self: Decoder, new: Any) -> torch.Tensor:
        if any(len(one.ids) > 10 for one in new):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")
        return real(self, new)

    monkeypatch.setattr(Decoder, "read", short_of_memory)
    batch.add([bad])
    run(batch)
    assert "not enough memory" in str(bad.error)
    assert bad.done
    assert (good.error, len(good.choice.new)) == (None, 20)
    assert free(batch) == [(0, batch.decoder.cache.tokens)]
