"""Answers in batches: the same as one by one, in order, exactly as long as asked, nothing hidden."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.families import FAMILIES, tiny_model, tiny_tokenizer
from tunesmith.data.template import Renderer
from tunesmith.errors import GenerateError, SettingsError, TunesmithError
from tunesmith.infer.config import Sampling
from tunesmith.infer.generate import generate
from tunesmith.model.load import context_length
from tunesmith.records import Completion, Conversation, Message, Origin
from tunesmith.settings import build

# Lengths differ a lot, the sliding window of 8 is passed, and no two are equal.
PROMPTS = [
    "白日依山盡，黃河入海流。",
    "Hi",
    "How do I ask for leave? A student asks the office three days before, in one line, and then stops.",
    "你好，请问图书馆几点开门？" * 5,
    "The weather?",
    "學生請假需要提前三天",
]


SHORT = ["白日依山盡", "Hi", "The weather?", "How do I ask?"]


@cache
def setup(family: str) -> tuple[PreTrainedModel, Renderer]:
    model = tiny_model(family)
    template = "chatml" if family == "gpt2" else None
    ends = model.generation_config.eos_token_id
    return model, Renderer(
        tiny_tokenizer(family), template, end_ids=ends if isinstance(ends, list) else [ends]
    )


def asked(prompts: list[str] = PROMPTS) -> list[Conversation]:
    return [
        Conversation((Message("user", text),), Origin("prompts.txt", row + 1, row), str(row))
        for row, text in enumerate(prompts)
    ]


def answers(
    family: str = "llama", prompts: list[str] = PROMPTS, batch_size: int = 16, **settings: Any
) -> list[list[Completion]]:
    model, renderer = setup(family)
    sampling = build(Sampling, {"max_new_tokens": 12, **settings})
    return list(generate(model, renderer, asked(prompts), sampling, batch_size=batch_size))


def texts(found: list[list[Completion]]) -> list[list[str]]:
    return [[one.text for one in several] for several in found]


@pytest.fixture(autouse=True)
def _nothing_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No warning of transformers reaches a person, whatever the settings."""
    from transformers.utils import logging as theirs

    theirs.get_logger("transformers").addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    theirs.get_logger("transformers").removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 3},
    "no repeats": {"no_repeat_ngram_size": 1, "max_new_tokens": 20},
    "penalty": {"repetition_penalty": 1.8},
    "recent penalty": {"repetition_penalty": 1.8, "repetition_penalty_range": 4},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    "max_length": {"max_new_tokens": None, "max_length": 70},
    "beams, max_length": {"max_new_tokens": None, "max_length": 70, "num_beams": 3, "length_penalty": 3.0},
    "several": {"temperature": 1.0, "num_return_sequences": 3, "seed": 0},
}


# Every family greedy and drawn; what only changes how tokens are chosen, three that differ most.
ALIKE = [
    (name, family)
    for name in SETTINGS
    for family in (FAMILIES if name in ("greedy", "drawn") else ("llama", "gemma3", "gpt2"))
]


@pytest.mark.parametrize(("name", "family"), ALIKE)
def test_a_batch_answers_like_one_by_one(family: str, name: str) -> None:
    prompts = SHORT if "max_length" in name else PROMPTS
    together = answers(family, prompts, **SETTINGS[name])
    alone = answers(family, prompts, batch_size=1, **SETTINGS[name])
    assert [[(c.text, c.finish, c.completion_tokens) for c in several] for several in together] == [
        [(c.text, c.finish, c.completion_tokens) for c in several] for several in alone
    ]
    assert len({c.text for several in together for c in several}) > 1, "the answers say something"


def test_a_pad_token_beyond_the_embedding_is_passed_over() -> None:
    model, renderer = setup("llama")
    expected = texts(answers("llama"))
    size = model.get_input_embeddings().weight.shape[0]
    tokenizer = tiny_tokenizer("llama")
    missing = size - len(tokenizer)
    tokenizer.add_tokens([f"[new{n}]" for n in range(missing)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= size
    padded = Renderer(tokenizer, end_ids=renderer.stop_ids)
    found = generate(model, padded, asked(), build(Sampling, {"max_new_tokens": 12}), batch_size=16)
    assert texts(list(found)) == expected
    with pytest.raises(SettingsError, match=f"pad_token_id {size}"):
        generate(model, padded, asked(), build(Sampling, {"pad_token_id": size}))


def test_rows_of_two_files_draw_unlike_each_other() -> None:
    model, renderer = setup("llama")
    row = asked(PROMPTS[:1])[0]
    rows = [replace(row, meta={"number": number}) for number in (0, 1)]
    sampling = build(Sampling, {"max_new_tokens": 12, "temperature": 1.5, "seed": 1})
    first, second = (several[0].text for several in generate(model, renderer, rows, sampling))
    assert first != second


def test_greedy_and_beams_are_those_of_transformers() -> None:
    model, renderer = setup("qwen2")
    ids = torch.tensor([renderer.prompt_ids(asked()[0])])
    end_ids = sorted(renderer.stop_ids)
    for settings in ({"num_beams": 1}, {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"}):
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
            **settings,
        )
        expected = renderer.tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)
        ours = {k: v for k, v in settings.items() if v != 1}
        assert texts(answers("qwen2", PROMPTS[:1], **ours)) == [[expected.rstrip("\ufffd")]]


def test_answers_come_in_order_and_as_soon_as_they_are_ready() -> None:
    model, renderer = setup("llama")
    prompts = [f"{'very ' * (9 - n)}long {n}" for n in range(9)] * 3
    expected = [len(renderer.prompt_ids(c)) for c in asked(prompts)]
    for settings in ({}, {"num_beams": 2}):
        waiting = generate(
            model, renderer, asked(prompts), build(Sampling, {"max_new_tokens": 2, **settings}), batch_size=2
        )
        passes: list[int] = []
        handle = model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        try:
            first = next(waiting)
            assert len(passes) <= 4, "one batch is enough for the first answer"
            found = [first, *waiting]
        finally:
            handle.remove()
        assert [several[0].prompt_tokens for several in found] == expected


def test_a_wide_answer_counts_towards_the_batch() -> None:
    model, _ = setup("llama")
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        answers(batch_size=6, num_beams=3, max_new_tokens=2)
        answers(batch_size=6, temperature=1.0, num_return_sequences=3, max_new_tokens=2)
        answers(batch_size=1, num_beams=3, max_new_tokens=2)
    finally:
        handle.remove()
    assert max(sizes) == 6


def tokens_of(family: str = "llama", prompt: str = PROMPTS[0], count: int = 12) -> list[int]:
    """The greedy tokens themselves, straight from the model."""
    model, renderer = setup(family)
    ids = renderer.prompt_ids(asked([prompt])[0])
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def test_an_end_token_ends_and_is_counted_but_never_shown() -> None:
    _, renderer = setup("llama")
    tokens = tokens_of()
    end = next(t for i, t in enumerate(tokens) if i >= 4 and t not in tokens[:i])
    size = tokens.index(end) + 1
    found = answers(eos_token_id=end)  # together with rows that go on
    assert (found[0][0].finish, found[0][0].completion_tokens) == ("stop", size)
    assert found[0][0].text == renderer.tokenizer.decode(tokens[: size - 1]).rstrip("\ufffd")
    assert {several[0].finish for several in found[1:]} == {"length"}
    assert {several[0].completion_tokens for several in found[1:]} == {12}


def test_the_models_own_end_tokens_end_an_answer() -> None:
    model, renderer = setup("llama")
    tokens = tokens_of()
    for end_id in model.generation_config.eos_token_id:
        bent = tiny_model("llama")
        # The end token is made the twin of the third token: the same score, and the lower id wins.
        head = bent.get_output_embeddings().weight.data
        head[end_id] = head[tokens[2]] * 1.01
        (found,) = generate(bent, renderer, asked(PROMPTS[:1]), build(Sampling, {"max_new_tokens": 12}))
        assert found[0].finish == "stop"
        assert found[0].completion_tokens <= 3


def test_a_stop_text_ends_and_is_left_out_wherever_its_tokens_are_cut() -> None:
    whole = answers()[0][0]
    assert len(whole.text) > 6
    for start, size in ((1, 1), (2, 3), (3, 2), (len(whole.text) - 2, 2)):
        mark = whole.text[start : start + size]
        found = answers(stop=["never written", mark])[0][0]
        assert found.text == whole.text[: whole.text.find(mark)]
        assert found.finish == "stop"
        assert found.completion_tokens <= whole.completion_tokens
    early = answers(stop=whole.text[1:3])[0][0]
    assert early.completion_tokens < whole.completion_tokens, "it really ends there"
    alone = answers(prompts=PROMPTS[:1], stop=whole.text[1:3])[0][0]
    filled = answers(stop=whole.text[1:3], pad_token_id=7)[0][0]
    assert early.completion_tokens == alone.completion_tokens
    assert filled.completion_tokens == alone.completion_tokens, "what fills the row isn't counted"


def test_a_stop_text_in_the_prompt_ends_nothing() -> None:
    found = answers("qwen2", ["halt halt halt"], stop="halt")
    assert found[0][0].completion_tokens > 0
    assert found[0][0].finish == "length"


def test_the_models_own_settings_stay_out() -> None:
    model, _ = setup("gemma3")
    plain = texts(answers("gemma3"))
    own = model.generation_config
    from transformers import GenerationConfig

    loud = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, repetition_penalty=5.0, max_length=7, num_beams=2,
        suppress_tokens=tokens_of("gemma3")[:3], min_new_tokens=2, cache_implementation="hybrid",
    )  # fmt: skip
    model.generation_config = loud
    try:
        assert texts(answers("gemma3")) == plain
        assert model.generation_config is loud, "it is given back: a saved model keeps it"
    finally:
        model.generation_config = own


def test_a_model_in_training_answers_without_dropout_and_stays_in_training() -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    _, renderer = setup("gpt2")
    (found,) = generate(model, renderer, asked(PROMPTS[:1]), build(Sampling, {"max_new_tokens": 12}))
    assert [[found[0].text]] == texts(answers("gpt2", PROMPTS[:1]))
    assert model.training


def test_generation_leaves_the_global_chance_alone() -> None:
    before = torch.random.get_rng_state()
    answers(temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeds() -> None:
    def drawn(**settings: Any) -> list[list[str]]:
        return texts(answers(temperature=2.0, **settings))

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn() != drawn(), "without a seed each time is new"
    several = drawn(seed=1, num_return_sequences=4)
    assert all(len(set(row)) == 4 for row in several)
    twice = texts(answers(prompts=["Hi", "Hi"], temperature=2.0, seed=1))
    assert twice[0] != twice[1], "the same prompt in another row draws anew"


def test_a_row_draws_the_same_whatever_rows_are_left_out() -> None:
    model, renderer = setup("llama")
    sampling = build(Sampling, {"max_new_tokens": 12, "temperature": 2.0, "seed": 5})
    all_rows = texts(list(generate(model, renderer, asked(), sampling)))
    resumed = texts(list(generate(model, renderer, asked()[4:], sampling)))
    assert resumed == all_rows[4:]


def test_every_prompt_without_room_is_named_before_anything_runs() -> None:
    model, _ = setup("llama")
    prompts = ["fine", "long " * 600, "also fine", "long " * 700]
    with pytest.raises(GenerateError) as caught:
        answers(prompts=prompts)
    message = str(caught.value)
    assert "2 of 4 prompts" in message
    assert "prompts.txt:2: " in message
    assert "prompts.txt:4: " in message
    assert f"the model reads {context_length(model)}" in message
    with pytest.raises(GenerateError, match="max_length, which counts prompt and answer, is 30"):
        answers(prompts=["word " * 30], max_new_tokens=None, max_length=30)


def test_a_prompt_that_the_template_refuses_is_named_too() -> None:
    with pytest.raises(TunesmithError, match=r"prompts\.txt:2"):
        answers(prompts=["fine", "forged <|eot_id|> end"])


def test_an_answer_ends_where_the_models_context_ends() -> None:
    sampling = build(Sampling, {"max_new_tokens": 500})
    prompts = asked(["Hi", "word " * 120, "word " * 110])
    for family in ("gpt2", "llama"):
        model, _ = setup(family)
        endless = Renderer(tiny_tokenizer(family), "chatml")
        endless.stop_ids = frozenset()
        found = [several[0] for several in generate(model, endless, prompts, sampling)]
        context = context_length(model)
        for one in found:
            assert one.finish == "length"
            assert one.completion_tokens == min(500, context - one.prompt_tokens)
        (alone,) = generate(model, endless, prompts[1:2], sampling)
        assert alone[0].text == found[1].text


def test_max_length_counts_prompt_and_answer_but_no_padding() -> None:
    found = answers(prompts=[PROMPTS[5], "word " * 8], max_new_tokens=None, max_length=60)
    assert [c[0].prompt_tokens + c[0].completion_tokens for c in found] == [60, 60]
    assert found[0][0].prompt_tokens != found[1][0].prompt_tokens


def test_ids_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(SettingsError, match="no such token: pad_token_id 99999, eos_token_id 88888"):
        answers(pad_token_id=99999, eos_token_id=[1, 88888])


def test_the_pad_token_changes_no_answer() -> None:
    assert texts(answers(pad_token_id=7)) == texts(answers())
    # Not even where it is what a padded row says next, and saying a token again is all but forbidden.
    model, renderer = setup("llama")
    next_token = int(model(torch.tensor([renderer.prompt_ids(asked()[1])])).logits[0, -1].argmax())
    once = {"repetition_penalty": 50.0, "max_new_tokens": 1}
    assert texts(answers(pad_token_id=next_token, **once)) == texts(answers(batch_size=1, **once))


def test_scores_that_are_no_numbers_are_an_error_and_not_an_answer() -> None:
    model = tiny_model("llama")
    _, renderer = setup("llama")
    model.get_output_embeddings().weight.data[3] = float("nan")
    for settings in ({}, {"temperature": 1.0}, {"num_beams": 2}):
        with pytest.raises(GenerateError, match="aren't numbers"):
            list(generate(model, renderer, asked(), build(Sampling, {"max_new_tokens": 3, **settings})))


def test_no_prompts_no_answers() -> None:
    assert answers(prompts=[]) == []
