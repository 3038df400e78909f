"""What is asked of `tunesmith make`, and what can't be. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.errors import SettingsError

Kind = Literal["qa", "instruct", "summary", "continue"]
Form = Literal["messages", "alpaca", "prompt-completion"]
Language = Literal["en", "zh"]
Flagged = Literal["drop", "keep"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MADE: tuple[Kind, ...] = ("qa", "instruct", "summary")  # by a model
SCORES = ("grounded", "complete", "clear")
LEAST_SCORE = 4
CHARACTERS = "characters"


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, read and written, in any currency."""

    read: float
    written: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.read + completion_tokens * self.written) / 1e6


@dataclass(frozen=True)
class Request:
    """Documents in, rows out. `size` counts characters or, where `count_by` names a model, its tokens.

    `per_chunk` rows are asked of the model for each chunk (one for a summary); `valid`, `test` are shares of
    the text, `recall` the share of training chunks whose last row is kept out of training to see what was
    learnt. `least` are the scores below which a row is rejected. `instruction` replaces the words before a
    passage that is to be continued. `tokens` is the limit of a reply, `judge_tokens` of the judge's.
    """

    documents: tuple[Path, ...]
    output: Path
    model: str | None = None
    judge: str | None = None
    no_judge: bool = False
    kinds: tuple[Kind, ...] = ("qa",)
    form: Form = "messages"
    language: Language | None = None
    size: int = 1000
    count_by: str = CHARACTERS
    per_chunk: int = 3
    valid: float = 0.1
    test: float = 0.1
    recall: float = 0.0
    seed: int = 42
    least: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SCORES, LEAST_SCORE))
    flagged: Flagged = "drop"
    system: str = ""
    instruction: str = ""
    pilot: int | None = None
    max_calls: int | None = None
    max_cost: float | None = None
    price: Price | None = None
    judge_price: Price | None = None
    tokens: int = 1024
    judge_tokens: int = 512
    force: bool = False

    @property
    def made_kinds(self) -> tuple[Kind, ...]:
        """The kinds that a model writes."""
        return tuple(kind for kind in self.kinds if kind in MADE)

    @property
    def judging(self) -> bool:
        """Whether rows are judged."""
        return bool(self.made_kinds) and not self.no_judge

    def facts(self) -> dict[str, Any]:
        """All that decides the rows besides documents and models."""
        return {
            "kinds": list(self.kinds), "form": self.form, "language": self.language, "size": self.size,
            "count_by": self.count_by, "per_chunk": self.per_chunk, "valid": self.valid, "test": self.test,
            "recall": self.recall, "seed": self.seed, "least": dict(self.least), "flagged": self.flagged,
            "system": self.system, "instruction": self.instruction, "pilot": self.pilot,
            "tokens": self.tokens, "judge_tokens": self.judge_tokens,
        }  # fmt: skip

    def check(self) -> None:
        """Raise SettingsError, naming everything that can't be."""
        problems = []
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            problems.append(f"--kind {', '.join(unknown)}: the kinds are {', '.join(KINDS)}")
        if self.form not in get_args(Form):
            problems.append(f"--format {self.form}: the formats are {', '.join(get_args(Form))}")
        if self.made_kinds and not self.model:
            problems.append(f"--kind {', '.join(self.made_kinds)} needs --model; continue alone needs none")
        if self.judging and not self.judge:
            problems.append("--judge is missing: name the model that judges, or say --no-judge")
        if self.no_judge and self.judge:
            problems.append("--judge and --no-judge contradict each other")
        if self.size < 40:
            problems.append(f"--size {self.size}: chunks of fewer than 40 say too little")
        if self.valid < 0 or self.test < 0 or self.valid + self.test > 0.8:
            problems.append(
                f"--valid {self.valid:g} and --test {self.test:g}: shares from 0, 0.8 together at most"
            )
        if not 0 <= self.recall <= 1:
            problems.append(f"--recall {self.recall:g}: a share from 0 to 1")
        if self.recall and self.made_kinds and self.per_chunk < 2:
            problems.append("--recall holds out the last of a chunk's rows: --per-chunk 2 at least")
        for name, score in self.least.items():
            if name not in SCORES or not 1 <= score <= 5:
                problems.append(f"--min-score {name}={score}: {', '.join(SCORES)}, from 1 to 5")
        if self.max_cost is not None and not self.price:
            problems.append("--max-cost needs --price READ,WRITTEN (per million tokens)")
        if self.max_cost is not None and self.judging and self.judge != self.model and not self.judge_price:
            problems.append("--max-cost needs --judge-price too; 0,0 for a judge that costs nothing")
        if self.output.suffix != ".jsonl":
            problems.append(f"--output {self.output}: rows are JSONL, so its name ends in .jsonl")
        if problems:
            raise SettingsError(
                "Rows can't be made with these options.",
                details=problems,
                fix="More: tunesmith make --help, docs/make.md.",
            )


def least_scores(words: list[str]) -> dict[str, int]:
    """`["4", "grounded=5"]` -> the least of each score. Raises SettingsError."""
    least = dict.fromkeys(SCORES, LEAST_SCORE)
    for word in words:
        name, _, value = word.rpartition("=")
        if not value.isdigit() or (name and name not in SCORES) or not 1 <= int(value) <= 5:
            raise SettingsError(
                f"--min-score {word} isn't a score.",
                fix=f"Write a number from 1 to 5, or NAME=NUMBER with one of {', '.join(SCORES)}.",
            )
        least.update({name: int(value)} if name else dict.fromkeys(SCORES, int(value)))
    return least


def read_price(word: str | None) -> Price | None:
    """`"0.27,1.1"` -> a price. Raises SettingsError."""
    if word is None:
        return None
    try:
        read, written = map(float, word.split(","))
        if min(read, written) < 0 or not max(read, written) < float("inf"):
            raise ValueError
    except ValueError:
        raise SettingsError(
            f"--price {word} isn't a price.",
            fix="Write what a million tokens cost, read and written: --price 0.27,1.10.",
        ) from None
    return Price(read, written)
