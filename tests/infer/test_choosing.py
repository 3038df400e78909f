"""The choice of a token, each setting alone, with numbers checked by hand or by transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.errors import GenerateError
from tunesmith.infer import choosing
from tunesmith.infer.choosing import Choice, Chooser, draw, row_generator
from tunesmith.infer.config import Sampling
from tunesmith.settings import build


def choice(prompt: list[int], said: list[int], **settings: Any) -> Choice:
    found = Choice(prompt, build(Sampling, settings), row_generator(0, 0, 0))
    for token in said:
        found.add(token)
    return found


def chosen(scores: list[float], prompt: list[int], said: list[int], **settings: Any) -> int:
    row = choice(prompt, said, **settings)
    Chooser(build(Sampling, settings))(torch.tensor([scores]), [row])
    return row.new[-1]


def drawn(scores: Tensor, count: int, **settings: Any) -> Tensor:
    """Shares of the tokens over many draws from the same scores [V]."""
    sampling = build(Sampling, {"do_sample": True, **settings})
    rows = [Choice([], sampling, row_generator(0, row, 0)) for row in range(count)]
    Chooser(sampling)(scores.repeat(count, 1), rows)
    return torch.bincount(torch.tensor([row.new[0] for row in rows]), minlength=len(scores)) / count


def test_drawing_follows_the_distribution() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    shares = drawn(scores, 20_000)
    # Four standard errors of a share near 1/2 are 0.014.
    assert torch.allclose(shares, torch.softmax(scores, dim=-1), atol=0.015)
    assert shares[4] == 0, "a token that is ruled out is never drawn"


def test_a_draw_over_many_tokens_is_the_inverse_of_their_sum() -> None:
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 1000, generator=chance) * 3
    uniform = torch.rand(500, generator=chance, dtype=torch.float64)
    cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
    expected = torch.searchsorted(cumulative, uniform[:, None], right=True)[:, 0]
    assert (draw(scores, uniform) != expected).sum() <= 1, "rounding may turn a draw at an edge"
    some = torch.stack([torch.randperm(1000, generator=chance) for _ in range(500)])
    assert torch.equal(draw(scores.gather(1, some), uniform, some), draw(scores, uniform))


def test_drawing_at_the_very_edges_takes_no_token_that_is_ruled_out() -> None:
    for size in (4, 600):
        scores = torch.full((2, size), -torch.inf)
        scores[:, [1, 2]] = 1.0
        edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        assert draw(scores, edges).tolist() == [1, 2]


def test_rounding_leads_to_no_token_that_is_ruled_out() -> None:
    scores = torch.randn(3000, 700, generator=torch.Generator().manual_seed(3)) * 4
    scores[:, 230:] = -torch.inf
    tokens = draw(scores, torch.full((3000,), 1 - 2**-53, dtype=torch.float64))
    assert bool((scores.gather(1, tokens[:, None]) > -torch.inf).all())


WARPERS = {
    "temperature": ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
    "top_k": ({"top_k": 7}, [TopKLogitsWarper(7)]),
    "top_p": ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    "hardly any": ({"top_p": 0.001}, [TopPLogitsWarper(0.001)]),
    "nearly all": ({"top_p": 0.999}, [TopPLogitsWarper(0.999)]),
    "min_p": ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
    "all": (
        {"temperature": 0.5, "top_k": 17, "top_p": 0.8, "min_p": 0.05},
        [TemperatureLogitsWarper(0.5), TopKLogitsWarper(17), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
    ),
}


@pytest.mark.parametrize("name", WARPERS)
@pytest.mark.parametrize("likely", [4, 1024])
def test_what_can_be_drawn_is_what_transformers_leaves(
    name: str, likely: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "LIKELY", likely)
    settings, warpers = WARPERS[name]
    scores = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    wanted = torch.softmax(
        LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), scores[None])[0], -1
    )
    shares = drawn(scores, 4000, **settings)
    assert torch.allclose(shares, wanted, atol=0.035)
    assert shares[wanted == 0].sum() == 0


def test_the_penalty_is_that_of_transformers() -> None:
    scores = torch.tensor([[6.0, 5.0, 4.0, -1.0, 3.0, -6.0]])
    prompt, said = [1, 2], [0, 0, 4]
    theirs = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([[*prompt, *said]]), scores.clone())
    row = scores.clone()
    one = choice(prompt, said, repetition_penalty=2.0)
    Chooser(build(Sampling, {"repetition_penalty": 2.0}))(row, [one])
    assert torch.equal(row, theirs)


def test_the_penalty_of_the_last_tokens() -> None:
    # Prompt 1 2, then 3 4 5: with a range of 2 only 4 and 5 are made less likely, so 1 is next, not 4.
    scores = [0.0, 5.0, 4.0, 5.5, 9.0, 1.0]
    with_range = {"repetition_penalty": 2.0, "repetition_penalty_range": 2}
    assert chosen(scores, [1, 2], [3, 4, 5], **with_range) == 3
    assert chosen(scores, [1, 2], [3, 4, 5], repetition_penalty=2.0) == 4
    assert chosen(scores, [1, 4], [], **with_range) == 4, "nothing generated yet"


def test_presence_and_frequency_are_counted_in_the_answer_alone() -> None:
    scores = [3.0, 2.5, 0.0]
    assert chosen(scores, [0, 0, 0], [], presence_penalty=2.0, frequency_penalty=2.0) == 0
    # 3.0 - 0.4 stays ahead of 2.5; 3.0 - 0.6 does not.
    assert chosen(scores, [], [0, 0, 0], presence_penalty=0.4) == 0
    assert chosen(scores, [], [0], presence_penalty=0.6) == 1
    # 3.0 - 3 x 0.2 = 2.4 < 2.5, but 3.0 - 2 x 0.2 = 2.6
    assert chosen(scores, [], [0, 0], frequency_penalty=0.2) == 0
    assert chosen(scores, [], [0, 0, 0], frequency_penalty=0.2) == 1
    assert chosen(scores, [], [1], presence_penalty=-0.6) == 1, "below 0 it asks for the same again"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_comes_twice(size: int) -> None:
    prompt, said = [1, 2, 3, 1, 2], [3, 1]
    row = torch.zeros(1, 6)
    theirs = NoRepeatNGramLogitsProcessor(size)(torch.tensor([[*prompt, *said]]), row.clone())
    one = choice(prompt, said, no_repeat_ngram_size=size)
    Chooser(build(Sampling, {"no_repeat_ngram_size": size}))(row, [one])
    assert torch.equal(row, theirs)


def test_log_probabilities_are_the_models_own() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    wanted = torch.log_softmax(scores, dim=-1)[0]
    one = choice([], [1, 1])
    Chooser(build(Sampling, {"logprobs": 2, "presence_penalty": 2.0}))(scores.clone(), [one])
    (score,) = one.scores
    assert score.token == 2, "the penalty has turned the choice, but not the figures"
    assert score.logprob == pytest.approx(float(wanted[2]))
    assert score.likeliest == ((1, pytest.approx(float(wanted[1]))), (2, pytest.approx(float(wanted[2]))))


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(GenerateError, match="aren't numbers"):
        chosen([1.0, float("nan"), 2.0], [], [])


@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}])
def test_a_temperature_that_overflows_is_told(more: dict[str, Any]) -> None:
    with pytest.raises(GenerateError, match="aren't numbers"):
        chosen([1.0, 2.0, 3.0], [0], [], do_sample=True, temperature=1e-40, **more)
