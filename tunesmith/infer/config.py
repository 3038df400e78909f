"""Settings of the infer stage: how answers are chosen, by the names of transformers' `generate`.

A setting that isn't given is off, whatever the model's own generation_config says, so that the same words
mean the same on every model. Answers are greedy unless a sampling setting is given; only `for_chat` differs.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError
from pydantic import model_validator as validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from tunesmith.settings import Settings, build

NEW_TOKENS = 512  # the limit of an answer where the person gives none
CHAT_DEFAULTS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
WITHOUT_BEAMS = ("presence_penalty", "frequency_penalty", "json_schema", "logprobs")
# What a setting can't be combined with, for the tables; `conflicts` explains each case.
NOT_WITH = {
    "max_new_tokens": "`max_length`",
    "max_length": "`max_new_tokens`",
    "do_sample": "true: `num_beams`; false: `temperature`, `top_k`, `top_p`, `min_p`",
    "temperature": "`do_sample` false, `num_beams`; 0 can't be drawn from",
    "top_k": "`do_sample` false, `num_beams`",
    "top_p": "`do_sample` false, `num_beams`",
    "min_p": "`do_sample` false, `num_beams`",
    "repetition_penalty_range": "goes with `repetition_penalty` only",
    "presence_penalty": "`num_beams`",
    "frequency_penalty": "`num_beams`",
    "num_beams": "sampling, the penalties of presence and frequency, `json_schema`, `logprobs`; chat",
    "early_stopping": "goes with `num_beams` only",
    "length_penalty": "goes with `num_beams` only",
    "num_return_sequences": "greedy answers; more than `num_beams`; chat",
    "stop": "`json_schema`",
    "json_schema": "`num_beams`, `stop`, `no_repeat_ngram_size`; needs `tunesmith[schema]`",
    "no_repeat_ngram_size": "`json_schema`",
    "logprobs": "`num_beams`; chat",
    "seed": "greedy answers: it changes nothing there, which is said",
}
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str | int) else value


def _as_schema(value: Any) -> Any:
    """A schema as it is, or as JSON text, or from a file."""
    if not isinstance(value, str):
        return value
    try:
        text = value if value.lstrip().startswith("{") else Path(value).expanduser().read_text("utf-8")
    except FileNotFoundError:
        raise ValueError("must be a JSON schema, or a file with one; there is no such file") from None
    except OSError as error:
        raise ValueError(f"must be a JSON schema, or a file with one; {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError("must be a JSON schema, or a file with one; this one isn't UTF-8") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"the schema isn't JSON: {error}") from error


class Sampling(Settings):
    """How an answer is chosen, how long it may get, and where it ends. None: not set."""

    # Strict: `num_beams: true` isn't 1, and NaN is no temperature.
    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    listed_by: ClassVar[str] = "tunesmith generate --settings"

    max_new_tokens: int | None = Field(
        None, ge=1, description=f"tokens in an answer at most; {NEW_TOKENS} unless max_length is set"
    )
    max_length: int | None = Field(
        None, ge=1, description="tokens in prompt and answer together at most, instead of max_new_tokens"
    )
    do_sample: bool | None = Field(
        None,
        description="true draws each token by chance, false takes the likeliest (greedy); "
        "unset: true when temperature, top_k, top_p or min_p is set",
    )
    temperature: float | None = Field(
        None, ge=0, description="above 1 more varied, below 1 more predictable; 1 while sampling without it"
    )
    top_k: int | None = Field(None, ge=0, description="draw from the k likeliest tokens only; 0: from all")
    top_p: float | None = Field(
        None, gt=0, le=1, description="draw from the likeliest tokens that together have this probability"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="leave out tokens less likely than this share of the likeliest one"
    )
    repetition_penalty: float | None = Field(
        None, gt=0, description="above 1 makes tokens of prompt and answer less likely to come again"
    )
    repetition_penalty_range: int | None = Field(
        None, ge=1, description="the penalty looks at the last N generated tokens only, not at the prompt"
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="taken off the score of each token that the answer has already"
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="taken off a token's score once for each time that the answer has it"
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, description="no run of N tokens comes twice, the prompt included; 0: off"
    )
    num_beams: int | None = Field(
        None, ge=1, description="beam search: so many answers are followed at once and the best is kept"
    )
    early_stopping: bool | Literal["never"] | None = Field(
        None, description="beams: true stops when num_beams answers have ended; never: only when none can win"
    )
    length_penalty: float | None = Field(
        None, description="beams: above 0 favours longer answers, below 0 shorter ones; 1 unless set"
    )
    num_return_sequences: int | None = Field(None, ge=1, description="answers to each prompt; 1 unless set")
    stop: Annotated[tuple[str, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None, description="a text, or several, that ends an answer; it is left out of it"
    )
    json_schema: Annotated[Mapping[str, Any] | None, BeforeValidator(_as_schema)] = Field(
        None, description="a JSON schema, or a file with one: every answer is JSON that follows it"
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=100,
        description="with each token its log-probability, and the N likeliest at its place",
    )
    eos_token_id: Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None,
        description="a token id, or several, that ends an answer, instead of the model's and its template's",
    )
    pad_token_id: int | None = Field(
        None, ge=0, description="id that fills shorter rows of a batch; never changes an answer"
    )
    seed: int | None = Field(
        None, ge=0, description="the same seed draws the same answer for the same row; unset: a new one"
    )

    @validator(mode="wrap")
    @classmethod
    def _everything_wrong_at_once(cls, content: Any, handler: ModelWrapValidatorHandler[Sampling]) -> Any:
        # pydantic would report wrong values first and contradictions only after those are mended.
        try:
            settings = handler(content)
            found: list[InitErrorDetails] = []
        except ValidationError as error:
            found = [_kept(problem) for problem in error.errors()]
            wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
            if not isinstance(content, Mapping):
                raise
            settings = handler({key: value for key, value in content.items() if key not in wrong})
        found += [_problem(text) for text in settings.conflicts()]
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return settings

    @property
    def samples(self) -> bool:
        """True where tokens are drawn by chance."""
        if self.do_sample is not None:
            return self.do_sample
        return any(getattr(self, name) is not None for name in SAMPLING_ONLY)

    @property
    def beams(self) -> int:
        """Answers followed at once: 1 without beam search."""
        return self.num_beams or 1

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return self.num_return_sequences or 1

    def given(self) -> dict[str, Any]:
        """The settings that were set, by name."""
        return self.model_dump(exclude_none=True)

    def conflicts(self) -> list[str]:
        """Every contradiction between the settings, each with its remedy."""
        found = []
        drawn = [name for name in SAMPLING_ONLY if getattr(self, name) is not None]
        if self.temperature == 0:
            found.append(
                "temperature 0 draws nothing: leave temperature out; do_sample false is set and takes the "
                "likeliest token already"
                if self.do_sample is False
                else "temperature 0 can't be drawn from: for the likeliest answer set do_sample false instead"
            )
            drawn.remove("temperature")
        if self.do_sample is False and drawn:
            found.append(
                f"do_sample false takes the likeliest token, so {_names(drawn)} would do nothing: "
                f"leave {_them(drawn)} out, or set do_sample true"
            )
        if self.max_length is not None and self.max_new_tokens is not None:
            found.append(
                "max_length counts prompt and answer, max_new_tokens the answer alone: set one of them"
            )
        found += self._beam_conflicts([*(["do_sample"] if self.do_sample else []), *drawn])
        if self.answers > 1 and self.beams == 1 and not self.samples:
            found.append(
                f"num_return_sequences {self.answers} needs chance or beams, since the likeliest answer is "
                f"always the same: set temperature, or num_beams {self.answers}"
            )
        if self.repetition_penalty_range is not None and self.repetition_penalty is None:
            found.append(
                "repetition_penalty_range needs a repetition_penalty: set it, for example to 1.2, "
                "or leave the range out"
            )
        found += self._schema_conflicts()
        if self.stop is not None and not all(self.stop or ("",)):
            found.append("stop holds no text: give one or more texts, or leave it out")
        if self.eos_token_id is not None and (not self.eos_token_id or min(self.eos_token_id) < 0):
            found.append("eos_token_id takes one or more token ids of 0 and above")
        return found

    def _schema_conflicts(self) -> list[str]:
        if self.json_schema is None:
            return []
        found = []
        if self.stop is not None:
            found.append(
                "json_schema ends an answer where its JSON ends, and stop might end it before: leave it out"
            )
        if self.no_repeat_ngram_size:
            found.append(
                "no_repeat_ngram_size would forbid what the JSON of json_schema has to repeat, such as "
                "quotes: leave it out"
            )
        if importlib.util.find_spec("llguidance") is None:
            found.append(
                "json_schema needs the llguidance package, which isn't here: pip install 'tunesmith[schema]' "
                "(in a clone: pip install -e '.[schema]')"
            )
        return found

    def _beam_conflicts(self, drawn: list[str]) -> list[str]:
        found = []
        if self.beams > 1:
            if drawn:
                found.append(
                    f"num_beams {self.beams} searches for the likeliest answer and {_names(drawn)} "
                    f"draw{'s' if len(drawn) == 1 else ''} by chance: leave out the one or the other"
                )
            if alone := [name for name in WITHOUT_BEAMS if getattr(self, name) is not None]:
                found.append(
                    f"num_beams {self.beams} follows several answers at once, where {_names(alone)} "
                    f"{'looks' if len(alone) == 1 else 'look'} at one: leave {_them(alone)} out, or num_beams"
                )
            if self.answers > self.beams:
                found.append(
                    f"num_return_sequences {self.answers} is more than num_beams {self.beams} can give: "
                    f"set num_beams to {self.answers} or more"
                )
            return found
        # Their neutral values, as in a copied configuration, contradict nothing.
        if self.early_stopping not in (None, False):
            found.append("early_stopping goes with beam search: set num_beams 2 or more, or leave it out")
        if self.length_penalty not in (None, 1.0):
            found.append("length_penalty goes with beam search: set num_beams 2 or more, or leave it out")
        return found

    def useless(self, *, logprobs: bool = False) -> list[str]:
        """A sentence for each setting that changes nothing here; `logprobs`: whether these are written."""
        found = []
        if self.seed is not None and not self.samples:
            found.append(
                f"seed={self.seed} changes nothing: no token is drawn, the likeliest is taken; "
                "with temperature=0.7, say, the seed decides."
            )
        if self.logprobs is not None and not logprobs:
            found.append(f"logprobs={self.logprobs} changes nothing here: `tunesmith generate` writes them.")
        return found

    def streaming_conflicts(self) -> list[str]:
        """What keeps an answer from being shown while it's written."""
        found = []
        if self.logprobs is not None:
            found.append(
                "logprobs aren't shown while an answer is written: leave them out here, or use "
                "`tunesmith generate`"
            )
        if self.beams > 1:
            found.append(
                f"num_beams {self.beams} knows its answer only at the end, so it can't be shown while it's "
                "written: leave num_beams out here, or use `tunesmith generate`"
            )
        if self.answers > 1:
            found.append(
                f"num_return_sequences {self.answers} can't be shown as one growing answer: leave it out "
                "here, or use `tunesmith generate`"
            )
        return found


def for_chat(asked: Mapping[str, Any]) -> Sampling:
    """Settings of a chat: what was asked; without a word on how to choose, temperature 0.7 and top_p 0.9."""
    chosen = asked.get("do_sample") is False or (asked.get("num_beams") or 1) != 1
    return build(Sampling, asked if chosen else {**CHAT_DEFAULTS, **asked})


def _names(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _them(names: list[str]) -> str:
    return "them" if len(names) > 1 else "it"


def _problem(text: str, where: tuple[int | str, ...] = (), given: Any = None) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("conflict", "{text}", {"text": text}), loc=where, input=given
    )


def _kept(problem: Any) -> InitErrorDetails:
    # `extra_forbidden` and the like keep their type: the message is made from it.
    kind = PydanticCustomError(problem["type"], "{text}", {"text": problem["msg"]})
    return InitErrorDetails(type=kind, loc=problem["loc"], input=problem["input"])
