"""What the gate asks of a model, whoever runs it: transformers, llama.cpp, or anything else.

    class Mine:
        def token_ids(self, texts): …
        def logits(self, token_ids): …
        def greedy(self, token_ids, count): …
        def template(self): …
        def metadata(self): …
        def close(self): …

A target's `open` (targets.py) gives one that was loaded anew from the files that were just written; the gate
(gate.py) then asks it the same things as the tuned model, and compares. One model is held at a time: nothing
is asked after `close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Exported(Protocol):
    """A model that was read back from an export. T tokens, V rows of the output head."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text: nothing added in front or behind, special tokens in it read as what they are.

        In llama.cpp: `tokenize(text, add_special=False, parse_special=True)`.
        """

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """[T, V]: row t is what follows token_ids[: t + 1]. No token is added; T is some hundreds at most.

        Columns past the vocabulary of the reference (padding of the head) are left out by the gate.
        """

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The most likely next tokens, `count` at most, without the token that ends the answer.

        No penalties, no temperature: the largest logit each time, until one of the model's own end tokens.
        """

    def template(self) -> str | None:
        """The chat template's Jinja text as it lies in the files; None or "" where there is none."""

    def metadata(self) -> dict[str, Any]:
        """What the files say of the model, by these names; what a format doesn't know is left out.

        vocabulary (rows of the output head), bos, eos, pad (ids or None), ends (sorted ids that end an
        answer), context (tokens), tied (whether the head is the embedding), dtype ("bfloat16", …), adds_bos
        (whether plain text gets BOS in front). `vocabulary`, `eos` and `bos` are wanted of every format.
        """

    def close(self) -> None:
        """Let go of its memory."""
