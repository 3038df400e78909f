"""The next token of each row: what the settings do to a model's scores, and the choice itself.

Every row is looked at by itself, with its own stream of chance, so that an answer never depends on the rows
beside it. The order is that of transformers: penalties, rules, temperature, top_k, top_p, min_p, the draw.

    R rows   V vocabulary   C candidates
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import GenerateError
from tunesmith.infer.config import Sampling
from tunesmith.records import TokenScore

# With top_p alone so many of the likeliest tokens are looked at first; rarely are more needed.
LIKELY = 1024
# Tokens whose probabilities are summed first: a draw looks for the part, then for the token in it.
PART = 256


class Guide(Protocol):
    """What allows or forbids the next token of a row, such as a JSON schema."""

    def restrict(self, scores: Tensor) -> None:
        """Set the scores [V] of forbidden tokens to -inf."""

    def accept(self, token: int) -> None:
        """The token was chosen."""


def no_numbers() -> GenerateError:
    """A model whose scores aren't numbers is stopped, instead of writing nonsense from them."""
    return GenerateError(
        "The model's scores aren't numbers (NaN), so there is nothing to choose from.",
        fix="Try dtype=fp32. If that doesn't help, the weights are damaged: the training diverged, "
        "or the file is broken.",
    )


def row_generator(seed: int, row: int, answer: int) -> np.random.Generator:
    """The stream of chance of one answer; it depends on nothing but these three numbers."""
    return np.random.default_rng([seed, row, answer])


class Choice:
    """One answer's tokens so far, `new`, and what its next one depends on."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        generator: np.random.Generator,
        guide: Guide | None = None,
    ) -> None:
        self.new: list[int] = []
        self.scores: list[TokenScore] = []
        self.generator = generator
        self.guide = guide
        self.counts: Counter[int] = Counter()
        self._prompt = frozenset(prompt)
        size = sampling.no_repeat_ngram_size or 0
        self._last = [] if size == 0 else list(prompt)
        self._follow: dict[tuple[int, ...], set[int]] = {}
        for at in range(size - 1, len(self._last)) if size else ():
            self._follow.setdefault(tuple(self._last[at - size + 1 : at]), set()).add(self._last[at])
        self._ngram = size

    def add(self, token: int) -> None:
        """The token that was chosen."""
        self.new.append(token)
        self.counts[token] += 1
        if self._ngram:
            self._follow.setdefault(self._key(), set()).add(token)
            self._last.append(token)
        if self.guide is not None:
            self.guide.accept(token)

    def seen(self, last: int | None) -> list[int]:
        """Tokens that a penalty counts as said: all of prompt and answer, or the last N of the answer."""
        return list(set(self.new[-last:])) if last else list(self._prompt | self.counts.keys())

    def repeating(self) -> list[int]:
        """Tokens that would complete an n-gram a second time."""
        return list(self._follow.get(self._key(), ())) if self._ngram else []

    def _key(self) -> tuple[int, ...]:
        return tuple(self._last[len(self._last) - self._ngram + 1 :]) if self._ngram > 1 else ()


class Chooser:
    """Chooses by the same settings for every row."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._edits = (
            sampling.repetition_penalty not in (None, 1.0)
            or bool(sampling.presence_penalty or sampling.frequency_penalty)
            or bool(sampling.no_repeat_ngram_size)
            or sampling.json_schema is not None
        )

    @torch.inference_mode()
    def __call__(self, scores: Tensor, choices: Sequence[Choice]) -> None:
        """Choose the next token of each row from scores [R, V] in fp32, which may be written to.

        Raises GenerateError where scores aren't numbers.
        """
        scores = scores.cpu() if scores.device.type == "mps" else scores  # MPS has no float64
        best, likeliest = scores.max(dim=-1)
        if bool(best.isnan().any()):
            raise no_numbers()
        wanted = self.sampling.logprobs
        raw = None if wanted is None else torch.log_softmax(scores, dim=-1)
        if self._edits:
            for row, choice in zip(scores, choices, strict=True):
                self._edit(row, choice)
            likeliest = scores.argmax(dim=-1)
        tokens = (self._draw(scores, choices) if self.sampling.samples else likeliest).tolist()
        if raw is not None and wanted is not None:
            for row, choice, token in zip(raw, choices, tokens, strict=True):
                choice.scores.append(_told(row, token, wanted))
        for choice, token in zip(choices, tokens, strict=True):
            choice.add(token)

    def _edit(self, row: Tensor, choice: Choice) -> None:
        s = self.sampling
        if s.repetition_penalty is not None:
            # Keskar et al. 2019, arXiv:1909.05858.
            seen = torch.tensor(choice.seen(s.repetition_penalty_range), dtype=torch.int64, device=row.device)
            said = row[seen]
            row[seen] = torch.where(said < 0, said * s.repetition_penalty, said / s.repetition_penalty)
        if (s.presence_penalty or s.frequency_penalty) and choice.counts:
            said = torch.tensor(list(choice.counts), device=row.device)
            often = torch.tensor(list(choice.counts.values()), dtype=row.dtype, device=row.device)
            row[said] -= (s.presence_penalty or 0.0) + (s.frequency_penalty or 0.0) * often
        if repeating := choice.repeating():
            row[torch.tensor(repeating, device=row.device)] = -torch.inf
        if choice.guide is not None:
            choice.guide.restrict(row)

    def _draw(self, scores: Tensor, choices: Sequence[Choice]) -> Tensor:
        s = self.sampling
        if s.temperature is not None and s.temperature != 1:
            scores = scores / s.temperature
        top_p = s.top_p if s.top_p is not None and s.top_p < 1 else None
        ids = None
        if s.top_k:
            scores, ids = scores.topk(min(s.top_k, scores.shape[-1]))
        if top_p is not None:
            scores, ids = _nucleus(scores, ids, top_p)
        if s.min_p:
            least = scores.amax(dim=-1, keepdim=True) + math.log(s.min_p)
            scores = scores.masked_fill(scores < least, -torch.inf)
        uniform = torch.tensor([choice.generator.random() for choice in choices], dtype=torch.float64)
        return draw(scores, uniform.to(scores.device), ids)


def draw(scores: Tensor, uniform: Tensor, ids: Tensor | None = None) -> Tensor:
    """The tokens [R] that uniform numbers [R] in [0, 1) draw by inverting the cumulative distribution.

    scores [R, C] are of the tokens `ids` [R, C]; None: of the whole vocabulary. Tokens are summed in the
    order of their ids, in float64: in float32 the sum over 150,000 tokens would shift the rare ones.
    """
    if ids is not None:
        ids, order = ids.sort(dim=-1)
        scores = scores.gather(-1, order)
    best = scores.amax(dim=-1, keepdim=True)
    if not bool(best.isfinite().all()):  # by a tiny temperature, say
        raise no_numbers()
    shares = torch.exp(scores - best)
    rest = -shares.shape[-1] % PART
    padded = torch.nn.functional.pad(shares, (0, rest))
    parts = padded.view(len(padded), -1, PART)  # [R, C / PART, PART]
    sums = parts.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform * sums[:, -1]
    part = torch.searchsorted(sums, target[:, None], right=True)
    before = torch.where(part > 0, sums.gather(-1, (part - 1).clamp(min=0)), 0.0)
    inside = parts.gather(1, part[..., None].expand(-1, -1, PART)).squeeze(1).double().cumsum(dim=-1)
    last = inside[:, -1:]
    # Never the whole of it, which may round to less here: it would lead beyond the last that can be drawn.
    left = (target[:, None] - before).clamp(min=0.0).minimum(torch.nextafter(last, sums.new_zeros(())))
    token = part * PART + torch.searchsorted(inside, left, right=True)
    return token[:, 0] if ids is None else ids.gather(-1, token)[:, 0]


def _nucleus(scores: Tensor, ids: Tensor | None, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest candidates that together have the probability top_p, the likeliest first; others -inf."""
    total = torch.logsumexp(scores.double(), dim=-1, keepdim=True)
    for count in (scores.shape[-1],) if ids is not None else (LIKELY, scores.shape[-1]):
        if ids is None:
            found, places = scores.topk(min(count, scores.shape[-1]))
        else:
            found, places = scores, ids
        shares = torch.exp(found.double() - total)
        before = shares.cumsum(dim=-1) - shares
        if count >= scores.shape[-1] or bool((before[:, -1] >= top_p).all()):
            break
    keep = before < top_p
    keep[:, 0] = True
    return found.masked_fill(~keep, -torch.inf), places


def _told(row: Tensor, token: int, wanted: int) -> TokenScore:
    """A token's logarithm of probability, as the model gave it, and those of the likeliest."""
    values, ids = row.topk(min(wanted, row.shape[-1]))
    return TokenScore(token, float(row[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
