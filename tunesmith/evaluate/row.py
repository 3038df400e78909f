"""One row of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.records import Completion


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: what was asked, what came, how it scored. `loss` is the reference's, not the answer's.

    `groups` are its values of the columns that figures are asked by, `document` the one that it is from.
    `answered`: the completion is the model's answer; else it is the likeliest of the row's choices.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    completion: Completion
    scores: Mapping[str, float]
    loss: RowLoss | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    document: str = ""
    answered: bool = True

    def answer_json(self) -> dict[str, Any]:
        done = self.completion
        how = {
            "finish": done.finish,
            "tokens": done.completion_tokens,
            "seconds": round(done.seconds, 4),
        }
        return {
            "prediction": done.text,
            "scores": dict(self.scores),
            **(how if self.answered else {}),
            **({"nll": self.loss.nll_sum, "label_tokens": self.loss.tokens} if self.loss else {}),
        }

    def to_json(self) -> dict[str, Any]:
        asked = {"id": self.id, "prompt": self.prompt}
        answer = self.answer_json()
        return {
            **asked,
            "prediction": answer.pop("prediction"),
            "references": list(self.references),
            **self.place_json(),
            **answer,
        }

    def place_json(self) -> dict[str, Any]:
        """Where the row belongs: its groups and its document, as far as the rows say."""
        return {
            **({"groups": dict(self.groups)} if self.groups else {}),
            **({"document": self.document} if self.document else {}),
        }
