"""Log-probabilities of generated tokens, as files and the API give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.records import TokenScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIGITS = 5


def logprobs(tokenizer: PreTrainedTokenizerBase, scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """For each token its text, id and natural logarithm of probability, and those of the likeliest there.

    The text of a token that is only a part of a character holds U+FFFD; the ids tell such tokens apart.
    """
    return [
        {
            **_one(tokenizer, score.token, score.logprob),
            "top_logprobs": [_one(tokenizer, token, value) for token, value in score.likeliest],
        }
        for score in scores
    ]


def _one(tokenizer: PreTrainedTokenizerBase, token: int, value: float) -> dict[str, Any]:
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return {"token": text, "id": token, "logprob": round(value, DIGITS)}
