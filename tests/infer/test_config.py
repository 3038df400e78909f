"""Sampling settings: names, defaults, and every contradiction explained at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import SettingsError
from tunesmith.infer.config import Sampling, for_chat
from tunesmith.settings import build

# What people write today, word for word (users A, B and D).
USERS_NAMES = (
    "max_length", "max_new_tokens", "num_beams", "early_stopping", "pad_token_id", "eos_token_id",
    "do_sample", "top_k", "top_p", "temperature", "repetition_penalty", "repetition_penalty_range",
    "length_penalty", "no_repeat_ngram_size", "num_return_sequences",
)  # fmt: skip


def refused(**content: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        build(Sampling, content)
    assert caught.value.exit_code == 2
    return list(caught.value.details)


def test_every_name_that_users_know() -> None:
    assert set(USERS_NAMES) <= set(Sampling.model_fields)


def test_user_d() -> None:
    given = {"do_sample": True, "temperature": 0.1, "num_beams": 1, "top_p": 0.3, "no_repeat_ngram_size": 3}
    sampling = build(Sampling, {**given, "max_length": 128})
    assert sampling.samples
    assert sampling.given() == {**given, "max_length": 128}


def test_without_settings_answers_are_greedy() -> None:
    sampling = build(Sampling, {})
    assert (sampling.samples, sampling.beams, sampling.answers, sampling.given()) == (False, 1, 1, {})


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_a_sampling_setting_samples(name: str) -> None:
    assert build(Sampling, {name: 1}).samples


CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"max_length": 9, "max_new_tokens": 9}, "max_length counts prompt and answer"),
    ({"num_beams": 4, "do_sample": True}, "do_sample draws by chance"),
    ({"num_beams": 4, "temperature": 0.7, "top_p": 0.9}, "temperature and top_p draw by chance"),
    ({"early_stopping": True}, "early_stopping goes with beam search"),
    ({"early_stopping": "never"}, "early_stopping goes with beam search"),
    ({"length_penalty": 2}, "length_penalty goes with beam search"),
    ({"num_beams": 2, "num_return_sequences": 3}, "set num_beams to 3 or more"),
    ({"num_return_sequences": 2}, "the likeliest answer is always the same"),
    ({"temperature": 0}, "set do_sample false"),
    ({"do_sample": False, "temperature": 0.5}, "temperature would do nothing: leave it out"),
    ({"do_sample": False, "top_k": 5, "top_p": 0.5}, "top_k and top_p would do nothing: leave them out"),
    ({"top_p": 0}, "top_p must be greater than 0"),
    ({"top_p": 1.1}, "top_p must be less than or equal to 1"),
    ({"stop": ""}, "stop holds no text"),
    ({"stop": []}, "stop holds no text"),
    ({"stop": ["a", ""]}, "stop holds no text"),
    ({"eos_token_id": []}, "eos_token_id takes one or more"),
    ({"eos_token_id": -1}, "eos_token_id takes one or more"),
    ({"repetition_penalty_range": 5}, "needs a repetition_penalty"),
    ({"temperature": float("nan")}, "temperature must be a finite number"),
    ({"temperature": -1}, "temperature must be greater than or equal to 0"),
    ({"temperature": "warm"}, "temperature must be a valid number"),
    ({"num_beams": True}, "num_beams must be a valid integer"),
    ({"num_beams": 2.5}, "num_beams must be a valid integer"),
    ({"max_new_tokens": 0}, "max_new_tokens must be greater than or equal to 1"),
    ({"temprature": 1}, "unknown setting 'temprature' (did you mean 'temperature'?)"),
]


@pytest.mark.parametrize(("content", "words"), CONFLICTS)
def test_each_contradiction_is_explained(content: dict[str, Any], words: str) -> None:
    (detail,) = refused(**content)
    assert words in detail


def test_all_problems_at_once() -> None:
    details = refused(
        max_length=5,
        max_new_tokens=3,
        num_beams=3,
        top_k=5,
        top_p=7,
        num_return_sequences=9,
        tempratur=1,
        stop=[],
    )
    for words in (
        "max_length counts", "num_beams 3 searches", "top_p must be less", "num_return_sequences 9",
        "'tempratur'", "stop holds",
    ):  # fmt: skip
        assert any(words in detail for detail in details), words
    assert len(details) == 6


def test_where_settings_are_listed_is_said_for_this_command() -> None:
    with pytest.raises(SettingsError) as caught:
        build(Sampling, {"temprature": 1})
    assert "`tunesmith generate --settings`" in caught.value.fix


def test_neutral_beam_settings_contradict_nothing() -> None:
    build(
        Sampling, {"num_beams": 1, "early_stopping": False, "length_penalty": 1.0, "num_return_sequences": 1}
    )


def test_one_or_several_stops_and_end_tokens() -> None:
    assert build(Sampling, {"stop": "\n", "eos_token_id": 2}).given() == {
        "stop": ("\n",),
        "eos_token_id": (2,),
    }
    assert build(Sampling, {"stop": ["a", "b"]}).stop == ("a", "b")


def test_what_cannot_be_streamed() -> None:
    assert build(Sampling, {"temperature": 1}).streaming_conflicts() == []
    found = build(Sampling, {"num_beams": 3, "num_return_sequences": 2}).streaming_conflicts()
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [("none.json", "there is no such file"), ("folder", "Is a directory"), ("gbk.json", "isn't UTF-8")],
)
def test_a_schema_that_cannot_be_read_is_told_by_its_name_once(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "gbk.json").write_bytes('{"title": "白"}'.encode("gbk"))
    with pytest.raises(SettingsError) as caught:
        build(Sampling, {"json_schema": str(tmp_path / name)})
    (told,) = caught.value.details
    start = "json_schema must be a JSON schema, or a file with one; "
    assert told.startswith(start)
    assert why in told
    assert told.count(name) == 1


def test_what_changes_nothing_is_said() -> None:
    (told,) = build(Sampling, {"seed": 3, "num_beams": 2}).useless()
    assert told.startswith("seed=3 changes nothing")
    assert build(Sampling, {"seed": 3, "top_k": 5}).useless() == []
    scores = build(Sampling, {"logprobs": 2})
    assert "`tunesmith generate`" in scores.useless()[0]
    assert scores.useless(logprobs=True) == []
    assert "logprobs" in scores.streaming_conflicts()[0]


def test_chat_defaults_give_way() -> None:
    assert for_chat({}).given() == {"temperature": 0.7, "top_p": 0.9}
    assert for_chat({"temperature": 0.2}).given() == {"temperature": 0.2, "top_p": 0.9}
    assert for_chat({"do_sample": False}).given() == {"do_sample": False}
    assert for_chat({"num_beams": 3}).given() == {"num_beams": 3}
    with pytest.raises(SettingsError):
        for_chat({"do_sample": False, "temperature": 0.2})
    with pytest.raises(SettingsError):
        for_chat({"num_beams": "many"})


def test_temperature_0_is_told_once() -> None:
    with pytest.raises(SettingsError) as caught:
        for_chat({"do_sample": False, "temperature": 0})
    assert len(caught.value.details) == 1
    assert "leave temperature out; do_sample false is set" in str(caught.value)
