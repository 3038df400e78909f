"""What answers are graded by: criteria with weights, ours or a person's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from tunesmith.errors import SettingsError
from tunesmith.evaluate.judge.prompts import Language
from tunesmith.settings import Settings, build, read_yaml

BUILTIN = "builtin"


class Criterion(Settings):
    """What is looked at, as a question to the judge, and how much it weighs."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[^\n\"{}]+$")
    asks: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)


class Rubric(Settings):
    """Criteria, each graded from 1 to 5; an answer's score is their weighted mean."""

    criteria: tuple[Criterion, ...] = Field(min_length=1, max_length=12)

    @property
    def names(self) -> list[str]:
        """The criteria by name."""
        return [one.name for one in self.criteria]

    def lines(self) -> str:
        """The criteria as the judge reads them."""
        return "\n".join(f"- {one.name}: {one.asks}" for one in self.criteria)

    def form(self) -> str:
        """The JSON that is asked for, by example."""
        return json.dumps({name: {"reason": "…", "score": 3} for name in self.names}, ensure_ascii=False)

    def overall(self, scores: Mapping[str, float]) -> float:
        """The weighted mean of an answer's scores."""
        total = sum(one.weight for one in self.criteria)
        return sum(one.weight * scores[one.name] for one in self.criteria) / total


def read_rubric(name: str, language: Language) -> Rubric:
    """The rubric of that name (`builtin`), or of a YAML or JSON file. Raises SettingsError."""
    if name == BUILTIN:
        return build(Rubric, {"criteria": _BUILTIN[language]})
    content = read_yaml(Path(name))
    listed = content.get("criteria")
    # Strict settings take tuples, and YAML has lists.
    found = build(Rubric, {**content, "criteria": tuple(listed) if isinstance(listed, list) else listed})
    twice = sorted({one for one in found.names if found.names.count(one) > 1})
    if twice:
        raise SettingsError(f"{name}: the criterion {twice[0]!r} comes twice.", fix="Give each its own name.")
    return found


_BUILTIN: dict[Language, tuple[dict[str, object], ...]] = {
    "en": (
        {
            "name": "correct",
            "weight": 2.0,
            "asks": "Is what it says right, and nothing in it invented?",
        },
        {"name": "to the point", "weight": 1.0, "asks": "Does it answer what was asked, as it was asked?"},
        {"name": "complete", "weight": 1.0, "asks": "Is nothing missing that the person needs?"},
        {"name": "clear", "weight": 1.0, "asks": "Is it well written and easy to understand?"},
    ),
    "zh": (
        {"name": "正确", "weight": 2.0, "asks": "回答的内容是否正确，有没有编造？"},
        {"name": "切题", "weight": 1.0, "asks": "是否按要求回答了所问？"},
        {"name": "完整", "weight": 1.0, "asks": "提问者需要的内容是否都有？"},
        {"name": "清楚", "weight": 1.0, "asks": "行文是否通顺，是否容易理解？"},
    ),
}
