"""`tunesmith sweep` as people run it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import save_tiny
from tunesmith.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        line = ["tunesmith", "sweep", str(tiny), *words, "--dtype", "fp32", "max_new_tokens=5"]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, told.out, told.err

    return call


def test_answers_side_by_side_figures_and_a_page(run: Run, tmp_path: Path) -> None:
    words = ("--prompt", "白日依山盡", "--prompt", "Hi", "temperature=0.5,2", "--html", "sweep.html")
    code, out, err = run(*words)
    assert code == 0
    assert out.count("temperature=0.5") == 3, "a column for each prompt, and a line of figures"
    assert "distinct_2" in out
    assert "2 of 2: temperature=2" in err
    assert "白日依山盡" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    code, _, err = run(*words)
    assert code == 2
    assert "sweep.html is there already" in err
    assert run(*words, "--force")[0] == 0


def test_what_changes_nothing_under_any_settings_is_told(run: Run) -> None:
    assert "seed=4 changes nothing" in run("--prompt", "Hi", "seed=4", "do_sample=false")[2]
    assert "changes nothing" not in run("--prompt", "Hi", "seed=4", "do_sample=false,true")[2]


def test_json(run: Run) -> None:
    code, out, _ = run("--prompt", "Hi", "top_k=2,9", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["prompts"] == ["Hi"]
    assert [one["varied"] for one in found["combinations"]] == [{"top_k": 2}, {"top_k": 9}]
    assert [len(one["answers"][0]) for one in found["combinations"]] == [3, 3]


def test_what_is_wrong_is_told_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.api.answering.load", lambda *_a, **_k: pytest.fail("a model was loaded"))
    for words, message in (
        ((), "give --prompt TEXT"),
        (("--prompt", " "), "--prompt is empty"),
        (("--prompt", "x", "temperature=0,1"), "temperature=0: temperature 0 can't be drawn from"),
        (("--prompt", "x", "--html", "missing/x.html"), "there is no folder missing"),
        (("--input", "x.txt", "--system", "s"), "--system goes with --prompt"),
    ):
        code, _, err = run(*words)
        assert code == 2
        assert message in err
