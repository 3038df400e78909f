"""The same prompts under every combination of settings, side by side, with figures of how varied they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from tunesmith.errors import SettingsError, UsageError
from tunesmith.evaluate.diversity import distinct, repetition, similarity
from tunesmith.infer.config import Sampling
from tunesmith.records import Completion, Conversation, Message, Origin
from tunesmith.settings import build, parse_overrides

if TYPE_CHECKING:
    from tunesmith.infer.local import LocalModel

ANSWERS = 3  # to each prompt where answers are drawn; a greedy one is always the same
MOST = 64  # combinations
FIGURES = {
    "tokens": "mean length of an answer in tokens",
    "limited": "share of answers that the limit ended",
    "distinct_1": "different tokens over all tokens of a prompt's answers",
    "distinct_2": "the same of pairs of tokens",
    "similarity": "mean likeness of two answers to a prompt, 1: the same words",
    "repetition": "share of runs of three tokens that their own answer has already",
}


@dataclass(frozen=True)
class Combination:
    """One choice of the settings that vary, by name, and all settings that it answers with."""

    varied: Mapping[str, Any]
    sampling: Sampling

    @property
    def title(self) -> str:
        """`temperature=0.7 top_p=0.9`."""
        return " ".join(f"{name}={_shown(value)}" for name, value in self.varied.items()) or "as given"


Watch = Callable[[int, Combination], None]


@dataclass
class Column:
    """What a combination answered: for each prompt its answers."""

    combination: Combination
    answers: list[list[Completion]] = field(default_factory=list)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """The FIGURES by name: means over prompts; None where answers are too few or too short."""
        every = [one for several in self.answers for one in several]
        texts = [[one.text for one in several] for several in self.answers]
        return {
            "tokens": mean(one.completion_tokens for one in every),
            "limited": mean(one.finish == "length" for one in every),
            "distinct_1": _mean([distinct(several, 1) for several in texts]),
            "distinct_2": _mean([distinct(several, 2) for several in texts]),
            "similarity": _mean([similarity(several) for several in texts]),
            "repetition": _mean([repetition(several) for several in texts]),
        }


@dataclass
class Sweep:
    """Everything a sweep found."""

    model: str
    prompts: Sequence[Conversation]
    columns: list[Column]

    @property
    def most_answers(self) -> int:
        """The largest number of answers to a prompt."""
        return max(len(several) for column in self.columns for several in column.answers)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "prompts": [prompt.question for prompt in self.prompts],
            "combinations": [
                {
                    "varied": dict(column.combination.varied),
                    "settings": column.combination.sampling.model_dump(mode="json", exclude_none=True),
                    "figures": column.figures,
                    "answers": [
                        [
                            {"text": one.text, "finish": one.finish, "tokens": one.completion_tokens}
                            for one in several
                        ]
                        for several in column.answers
                    ],
                }
                for column in self.columns
            ],
        }

    def html(self) -> str:
        """One page without anything from elsewhere."""
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        source = (files("tunesmith.evaluate") / "sweep.html").read_text(encoding="utf-8")
        page: str = environment.from_string(source).render(sweep=self, figures=FIGURES, number=number)
        return page


def combinations(words: Sequence[str]) -> list[Combination]:
    """Every combination of `temperature=0.1,0.7 top_p=0.3,0.9`; values in brackets are one value.

    Drawn answers have seed 0 unless one is given, so that only the settings differ, and ANSWERS answers to
    each prompt unless num_return_sequences is given. Raises SettingsError for every combination that
    contradicts itself, and for too many.
    """
    choices = [_choices(word) for word in words]
    names = [name for name, _ in choices]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(
            f"{twice[0]} is given twice.", fix=f"Write its values together: {twice[0]}=0.3,0.9."
        )
    varying = {name for name, values in choices if len(values) > 1}
    found, problems = [], []
    for values in product(*(values for _, values in choices)):
        pairs = dict(zip(names, values, strict=True))
        given = parse_overrides([f"{name}={value}" for name, value in pairs.items()])
        varied = {name: value for name, value in given.items() if name in varying}
        try:
            found.append(Combination(varied, _completed(build(Sampling, given))))
        except SettingsError as error:
            told = error.details or [error.what]
            problems += [
                f"{' '.join(f'{k}={pairs[k]}' for k in varied)}: {one}" if varied else one for one in told
            ]
    if problems:
        raise SettingsError("These settings can't be combined.", details=problems, fix=ASK)
    if len(found) > MOST:
        raise UsageError(
            f"That makes {len(found)} combinations, more than the {MOST} that can be looked at side by side.",
            fix="Give fewer values, or sweep one setting after the other.",
        )
    return found


ASK = "`tunesmith generate --settings` lists every setting and what it can't be combined with."


def sweep(
    model: LocalModel,
    prompts: Sequence[Conversation],
    chosen: Sequence[Combination],
    watch: Watch = lambda *_: None,
) -> Sweep:
    """Answer every prompt under every combination; `watch` is told each one's number before it begins."""
    columns = []
    before = model.sampling
    try:
        for number_of, combination in enumerate(chosen):
            watch(number_of, combination)
            model.sampling = combination.sampling
            columns.append(Column(combination, list(model.complete(prompts))))
    finally:
        model.sampling = before
    return Sweep(model.name, prompts, columns)


def asked(prompts: str | Sequence[str | Conversation], system: str = "") -> list[Conversation]:
    """Prompts as conversations; texts are messages of a user, after the system prompt if there is one."""
    before = (Message("system", system),) if system else ()
    return [
        Conversation((*before, Message("user", one)), Origin("--prompt", 1, row), str(row))
        if isinstance(one, str)
        else one
        for row, one in enumerate([prompts] if isinstance(prompts, str) else prompts)
    ]


def chosen(settings: Sequence[str | Combination]) -> list[Combination]:
    """Combinations as they are, and those that words ask for."""
    words = [one for one in settings if isinstance(one, str)]
    given = [one for one in settings if not isinstance(one, str)]
    return [*given, *(combinations(words) if words or not given else [])]


def number(value: float | None) -> str:
    """A figure as tables show it; nothing where there is none."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _completed(sampling: Sampling) -> Sampling:
    more: dict[str, Any] = {}
    if sampling.samples:
        more["seed"] = 0 if sampling.seed is None else sampling.seed
        if sampling.num_return_sequences is None:
            more["num_return_sequences"] = ANSWERS
    return build(Sampling, {**sampling.given(), **more})


def _choices(word: str) -> tuple[str, list[str]]:
    """A setting's name and its values, cut at commas outside of brackets and quotes."""
    name, equals, values = word.partition("=")
    if not equals or not name.strip():
        raise SettingsError(
            f"{word!r} isn't a setting.", fix="Write key=value,value: temperature=0.1,0.7,1.2."
        )
    parts = re.findall(r"""(?:\[[^\]]*\]|\{.*\}|"[^"]*"|'[^']*'|[^,])+""", values)
    return name.strip(), [part.strip() for part in parts] or [""]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
