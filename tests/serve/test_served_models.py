"""What is served from which load: bases, several runs, models tuned as a whole, and what can't be mixed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.evaluate.conftest import rows, write_rows
from tests.families import save_tiny
from tests.infer.made_run import made_run
from tests.serve.opened import Api, serving, texts
from tunesmith.errors import UsageError
from tunesmith.rundir import read_jsonl
from tunesmith.serve import models
from tunesmith.serve.lanes import SingleLane, cache_tokens
from tunesmith.serve.models import public_name

PROMPTS = ["白日依山盡", "Hi", "The weather?"]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that were read into memory."""
    found: list[str] = []
    real = models.load_model

    def seen(source: Any, *given: Any, **more: Any) -> Any:
        found.append(source.path.name)
        return real(source, *given, **more)

    monkeypatch.setattr(models, "load_model", seen)
    return found


def check_alone(api: Api, folders: dict[str, Path]) -> None:
    """All at once, each answers as it does from a load of its own."""
    asked = [(name, text) for text in PROMPTS for name in folders]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: api.text(one[1], one[0]), asked))
    alone = {name: tunesmith.load(folder, dtype="fp32") for name, folder in folders.items()}
    assert found == [alone[name].chat(text, max_new_tokens=12) for name, text in asked]


def test_runs_over_one_base_share_a_load(runs: Path, loads: list[str]) -> None:
    with serving(runs / "a", runs / "b", runs / "base") as api:
        assert loads == ["base"]
        assert api.ready.models == ["a", "b", "base"]
        by_name = api.server.models.by_name
        assert by_name["base"].lane is by_name["a"].lane, "the base answers in the first run's batch"
        assert len({by_name[name].fingerprint for name in by_name}) == 3


def test_an_adapter_that_cannot_be_mixed_answers_beside_its_base(runs: Path, tmp_path: Path) -> None:
    made_run(tmp_path / "dora", runs / "base", adapter={"type": "dora"})
    with serving(tmp_path / "dora") as api:
        by_name = api.server.models.by_name
        assert by_name["base"].lane is not by_name["dora"].lane
        assert any("can't be mixed" in note for note in api.ready.notes)
        check_alone(api, {"dora": tmp_path / "dora", "base": runs / "base"})


def test_other_bases_and_models_tuned_as_a_whole_are_loads_of_their_own(
    runs: Path, tmp_path: Path, loads: list[str]
) -> None:
    made_run(tmp_path / "whole", runs / "base", adapter={"type": "full"})
    save_tiny("qwen2", tmp_path / "other")
    with serving(tmp_path / "whole", tmp_path / "other", runs / "a") as api:
        assert api.ready.models == ["whole", "other", "a", "base"]
        assert len(loads) == 3
        folders = {"whole": tmp_path / "whole", "other": tmp_path / "other", "a": runs / "a"}
        check_alone(api, folders)


def test_a_model_that_our_batches_are_not_proved_for_answers_one_after_the_other(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "slow_because", lambda _: "packed rows aren't proved for it")
    with serving(runs / "a") as api:
        lane = api.server.models.by_name["a"].lane
        assert isinstance(lane, SingleLane)
        check_alone(api, {"a": runs / "a", "base": runs / "base"})
        reply = api.chat("Hi", n=2, temperature=1.2, seed=3, logprobs=True)
        first, second = (choice["message"]["content"] for choice in reply["choices"])
        assert first != second
        found = api.stream("Hi", n=2, temperature=1.2, seed=3)
        assert [texts(found, at) for at in (0, 1)] == [first, second]
        with api.streaming("Hi", max_tokens=400) as connection:
            connection.getresponse()
        assert api.text("Hi") != ""
        assert api.server.engine.busy == 0
        assert not lane.going


def test_figures_over_the_server_are_those_of_the_run_itself(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_rows(tmp_path / "valid.jsonl", rows(9)))
    with serving(runs / "a", batch_size=4) as api:
        monkeypatch.setenv("SERVED_KEY", api.ready.key)
        options = {"max_new_tokens": 16, "stop": ["e"]}
        for name, folder in (("a", runs / "a"), ("base", runs / "base")):
            remote = tunesmith.evaluate(
                f"{api.ready.url}#{name}@SERVED_KEY",
                data,
                output=tmp_path / f"remote-{name}.jsonl",
                **options,
            )
            local = tunesmith.evaluate(
                folder, data, output=tmp_path / f"local-{name}.jsonl", dtype="fp32", **options
            )
            for key in ("f1_char", "exact_match"):
                assert remote.content["metrics"][key] == local.content["metrics"][key]
            assert remote.content.get("failed", 0) == 0
            answers = [
                [line["prediction"] for line in read_jsonl(tmp_path / f"{side}-{name}.jsonl")]
                for side in ("remote", "local")
            ]
            assert answers[0] == answers[1]
            assert any(answers[0])
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text(json.dumps({"prompt": "白日依山盡"}) + "\n", encoding="utf-8")
        drawn = {"temperature": 1.1, "top_p": 0.8, "seed": 3, "num_return_sequences": 2, "max_new_tokens": 10}
        for name, out, more in (
            (f"{api.ready.url}#a@SERVED_KEY", "remote", {}), (str(runs / "a"), "local", {"dtype": "fp32"}),
        ):  # fmt: skip
            tunesmith.generate(name, str(prompts), tmp_path / f"{out}.jsonl", **drawn, **more)
        both = [
            [line["prediction"] for line in read_jsonl(tmp_path / f"{out}.jsonl")]
            for out in ("remote", "local")
        ]
        assert both[0] == both[1], "what is drawn by a seed is the same, too"


def test_names_are_those_of_folders_and_clashes_are_told(runs: Path, tmp_path: Path) -> None:
    assert public_name(str(runs / "a")) == "a"
    assert public_name("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    (tmp_path / "model.gguf").write_bytes(b"")
    assert public_name(str(tmp_path / "model.gguf")) == "model"
    made_run(tmp_path / "a", runs / "base")
    with (
        pytest.raises(UsageError, match="Two models would be called 'a'"),
        serving(runs / "a", tmp_path / "a"),
    ):
        pass
    made_run(tmp_path / "base", runs / "base")
    with pytest.raises(UsageError, match="Two models would be called 'base'"), serving(tmp_path / "base"):
        pass


def test_the_cache_is_what_is_wanted_or_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tunesmith_config(layers=4, heads=2, size=16)
    each = 2 * 4 * 2 * 16 * 2  # keys and values, layers, heads, their size, bytes of bf16
    monkeypatch.setattr("tunesmith.serve.lanes.available_memory", lambda _: each * 100_000)
    assert cache_tokens(config, 2, "cpu", wanted=8000, lanes=1) == 8000
    assert cache_tokens(config, 2, "cpu", wanted=80000, lanes=1) == 40000  # a share of 0.4
    assert cache_tokens(config, 2, "cpu", wanted=80000, lanes=4) == 10000
    monkeypatch.setattr("tunesmith.serve.lanes.available_memory", lambda _: 0)
    assert cache_tokens(config, 2, "cpu", wanted=80000, lanes=1) == 1024


def tunesmith_config(*, layers: int, heads: int, size: int) -> Any:
    class Config:
        num_hidden_layers, num_key_value_heads, head_dim = layers, heads, size

        def get_text_config(self) -> Any:
            return self

    return Config()


def test_less_memory_than_the_context_is_told_and_refused_in_numbers(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "cache_tokens", lambda *_, **__: 256)
    with serving(runs / "base") as api:
        assert api.ready.contexts == {"base": 192}
        assert any("holds 192 tokens" in note for note in api.ready.notes)
        messages = [{"role": "user", "content": "白日依山盡" * 60}]
        status, reply = api.post("/v1/chat/completions", model="base", messages=messages)
        assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")
        assert (
            api.chat("Hi" * 30, "base", n=3, max_tokens=400, temperature=1)["usage"]["completion_tokens"] > 0
        )


def test_a_prompt_that_cannot_fit_is_not_cut_into_tokens(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(runs / "base") as api:
        one = api.server.models.by_name["base"]

        def never(*_: Any) -> Any:
            raise AssertionError("it is tokenised")

        monkeypatch.setattr(type(one), "_rendered", never)
        text = "白" * (one.context * one.longest_token // 3 + 1)
        status, reply = api.post(
            "/v1/chat/completions", model="base", messages=[{"role": "user", "content": text}]
        )
        assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")
        status, reply = api.post("/v1/completions", model="base", prompt=[1] * (one.context + 1))
        assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")


def test_more_answers_than_the_server_ever_writes_at_once_are_refused_for_good(runs: Path) -> None:
    with serving(runs / "base", batch_size=2, queue=1) as api:
        messages = [{"role": "user", "content": "Hi"}]
        status, reply = api.post("/v1/chat/completions", model="base", messages=messages, n=4)
        assert (status, reply["error"]["param"]) == (400, "n")
