"""One row of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.evaluate.metrics.given_choices import letter, lettered
from tunesmith.evaluate.perplexity import RowLoss
from tunesmith.records import Completion


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices that a row gives: their texts, the number of the right one, and how likely the model finds
    each as the whole reply (natural log, end included), where that was measured.
    """

    texts: tuple[str, ...]
    right: int
    log_likelihoods: tuple[float, ...] = ()

    @property
    def letter(self) -> str:
        """That of the right one."""
        return letter(self.right)


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: what was asked, what came, how it scored. `loss` is the reference's, not the answer's.

    `groups` are its values of the columns that figures are asked by, `document` the one that it is from.
    `answered`: the completion is the model's answer; else it is the likeliest of the row's `choices`, which
    are there where the row gives some and its reference names one.
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
    choices: Choices | None = None

    @property
    def truth(self) -> str:
        """What the true answer says: the right choice's text, where the reference names one by its letter."""
        return self.choices.texts[self.choices.right] if self.choices else self.references[0]

    @property
    def named_by_letter(self) -> bool:
        """Whether the reference is the letter of a choice instead of a text."""
        return self.choices is not None and self.truth.strip() != self.references[0].strip()

    @property
    def shown_references(self) -> tuple[str, ...]:
        """The references as people read them: `C. H2O` where they name a choice."""
        return (f"{self.choices.letter}. {self.truth}",) if self.choices else self.references

    @property
    def shown_answer(self) -> str:
        """The answer as people read it; with its letter where it is the likeliest choice."""
        text = self.completion.text
        return lettered(text, self.choices.texts) if self.choices and not self.answered else text

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
            **(
                {"log_likelihoods": list(self.choices.log_likelihoods)}
                if self.choices and self.choices.log_likelihoods
                else {}
            ),
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
        """What the row says of itself: its groups, its document and its choices, as far as there are any."""
        chosen = self.choices
        return {
            **(
                {
                    "choices": list(chosen.texts),
                    "choice_bytes": [len(text.encode()) for text in chosen.texts],
                    "right_choice": chosen.letter,
                }
                if chosen
                else {}
            ),
            **({"groups": dict(self.groups)} if self.groups else {}),
            **({"document": self.document} if self.document else {}),
        }
