"""The tokens that llama.cpp reads are the tokenizer's own, or the export is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gguf import TokenType
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerBase

from tests.export.gguf_models import bytes_tokenizer, pieces_tokenizer, split
from tests.families import tiny_tokenizer
from tunesmith.errors import ModelError
from tunesmith.export import gguf_pre
from tunesmith.export.gguf_pre import Found, find_pre
from tunesmith.export.gguf_tokens import Vocabulary, vocabulary_of

SHORT = gguf_pre._SHORT


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process for each name and texts enough to tell these apart."""
    monkeypatch.setattr(gguf_pre, "_TEXTS", 600)
    monkeypatch.setattr(
        gguf_pre, "NAMES", ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "starcoder")
    )


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> Vocabulary:
    ends = {tokenizer.eos_token_id}
    return vocabulary_of(tokenizer, rows or len(tokenizer), ends, tokenizer.chat_template)


def found(tokenizer: PreTrainedTokenizerBase, hint: str | None = None) -> Found:
    return find_pre(tokenizer, vocabulary(tokenizer), hint=hint)


def gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()])


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (gpt2(), "gpt-2"),
        (smollm(), "smollm"),
        (split(SHORT), "qwen2"),
        (split(SHORT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), "smaug-bpe"),
    ],
    ids=["gpt-2", "smollm", "qwen2", "llama3"],
)
def test_the_rules_are_found(pre: pre_tokenizers.PreTokenizer, name: str) -> None:
    assert found(bytes_tokenizer(pre)).pre == name


def test_whole_words_before_merges_are_another_rule() -> None:
    tokenizer = bytes_tokenizer(split(SHORT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), ignore_merges=True)
    assert found(tokenizer).pre == "llama-bpe"


def test_rules_that_no_table_names_are_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_pre, "_LIKELY", {})
    monkeypatch.setattr(gguf_pre, "NAMES", ("gpt-2", "smollm", "llama-bpe", "qwen2"))
    # No merges of digits were learnt, so that three at a time make no difference; gpt-2's rules do.
    assert found(bytes_tokenizer(split(SHORT))).pre in ("llama-bpe", "qwen2")


def test_a_name_that_the_base_had_is_proved_as_well() -> None:
    tokenizer = bytes_tokenizer(split(SHORT))
    assert found(tokenizer, hint="smollm").pre == "qwen2"
    assert found(bytes_tokenizer(smollm()), hint="no such rules").pre == "smollm"
    # Where two names give the same tokens, the base's own is kept.
    assert found(tokenizer, hint="qwen2").pre == "qwen2"


@pytest.mark.parametrize(
    "pre",
    [
        split(SHORT.replace(r"|\p{N}|", r"|\p{N}{1,2}|")),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), gpt2()]),
    ],
    ids=["digits in twos", "punctuation apart"],
)
def test_rules_that_llamacpp_doesn_t_have_are_refused(pre: pre_tokenizers.PreTokenizer) -> None:
    with pytest.raises(ModelError, match="no pre-tokenizer that cuts") as refused:
        found(bytes_tokenizer(pre))
    assert "in llama.cpp, from token" in refused.value.details[0]
    assert "--to merged" in refused.value.fix


@pytest.mark.parametrize(("prepend", "prefix", "leads"), [
    ("always", True, False), ("never", False, False), ("first", False, True),
])  # fmt: skip
def test_pieces_with_spaces_of_their_own(prepend: str, prefix: bool, leads: bool) -> None:
    tokenizer = pieces_tokenizer(prepend)
    made = vocabulary(tokenizer)
    assert made.model == "llama"
    way = found(tokenizer)
    assert (way.pre, way.space_prefix, way.leads) == ("default", prefix, leads)
    assert len(way.notes) == leads


def test_texts_in_another_form_of_unicode_are_told() -> None:
    tokenizer = bytes_tokenizer(split(SHORT))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    way = found(tokenizer)
    assert way.prepare("e\u0301") == "é"
    assert any("NFC" in note for note in way.notes)


def test_a_normalizer_that_changes_texts_is_refused() -> None:
    tokenizer = bytes_tokenizer(gpt2())
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="no pre-tokenizer"):
        found(tokenizer)


def test_types_of_tokens() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    made = vocabulary(tokenizer, rows=len(tokenizer) + 2)
    kinds = {token: TokenType(kind) for token, kind in zip(made.tokens, made.types, strict=True)}
    assert kinds["<|im_end|>"] == TokenType.CONTROL
    assert kinds["<think>"] == TokenType.USER_DEFINED
    assert kinds["a"] == TokenType.NORMAL
    assert made.tokens[-2:] == [f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"]
    assert made.types[-1] == TokenType.UNUSED
    assert made.padded == 2
    assert made.ids == {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    assert made.template == tokenizer.chat_template
    pieces = vocabulary(pieces_tokenizer("never"))
    assert pieces.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]


def test_more_tokens_than_embeddings_are_refused() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    with pytest.raises(ModelError, match="only 400 embeddings"):
        vocabulary(tokenizer, rows=400)


def test_a_second_end_and_a_third() -> None:
    tokenizer = tiny_tokenizer("llama")
    end, text, begin = (tokenizer.convert_tokens_to_ids(t) for t in (
        "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>"
    ))  # fmt: skip
    made = vocabulary_of(tokenizer, len(tokenizer), {end, text, begin}, None)
    assert (made.ids["eos"], made.ids["eot"], made.ids["eom"]) == (end, *sorted((text, begin)))


@pytest.mark.parametrize(
    ("single", "flags"), [("$A", (False, False)), ("<s> $A", (True, False)), ("<s> $A </s>", (True, True))]
)
def test_flags_say_what_the_tokenizer_does(single: str, flags: tuple[bool, bool]) -> None:
    tokenizer = pieces_tokenizer("never")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = vocabulary(tokenizer)
    assert (made.adds_bos, made.adds_eos) == flags


def test_something_else_around_a_text_is_refused() -> None:
    tokenizer = pieces_tokenizer("never")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 1)]
    )
    with pytest.raises(ModelError, match="one BOS and one EOS"):
        vocabulary(tokenizer)


def test_another_kind_of_tokenizer_is_refused() -> None:
    tokenizer = bytes_tokenizer(pre_tokenizers.Whitespace())
    with pytest.raises(ModelError, match="can't be written as GGUF") as refused:
        vocabulary(tokenizer)
    assert "--to merged" in refused.value.fix


def test_white_space_after_special_tokens() -> None:
    tokenizer = bytes_tokenizer(gpt2())
    tokenizer.add_tokens([AddedToken("<|turn|>", rstrip=True, special=True, normalized=False)])
    with pytest.raises(ModelError, match="no pre-tokenizer"):
        found(tokenizer)
    known = replace(vocabulary(tokenizer), strips=True)
    assert [known.name(name) for name in ("tang", "Phi-3-mini")] == ["phi3 tang", "Phi-3-mini"]
    assert not vocabulary(tokenizer).strips  # llama.cpp would look for tokens that aren't there
