"""What transformers' `generate` is given, each part alone, with numbers checked by hand or transformers."""

from __future__ import annotations

import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from tests.families import tiny_tokenizer
from tunesmith.infer.config import Sampling
from tunesmith.infer.sampling import (
    NoRepeatWithoutPadding,
    RecentPenalty,
    RowLimits,
    StopTexts,
    generation_config,
    processors,
)
from tunesmith.settings import build


def test_each_setting_arrives() -> None:
    every = {
        "num_beams": 4, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": 0.3,
        "repetition_penalty": 1.4, "eos_token_id": [5, 6], "pad_token_id": 9, "max_new_tokens": 11,
    }  # fmt: skip
    config = generation_config(build(Sampling, every), new_tokens=11, end_ids=[5, 6], pad_id=9)
    for name, value in every.items():
        assert getattr(config, name) == value, name


def test_the_penalty_of_the_last_tokens() -> None:
    # Prompt 1 2, then 3 4 5: with N = 2 only 4 and 5 are made less likely.
    scores = torch.tensor([[6.0, 6.0, 6.0, 6.0, 6.0, -6.0]])
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    assert RecentPenalty(2.0, 2, width=2)(ids, scores).tolist() == [[6, 6, 6, 6, 3, -12]]
    assert RecentPenalty(2.0, 2, width=5)(ids, scores).tolist() == scores.tolist(), "nothing generated yet"
    # Over everything it is transformers' penalty without the prompt.
    theirs = RepetitionPenaltyLogitsProcessor(2.0)(ids[:, 2:], scores.clone())
    assert torch.equal(RecentPenalty(2.0, 99, width=2)(ids, scores), theirs)


def test_the_range_replaces_the_penalty_on_everything() -> None:
    sampling = build(Sampling, {"num_beams": 2, "repetition_penalty": 1.5, "repetition_penalty_range": 8})
    config = generation_config(sampling, new_tokens=1, end_ids=[0], pad_id=0)
    assert config.repetition_penalty is None
    assert any(isinstance(p, RecentPenalty) for p in processors(sampling, padding=[0], width=1, choices=[]))


def test_padding_is_no_text_for_the_rule_against_repeats() -> None:
    ids = torch.tensor([[0, 0, 7, 3], [5, 6, 7, 3]])  # row 0 has two tokens of padding
    scores = torch.zeros(2, 9)
    banned = NoRepeatWithoutPadding(1, [2, 0])(ids, scores) == -torch.inf
    assert banned[0].nonzero().flatten().tolist() == [3, 7], "0 is padding here, and free"
    assert banned[1].nonzero().flatten().tolist() == [3, 5, 6, 7]
    alone = NoRepeatNGramLogitsProcessor(1)(ids[:1, 2:], scores[:1])
    assert torch.equal(banned[0], alone[0] == -torch.inf)
    # Two beams of each prompt: rows 0 and 1 belong to the first one.
    beams = NoRepeatWithoutPadding(1, [2, 0])(ids.repeat_interleave(2, 0), torch.zeros(4, 9)) == -torch.inf
    assert torch.equal(beams, banned.repeat_interleave(2, 0))


def test_row_limits_with_and_without_beams() -> None:
    limits = RowLimits([1, 3], width=4)
    ids = torch.zeros(2, 4 + 2, dtype=torch.long)
    assert limits(ids, None).tolist() == [True, False]
    assert limits(ids.repeat_interleave(3, 0), None).tolist() == [True] * 3 + [False] * 3


def test_a_stop_text_is_seen_across_tokens_and_not_in_the_prompt() -> None:
    tokenizer = tiny_tokenizer("llama")
    text = tokenizer("山盡，黃河\n入海", add_special_tokens=False)["input_ids"]
    stop = StopTexts(tokenizer, ["河\n入"], width=0)
    seen = [bool(stop(torch.tensor([text[:n]]), None)) for n in range(1, len(text) + 1)]
    first = seen.index(True)
    assert "河\n入" in tokenizer.decode(text[: first + 1])
    assert "河\n入" not in tokenizer.decode(text[:first])
    assert not StopTexts(tokenizer, ["河\n入"], width=len(text))(torch.tensor([text]), None).item()
