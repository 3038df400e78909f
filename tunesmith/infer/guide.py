"""Answers that follow a JSON schema: at each token those that can't go on as valid JSON are ruled out.

The work is llguidance's (an extra, `tunesmith[schema]`); here it is told the tokenizer and asked for masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunesmith.errors import SettingsError

try:
    import llguidance
    import llguidance.hf
    import llguidance.numpy
except ImportError:  # `Sampling.conflicts` has told what is missing before anything gets here
    llguidance = None

# On one line: where any white space is allowed, a model may write nothing else until its limit.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LONGEST = 500  # characters of llguidance's words
_TOKENIZERS: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, tuple[int, ...]], Any]] = (
    WeakKeyDictionary()
)


class SchemaGuides:
    """Guides for the rows of a call, all by one schema."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, schema: Mapping[str, Any], end_ids: Sequence[int], size: int
    ) -> None:
        """`size`: tokens of the model's vocabulary. Raises SettingsError for what is no schema."""
        self.grammar = grammar(schema)
        self.end_ids = list(end_ids)
        self.tokenizer = _known(tokenizer, max(size, len(tokenizer)), tuple(end_ids))

    def new(self) -> SchemaGuide:
        """A guide at the beginning of an answer."""
        return SchemaGuide(llguidance.LLMatcher(self.tokenizer, self.grammar), self.end_ids)


class SchemaGuide:
    """One answer's way through the schema (a Guide of choosing.py)."""

    def __init__(self, matcher: Any, end_ids: Sequence[int]) -> None:
        self.matcher = matcher
        self.end_ids = end_ids

    def restrict(self, scores: Tensor) -> None:
        """Set the scores [V] of tokens that the schema doesn't allow here to -inf.

        Raises SettingsError where llguidance has given up: what is there isn't a whole answer.
        """
        self._check()
        if self.matcher.is_stopped() and self.end_ids:  # the JSON is complete: only its end may follow
            ends = torch.tensor(self.end_ids, dtype=torch.int64, device=scores.device)
            kept = scores[ends]
            scores.fill_(-torch.inf)
            scores[ends] = kept
            return
        mask = llguidance.numpy.allocate_token_bitmask(1, len(scores))
        llguidance.numpy.fill_next_token_bitmask(self.matcher, mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(scores)]
        scores[torch.from_numpy(allowed == 0).to(scores.device)] = -torch.inf

    def accept(self, token: int) -> None:
        """The token was chosen. Raises SettingsError as `restrict` does."""
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise _broken(
                self.matcher.get_error(), "json_schema can't be followed to the end of this answer."
            )


def grammar(schema: Mapping[str, Any]) -> str:
    """The schema as llguidance reads it. Raises SettingsError for what it can't follow."""
    try:
        found: str = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), LAYOUT)
        problem = llguidance.LLMatcher.validate_grammar(found)
    except (ValueError, RecursionError) as error:  # nested too deeply
        found, problem = "", str(error) or type(error).__name__
    if problem:
        raise _broken(problem, "json_schema can't be followed.")
    return found


def _known(tokenizer: PreTrainedTokenizerBase, size: int, end_ids: tuple[int, ...]) -> Any:
    """llguidance's own tokenizer, which takes a second to make."""
    own = _TOKENIZERS.setdefault(tokenizer, {})
    if (size, end_ids) not in own:
        own[size, end_ids] = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=size, eos_token=list(end_ids) or None
        )
    return own[size, end_ids]


def _broken(problem: str, what: str) -> SettingsError:
    return SettingsError(
        what,
        details=[problem.strip().splitlines()[0][:LONGEST] if problem.strip() else "llguidance gives up"],
        fix="Give a JSON schema (json-schema.org), for example "
        '{"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}.',
    )
