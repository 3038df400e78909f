"""`tunesmith export` as a person sees it: what was checked, what is on stdout, and how mistakes end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Ended, models, place, tunesmith
from tests.infer.made_run import made_run
from tunesmith.export import asked, gate, reference

__all__ = ["models", "place", "tunesmith"]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "TEXTS", 200)
    monkeypatch.setattr(reference, "ANSWER_TOKENS", 4)


def test_what_was_checked_is_told_and_the_folder_is_on_stdout(
    tunesmith: Callable[..., Ended], place: Path
) -> None:
    made_run(place / "runs/诗", adapter={"type": "dora"})
    ended = tunesmith("export", "runs/诗", "--to", "merged")
    assert ended.code == 0, ended.err
    assert ended.out == "runs/诗/export/merged\n"
    for word in ("token ids", "chat template", "drift", "fine-tune", "mean KL", "tuned  ", "exported  "):
        assert word in ended.err
    assert (place / "runs/诗/export/merged/README.md").is_file()
    again = tunesmith("export", "runs/诗", "--to", "merged")
    assert again.code == 1
    assert "--force" in again.err
    answered = tunesmith(
        "generate", "runs/诗/export/merged", "--input", _prompt(place), "--output", "o.jsonl"
    )
    assert answered.code == 0, answered.err


def test_json_holds_the_figures_and_the_answers(tunesmith: Callable[..., Ended], place: Path) -> None:
    made_run(place / "runs/a")
    ended = tunesmith("export", "runs/a", "--to", "adapter", "--json")
    content = json.loads(ended.out)
    assert content["path"] == "runs/a/export/adapter"
    assert content["verification"]["passed"] is True
    assert content["verification"]["answers"]["texts"][0]["tuned"]
    record = json.loads((place / "runs/a/export/adapter/verification.json").read_text("utf-8"))
    assert "texts" not in record["answers"]


def test_a_refusal_shows_the_figures_and_ends_with_1(
    tunesmith: Callable[..., Ended], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_run(place / "runs/a", adapter={"type": "dora"})
    monkeypatch.setattr("tunesmith.export.targets.BUDGET_BF16", 1e-12)
    ended = tunesmith("export", "runs/a", "--to", "merged")
    assert ended.code == 1
    assert "further from the tuned model than its number format" in ended.err
    assert "over" in ended.err
    assert "--allow-drift" in ended.err
    assert "--dtype f16" in ended.err
    assert not list((place / "runs/a/export").iterdir())
    kept = tunesmith("export", "runs/a", "--to", "merged", "--allow-drift")
    assert kept.code == 0
    assert "its card says so" in kept.err
    assert (gate.BUDGET_16_BIT, gate.BUDGET_BF16) == (1e-3, 3e-3)
    as_json = tunesmith("export", "runs/a", "--to", "merged", "--force", "--json")
    assert as_json.code == 1
    refused = json.loads(as_json.out)
    assert (refused["path"], refused["verification"]["passed"]) == (None, False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("runs/a", "--to", "gguff"), 2, "There is no export to 'gguff'"),
        (("runs/a",), 2, "--to"),
        (("runs/a", "--to", "merged", "--dtype", "bf17"), 2, "did you mean 'bf16'"),
        (("runs/a", "--to", "merged", "--shard-size", "big"), 2, "isn't a size"),
        (("runs/a", "--to", "merged", "--checkpoint", "newest"), 2, "isn't a checkpoint"),
        (("runs/none", "--to", "merged"), 1, "runs/none isn't the folder of a run"),
        (("gpt2", "--to", "merged"), 2, "Give --output FOLDER"),
    ],
)
def test_mistakes(
    tunesmith: Callable[..., Ended], place: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    del place
    ended = tunesmith("export", *words)
    assert ended.code == code
    assert said in ended.err


def _prompt(place: Path) -> str:
    (place / "p.jsonl").write_text('{"prompt": "你好"}\n', encoding="utf-8")
    return "p.jsonl"
