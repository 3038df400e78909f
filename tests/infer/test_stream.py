"""One answer as a stream: the same text as in a batch, whole characters, and an end that really ends it."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest
import torch

from tests.families import FAMILIES, tiny_model, tiny_tokenizer
from tests.infer.test_generate import PROMPTS, answers, asked, setup, texts
from tunesmith.errors import GenerateError, SettingsError
from tunesmith.infer.answer import Growing, _begun
from tunesmith.infer.config import Sampling
from tunesmith.infer.generate import stream
from tunesmith.records import Completion
from tunesmith.settings import build


def read(pieces: Generator[str, None, Completion]) -> tuple[list[str], Completion]:
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


def streamed(family: str, prompt: int = 0, **settings: Any) -> tuple[list[str], Completion]:
    model, renderer = setup(family)
    sampling = build(Sampling, {"max_new_tokens": 16, **settings})
    return read(stream(model, renderer, asked()[prompt], sampling))


def working() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "answer"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_are_the_answer(family: str) -> None:
    most = 0
    for settings in ({}, {"temperature": 2.0, "seed": 4}):
        expected = texts(answers(family, max_new_tokens=16, **settings))
        for prompt in (0, 3):
            pieces, completion = streamed(family, prompt, **settings)
            assert "".join(pieces) == completion.text == expected[prompt][0]
            assert "" not in pieces
            most = max(most, len(pieces))
    assert most > 3
    assert working() == []


def test_a_stop_text_is_never_shown_not_even_its_beginning() -> None:
    whole = answers(max_new_tokens=16)[0][0].text
    for start in range(1, len(whole) - 3):
        mark = whole[start : start + 3]
        pieces, completion = streamed("llama", stop=mark)
        assert "".join(pieces) == completion.text == whole[: whole.find(mark)]
        assert completion.finish == "stop"
        # Half of a stop text is held back, and shown when it turns out to be something else.
        pieces, completion = streamed("llama", stop=mark[:2] + "\x00")
        assert "".join(pieces) == completion.text == whole


def test_a_character_is_shown_whole_or_not_at_all() -> None:
    tokenizer = tiny_tokenizer("llama")
    text = "山😀é，ok龘"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text), "the characters are cut in several tokens"
    growing = Growing(tokenizer, frozenset(), ())
    pieces = [growing.add(token) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    cut = Growing(tokenizer, frozenset(), ())
    assert "".join(cut.add(token) for token in ids[:-1]) == text[:-1]


def test_the_first_piece_comes_before_the_answer_is_complete() -> None:
    model, renderer = setup("llama")
    steps: list[int] = []
    gate = threading.Event()

    def wait(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 4:
            assert gate.wait(20)

    handle = model.register_forward_pre_hook(wait)
    try:
        pieces = stream(model, renderer, asked(["Hi"])[0], build(Sampling, {"max_new_tokens": 30}))
        first = next(pieces)
        assert first
        gate.set()
        rest, completion = read(pieces)
    finally:
        gate.set()
        handle.remove()
    assert first + "".join(rest) == completion.text


def test_closing_ends_the_computation() -> None:
    model, renderer = setup("llama")
    steps: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: steps.append(1))
    try:
        pieces = stream(model, renderer, asked()[0], build(Sampling, {"max_new_tokens": 200}))
        next(pieces)
        pieces.close()
        assert working() == [], "the thread has ended when close returns"
        count = len(steps)
        assert count < 100
        abandoned = stream(model, renderer, asked()[0], build(Sampling, {"max_new_tokens": 200}))
        next(abandoned)
        del abandoned
        assert working() == []
    finally:
        handle.remove()


def test_an_interruption_in_the_reader_ends_the_computation() -> None:
    model, renderer = setup("llama")
    pieces = stream(model, renderer, asked()[0], build(Sampling, {"max_new_tokens": 200}))
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt())
    assert working() == []


def test_an_error_inside_reaches_the_reader() -> None:
    model = tiny_model("llama")
    model.get_output_embeddings().weight.data[3] = float("nan")
    _, renderer = setup("llama")
    with pytest.raises(GenerateError, match="aren't numbers"):
        list(stream(model, renderer, asked()[0], build(Sampling, {})))
    assert working() == []


def test_beams_and_several_answers_are_refused_together() -> None:
    model, renderer = setup("llama")
    with pytest.raises(SettingsError) as caught:
        stream(model, renderer, asked()[0], build(Sampling, {"num_beams": 3, "num_return_sequences": 2}))
    assert len(caught.value.details) == 2


def test_the_limit_and_an_end_token_are_told_apart() -> None:
    _, limited = streamed("llama", max_new_tokens=3)
    assert (limited.finish, limited.completion_tokens) == ("length", 3)
    model, renderer = setup("llama")
    prompt = renderer.prompt_ids(asked()[0])
    with torch.no_grad():
        first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    pieces, ended = streamed("llama", eos_token_id=first)
    assert (pieces, ended.text, ended.finish, ended.completion_tokens) == ([], "", "stop", 1)


def test_the_prompts_are_those_of_the_file() -> None:
    _, completion = streamed("qwen2", 2)
    _, renderer = setup("qwen2")
    assert completion.prompt_tokens == len(renderer.prompt_ids(asked(PROMPTS)[2]))


def test_a_stop_text_is_never_compared_beyond_what_is_written() -> None:
    assert _begun("ab", ["b" + "x" * 10**6]) == 1
    assert _begun("ab", ["abc", "bcd"]) == 2
    assert _begun("ab", ["ab"]) == 0
