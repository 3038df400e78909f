"""Settings turned into what transformers' `generate` takes, for the models and settings that are left to it.

Beams choose by transformers' own rules; without beams each row's tokens are chosen as everywhere else
(choosing.py), and `generate` only computes the scores.

    R rows of a batch (prompts, or prompts x beams)   T tokens so far, left padding included   V vocabulary
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from tunesmith.infer.answer import contains, decode
from tunesmith.infer.choosing import Choice, Chooser, no_numbers
from tunesmith.infer.config import Sampling


def generation_config(
    sampling: Sampling, *, new_tokens: int, end_ids: Sequence[int], pad_id: int
) -> GenerationConfig:
    """What `generate` is told; without beams everything about the choice is left to `processors`."""
    beams = sampling.beams > 1
    return GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=sampling.beams,
        # Without beams the answers to one prompt are rows of their own, each with its own generator.
        num_return_sequences=sampling.answers if beams else 1,
        early_stopping=sampling.early_stopping if sampling.early_stopping is not None else False,
        length_penalty=sampling.length_penalty if sampling.length_penalty is not None else 1.0,
        repetition_penalty=None
        if sampling.repetition_penalty_range or not beams
        else sampling.repetition_penalty,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


def processors(
    sampling: Sampling, *, padding: Sequence[int], width: int, choices: Sequence[Choice]
) -> LogitsProcessorList:
    """What changes the scores of the next token, in the order in which it's applied.

    `padding` is each row's number of padding tokens, `width` the tokens of a padded prompt; `choices` (one a
    row) take the tokens where there are no beams.
    """
    if sampling.beams == 1:
        return LogitsProcessorList([ChooseByRow(Chooser(sampling), choices)])
    steps: list[LogitsProcessor] = [NumbersOnly()]
    if sampling.repetition_penalty is not None and sampling.repetition_penalty_range is not None:
        steps.append(RecentPenalty(sampling.repetition_penalty, sampling.repetition_penalty_range, width))
    if sampling.no_repeat_ngram_size:
        steps.append(NoRepeatWithoutPadding(sampling.no_repeat_ngram_size, padding))
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


class ChooseByRow(LogitsProcessor):  # type: ignore[misc]
    """Chooses each row's next token; all others get -inf, so that `generate` takes the one that is left."""

    def __init__(self, chooser: Chooser, choices: Sequence[Choice]) -> None:
        self.chooser = chooser
        self.choices = choices

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        self.chooser(scores.float(), self.choices)
        chosen = torch.tensor([[choice.new[-1]] for choice in self.choices], device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


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
            raise no_numbers()
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
