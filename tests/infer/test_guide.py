"""Answers by a JSON schema: always valid, from any model, and what can't be followed is told before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.infer.test_generate import PROMPTS, asked, setup
from tests.infer.test_stream import read
from tunesmith.errors import SettingsError
from tunesmith.infer import generate as answers
from tunesmith.infer import guide
from tunesmith.infer.config import Sampling
from tunesmith.infer.generate import generate, stream
from tunesmith.infer.guide import SchemaGuides, grammar
from tunesmith.settings import build

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "開門": {"enum": ["八點", "nine"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3},
    },
    "required": ["開門", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("own_way", [True, False])
@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "seed": 3, "num_return_sequences": 2}])
def test_every_answer_follows_the_schema(
    own_way: bool, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not own_way:
        monkeypatch.setattr(answers, "slow_because", lambda _: "for the comparison")
    for family in ("qwen2", "llama"):
        model, renderer = setup(family)
        sampling = build(Sampling, {"json_schema": SCHEMA, "max_new_tokens": 200, **settings})
        for several in generate(model, renderer, asked(PROMPTS[:3]), sampling):
            for one in several:
                found = json.loads(one.text)
                assert found["開門"] in ("八點", "nine")
                assert all(1 <= day <= 7 for day in found["days"])
                assert one.finish == "stop"


def test_a_stream_follows_it_too_and_the_schema_may_be_a_file(tmp_path: Path) -> None:
    model, renderer = setup("qwen2")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    sampling = build(Sampling, {"json_schema": str(file), "max_new_tokens": 200})
    assert build(Sampling, {"json_schema": json.dumps(SCHEMA)}).json_schema == sampling.json_schema
    pieces, _ = read(stream(model, renderer, asked()[0], sampling))
    assert set(json.loads("".join(pieces))) == {"開門", "days"}


def test_an_answer_that_is_broken_off_is_an_error_and_no_answer() -> None:
    _, renderer = setup("qwen2")
    tokenizer, ends = renderer.tokenizer, sorted(renderer.stop_ids)
    guides = SchemaGuides(tokenizer, SCHEMA, ends, len(tokenizer))
    wrong = tokenizer.convert_tokens_to_ids("x")
    broken = guides.new()
    with pytest.raises(SettingsError, match="to the end of this answer"):
        broken.accept(wrong)
    with pytest.raises(SettingsError, match="to the end of this answer"):
        broken.restrict(torch.zeros(len(tokenizer)))
    whole = SchemaGuides(tokenizer, {"enum": ["八"]}, ends, len(tokenizer)).new()
    for token in tokenizer('"八"')["input_ids"]:
        whole.accept(token)
    scores = torch.zeros(len(tokenizer))
    whole.restrict(scores)
    assert (scores == 0).nonzero().flatten().tolist() == ends


@pytest.mark.parametrize("depth", [200, 900, 20000])
def test_a_schema_that_is_nested_too_deeply_is_told(depth: int) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(SettingsError, match="can't be followed"):
        grammar(schema)


def test_a_tokenizer_is_told_to_llguidance_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = setup("qwen2")[1].tokenizer
    real, told = guide.llguidance.hf.from_tokenizer, []

    def counted(given: Any, **more: Any) -> Any:
        told.append(given)
        return real(given, **more)

    monkeypatch.setattr(guide.llguidance.hf, "from_tokenizer", counted)
    for ends in ([1], [1], [2]):
        SchemaGuides(tokenizer, SCHEMA, ends, len(tokenizer))
    assert len(told) == 2


def test_what_is_no_schema_is_told(tmp_path: Path) -> None:
    model, renderer = setup("qwen2")
    with pytest.raises(SettingsError, match="can't be followed"):
        generate(model, renderer, asked(), build(Sampling, {"json_schema": {"type": "nonsense"}}))
    for wrong, words in (
        (str(tmp_path / "missing.json"), "there is no such file"),
        ("{not json", "isn't JSON"),
        (3, "json_schema"),
    ):
        with pytest.raises(SettingsError, match=words):
            build(Sampling, {"json_schema": wrong})


def test_a_missing_package_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'tunesmith\[schema\]'"):
        build(Sampling, {"json_schema": SCHEMA})
