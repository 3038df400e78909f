"""Settings turned into what transformers' `generate` takes: its configuration, processors and criteria.

Drawing is done here, row by row with a generator of its own, because torch's one generator for a whole batch
would make an answer depend on the other rows of its batch. Temperature, top_k, top_p and min_p are
transformers' own warpers, in transformers' own order.

    R rows of a batch (prompts, or prompts x beams)   T tokens so far, left padding included   V vocabulary
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.errors import GenerateError
from tunesmith.infer.answer import contains, decode
from tunesmith.infer.config import Sampling


def generation_config(
    sampling: Sampling, *, new_tokens: int, end_ids: Sequence[int], pad_id: int
) -> GenerationConfig:
    """What `generate` is told; everything about chance is left to `processors`."""
    return GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=sampling.beams,
        # Without beams the answers to one prompt are rows of their own, each with its own generator.
        num_return_sequences=sampling.answers if sampling.beams > 1 else 1,
        early_stopping=sampling.early_stopping if sampling.early_stopping is not None else False,
        length_penalty=sampling.length_penalty if sampling.length_penalty is not None else 1.0,
        repetition_penalty=None if sampling.repetition_penalty_range else sampling.repetition_penalty,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


def processors(
    sampling: Sampling, *, padding: Sequence[int], width: int, generators: Sequence[np.random.Generator]
) -> LogitsProcessorList:
    """What changes the scores of the next token, in the order in which it's applied.

    `padding` is each row's number of padding tokens, `width` the tokens of a padded prompt; `generators`
    (one a row) are used where tokens are drawn.
    """
    steps: list[LogitsProcessor] = [NumbersOnly()]
    if sampling.repetition_penalty is not None and sampling.repetition_penalty_range is not None:
        steps.append(RecentPenalty(sampling.repetition_penalty, sampling.repetition_penalty_range, width))
    if sampling.no_repeat_ngram_size:
        steps.append(NoRepeatWithoutPadding(sampling.no_repeat_ngram_size, padding))
    if sampling.samples:
        if sampling.temperature is not None and sampling.temperature != 1:
            steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1:
            steps.append(TopPLogitsWarper(float(sampling.top_p)))
        if sampling.min_p:
            steps.append(MinPLogitsWarper(float(sampling.min_p)))
        steps.append(DrawByRow(generators))
    return LogitsProcessorList(steps)


def criteria(
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    width: int,
    limits: Sequence[int],
    cancelled: threading.Event | None = None,
) -> StoppingCriteriaList:
    """What ends a row besides its end token: its own limit, a stop text, or a person."""
    found: list[StoppingCriteria] = [RowLimits(limits, width)]
    if sampling.stop:
        found.append(StopTexts(tokenizer, sampling.stop, width))
    if cancelled is not None:
        found.append(Cancelled(cancelled))
    return StoppingCriteriaList(found)


def row_generator(seed: int, row: int, answer: int) -> np.random.Generator:
    """The stream of chance of one answer; it depends on nothing but these three numbers."""
    return np.random.default_rng([seed, row, answer])


class DrawByRow(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token of each row by inverting its cumulative distribution; all others get -inf.

    One uniform number a row and step. The greedy choice that follows takes the token that is left.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        # float64: in float32 the sum over 150,000 tokens would shift the rare ones. MPS has no float64.
        exact = scores.cpu() if scores.device.type == "mps" else scores
        cumulative = torch.softmax(exact.double(), dim=-1).cumsum(dim=-1)  # [R, V]
        uniform = torch.tensor([[g.random()] for g in self.generators], dtype=torch.float64)  # [R, 1]
        drawn = torch.searchsorted(cumulative, uniform.to(cumulative.device) * cumulative[:, -1:], right=True)
        drawn = drawn.clamp(max=scores.shape[-1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class RecentPenalty(LogitsProcessor):  # type: ignore[misc]
    """The repetition penalty (Keskar et al. 2019, arXiv:1909.05858) on the last N generated tokens only."""

    def __init__(self, penalty: float, last: int, width: int) -> None:
        self.penalty = penalty
        self.last = last
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        recent = input_ids[:, self.width :][:, -self.last :]
        if recent.shape[1] == 0:
            return scores
        picked = scores.gather(1, recent)
        picked = torch.where(picked < 0, picked * self.penalty, picked / self.penalty)
        return scores.scatter(1, recent, picked)


class NoRepeatWithoutPadding(LogitsProcessor):  # type: ignore[misc]
    """transformers' rule against repeated n-grams, applied to each row without its padding.

    Padding is often the end token; counted as text, it would forbid the end of the shorter rows.
    """

    def __init__(self, size: int, padding: Sequence[int]) -> None:
        self.rule = NoRepeatNGramLogitsProcessor(size)
        self.padding = padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        each = input_ids.shape[0] // len(self.padding)  # beams of one prompt
        rows = [
            self.rule(input_ids[row : row + 1, self.padding[row // each] :], scores[row : row + 1])
            for row in range(input_ids.shape[0])
        ]
        return torch.cat(rows)


class NumbersOnly(LogitsProcessor):  # type: ignore[misc]
    """Stops at a model whose scores aren't numbers, instead of writing nonsense from them."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        if bool(torch.isnan(scores).any()):
            raise GenerateError(
                "The model's scores aren't numbers (NaN), so there is nothing to choose from.",
                fix="Try dtype=fp32. If that doesn't help, the weights are damaged: the training diverged, "
                "or the file is broken.",
            )
        return scores


class RowLimits(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own number of new tokens."""

    def __init__(self, limits: Sequence[int], width: int) -> None:
        self.limits = torch.tensor(limits)
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        limits = self.limits.repeat_interleave(input_ids.shape[0] // len(self.limits))
        return (input_ids.shape[1] - self.width >= limits).to(input_ids.device)


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends a row when its newest tokens write one of the stop texts; prompts are never looked at."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.width = width
        # A token writes a byte at least, so these hold any stop text; a few more for characters cut in two.
        self.window = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        recent = input_ids[:, self.width :][:, -self.window :].tolist()
        ended = [contains(decode(self.tokenizer, ids), self.stop) for ids in recent]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


class Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Ends every row as soon as the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)
