"""Our own batches: what transformers would say, no token read twice, base and tuned model side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families import CHAT_FAMILIES, FAMILIES, WHOLE_TILES, tiny_model, tiny_tokenizer
from tests.infer.test_generate import SHORT, asked, setup
from tunesmith.data.template import Renderer
from tunesmith.errors import ModelError
from tunesmith.infer import generate as answers
from tunesmith.infer.batch_backend import BatchBackend
from tunesmith.infer.config import Sampling
from tunesmith.infer.decoding import Decoder, New, prepare
from tunesmith.infer.decoding import slow_because as slow_reason
from tunesmith.infer.generate import generate, generate_batches, generate_both, stream
from tunesmith.infer.transformers_backend import TransformersBackend
from tunesmith.model import native
from tunesmith.model.adapters import adapter_off
from tunesmith.model.cache import Cache
from tunesmith.model.decode_native import why_not
from tunesmith.model.fused_lora import fuse
from tunesmith.model.peft_parts import LoraConfig, get_peft_model
from tunesmith.settings import build

COMMON = "You are a librarian. Answer in one short line, and say when the library opens. 圖書館幾點開門？"
PROMPTS = [f"{COMMON} {text}" for text in ("Hi", "白日依山盡", "Hi there", "When?", "")] + [
    "Hi",
    "幾點？",
    "Hi",
]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[New]]:
    """What every pass over prompts has read."""
    found: list[list[New]] = []
    real = Decoder.read

    def seen(self: Decoder, new: Any) -> Any:
        found.append(list(new))
        return real(self, new)

    monkeypatch.setattr(Decoder, "read", seen)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [3, 16])
def test_greedy_answers_are_those_of_transformers(family: str, width: int) -> None:
    model, renderer = setup(family)
    conversations = asked(PROMPTS)
    found = list(
        generate(model, renderer, conversations, build(Sampling, {"max_new_tokens": 24}), batch_size=width)
    )
    for conversation, (ours,) in zip(conversations, found, strict=True):
        ids = torch.tensor([renderer.prompt_ids(conversation)])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
            eos_token_id=sorted(renderer.stop_ids), pad_token_id=0,
        )[0, ids.shape[1] :]  # fmt: skip
        assert ours.text == renderer.tokenizer.decode(theirs, skip_special_tokens=True).rstrip("\ufffd")
        assert ours.completion_tokens == len(theirs)


@pytest.mark.skipif(
    not native.supported() or native.compiler() is None, reason="needs a C++ compiler and products in bf16"
)
def test_an_answer_has_the_same_bits_in_any_company() -> None:
    """So that what goes on after a kill ends as if there had been none."""
    model = tiny_model("llama", **WHOLE_TILES, initializer_range=0.3).bfloat16()  # roundings that are seen
    assert why_not(model) is None
    renderer = Renderer(tiny_tokenizer("llama"), None)
    sampling = build(Sampling, {"max_new_tokens": 24, "temperature": 1.5, "seed": 1, "logprobs": 3})
    prompts = asked([f"{COMMON * 3} {text}" for text in PROMPTS])

    def found(done: set[int], width: int = 3) -> dict[int, Any]:
        batches = generate_batches(model, renderer, prompts, sampling, batch_size=width, done=done)
        return {at: (one.text, one.scores) for batch in batches for at, (one,) in batch.items()}

    whole = found(set())
    for done in ({0}, {1, 2, 3}, {0, 2, 4, 6}, {1, 3, 4, 5, 6, 7}):
        assert found(done) == {at: one for at, one in whole.items() if at not in done}
    assert found(set(), width=5) == whole


def test_every_family_of_the_tests_takes_our_own_way() -> None:
    assert {family: slow_reason(setup(family)[0]) for family in FAMILIES} == dict.fromkeys(FAMILIES)


def test_what_is_not_proved_is_left_to_transformers_with_a_reason() -> None:
    model = tiny_model("llama")
    model.config.model_type = "mamba"
    assert "mamba" in str(slow_reason(model))
    model.config.model_type = "llama"
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    assert "dynamic" in str(slow_reason(model))


def test_what_is_not_as_usual_is_told_in_a_line() -> None:
    lines: list[str] = []
    model = tiny_model("llama")
    prepare(model, lines.append)
    assert lines == [], "in fp32 nothing is built"
    model.config.model_type = "mamba"
    prepare(model, lines.append)
    assert len(lines) == 1
    assert "transformers' generate, slower: packed rows aren't proved" in lines[0]


def test_shared_beginnings_are_read_once(reads: list[list[New]]) -> None:
    model, renderer = setup("llama")
    conversations = asked(PROMPTS)
    list(generate(model, renderer, conversations, build(Sampling, {"max_new_tokens": 1})))
    prompts = [renderer.prompt_ids(one) for one in conversations]
    read = sum(len(one.ids) for new in reads for one in new)
    shared = len(renderer.prompt_ids(asked([COMMON])[0])) - 12
    assert read < sum(map(len, prompts)) - 4 * shared
    assert sum(one.wanted for new in reads for one in new) == len(prompts)


def test_several_answers_share_their_prompt(reads: list[list[New]]) -> None:
    model, renderer = setup("llama")
    sampling = build(Sampling, {"max_new_tokens": 1, "temperature": 1.0, "num_return_sequences": 9})
    list(generate(model, renderer, asked(PROMPTS[:1]), sampling, batch_size=4))
    length = len(renderer.prompt_ids(asked(PROMPTS[:1])[0]))
    # The last token of a prompt is each answer's own.
    assert sum(len(one.ids) for new in reads for one in new) == length - 1 + 9


def test_the_place_of_a_row_that_has_ended_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer = setup("llama")
    widths: list[int] = []
    real = Decoder.step

    def counted(self: Decoder, tokens: Any, spans: Any, adapter: Any) -> Any:
        widths.append(len(tokens))
        return real(self, tokens, spans, adapter)

    monkeypatch.setattr(Decoder, "step", counted)
    # max_length leaves each row another number of tokens.
    sampling = build(Sampling, {"max_length": 100})
    prompts = ["word " * n for n in (12, 1, 9, 3, 20, 7, 15, 2, 5)]
    found = list(generate(model, renderer, asked(prompts), sampling, batch_size=3))
    lengths = [several[0].completion_tokens for several in found]
    assert len(set(lengths)) > 3
    assert sum(widths) == sum(lengths) - len(lengths), "a row's first token comes with its prompt"
    assert widths[: -max(lengths)] == [3] * len(widths[: -max(lengths)]), "full until the last ones end"


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = build(Sampling, {"max_new_tokens": 8})
    for family in ("llama", "gemma3", "gemma2"):
        model, renderer = setup(family)
        whole = [one[0].text for one in generate(model, renderer, asked(PROMPTS), sampling)]
        with monkeypatch.context() as patch:
            patch.setattr("tunesmith.infer.decoding.PIECE", 7)
            patch.setattr("tunesmith.infer.batching.TOKENS_AT_ONCE", 50)
            assert [one[0].text for one in generate(model, renderer, asked(PROMPTS), sampling)] == whole


def adapted(family: str, **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(
            tiny_model(family), LoraConfig(r=4, target_modules="all-linear", lora_alpha=16, **settings)
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
    fuse(model)
    return model.eval()


@pytest.mark.parametrize("family", [name for name in CHAT_FAMILIES if name != "qwen3_moe"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 5, "num_return_sequences": 2}])
def test_base_and_tuned_answer_in_one_batch(family: str, settings: dict[str, Any]) -> None:
    model = adapted(family)
    renderer = setup(family)[1]
    sampling = build(Sampling, {"max_new_tokens": 10, **settings})
    both = list(generate_both(model, renderer, asked(PROMPTS), sampling, batch_size=5))
    tuned = list(generate(model, renderer, asked(PROMPTS), sampling))
    with adapter_off(model):
        base = list(generate(model, renderer, asked(PROMPTS), sampling))

    def texts(found: Any) -> list[list[str]]:
        return [[one.text for one in several] for several in found]

    assert texts(tuned) == texts(found for _, found in both)
    assert texts(base) == texts(found for found, _ in both)
    assert texts(base) != texts(tuned)


def test_an_adapter_that_cannot_be_mixed_answers_in_batches_of_its_own() -> None:
    model = adapted("llama", use_dora=True)
    renderer = setup("llama")[1]
    sampling = build(Sampling, {"max_new_tokens": 6})
    both = list(generate_both(model, renderer, asked(SHORT), sampling))
    tuned = list(generate(model, renderer, asked(SHORT), sampling))
    assert [b[0].text for _, b in both] == [b[0].text for b in tuned]
    assert [a[0].text for a, _ in both] != [b[0].text for b in tuned]


def test_both_backends_answer_alike() -> None:
    model, renderer = setup("qwen2")
    for settings in (
        {},
        {"temperature": 1.3, "top_p": 0.9, "seed": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 1.0, "top_k": 5, "min_p": 0.1, "seed": 1, "num_return_sequences": 3},
    ):
        sampling = build(Sampling, {"max_new_tokens": 12, **settings})
        ours = list(generate(model, renderer, asked(), sampling))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answers, "slow_because", lambda _: "for the comparison")
            theirs = list(generate(model, renderer, asked(), sampling))
            pieces = list(
                stream(
                    model,
                    renderer,
                    asked()[0],
                    build(Sampling, {**settings, "max_new_tokens": 9, "num_return_sequences": None}),
                )
            )
        assert [[one.text for one in several] for several in ours] == [
            [one.text for one in several] for several in theirs
        ]
        if "num_return_sequences" not in settings:
            assert ours[0][0].text.startswith("".join(pieces))


def test_the_backends_keep_the_protocol() -> None:
    for kind in (BatchBackend, TransformersBackend):
        assert callable(kind.answers)
        assert callable(kind.stream)


def test_the_cache_gives_out_what_was_given_back() -> None:
    cache = Cache(100)
    assert cache.tokens == 128
    first, second, third = cache.reserve(40), cache.reserve(1), cache.reserve(20)
    assert [first, second, third] == [0, 64, 96]
    assert cache.reserve(1) is None
    cache.release(0, 40)
    assert cache.reserve(65) is None
    cache.release(64, 1)
    assert cache.reserve(96) == 0, "neighbours that are free are one"


def test_values_in_pairs_are_read_as_they_were_written() -> None:
    chance = torch.Generator().manual_seed(0)
    k, v = (torch.randn(7, 2, 4, generator=chance) for _ in range(2))
    at = torch.tensor([3, 4, 9, 8, 0, 31, 30])
    for paired in (False, True):
        cache = Cache(32, paired=paired)
        cache.put(0, at, k, v)
        keys, values = cache.get(0, at[None])
        assert torch.equal(keys[:, 0].transpose(0, 1), k)
        assert torch.equal(values[:, 0].transpose(0, 1), v)


def test_a_kernel_that_cannot_be_built_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.infer.decoding.why_not", lambda _: None)

    def broken(*_: Any) -> Any:
        raise ModelError("The decode kernel can't be compiled.", fix="Update the compiler.")

    monkeypatch.setattr("tunesmith.infer.decoding.NativeStep", broken)
    model, renderer = setup("llama")
    (found,) = generate(model, renderer, asked(["Hi"]), build(Sampling, {"max_new_tokens": 4}))
    assert found[0].completion_tokens == 4
