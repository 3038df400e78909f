"""compare of more than two: one reference, corrected verdicts, files, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.conftest import place, train
from tests.evaluate.made_run import Scripted, couplets, made_run
from tests.evaluate.test_continued import Stop, stopping, timeless
from tunesmith.api import compare as compare_by_name
from tunesmith.disk import write_json
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.measure import measure_several
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.outputs import of_comparison
from tunesmith.evaluate.perplexity import RowLoss, total
from tunesmith.evaluate.questions import Questions, read_questions
from tunesmith.evaluate.results import difference_rows, pairs, read_results, side_rows
from tunesmith.evaluate.statistics import holm
from tunesmith.infer.config import Sampling
from tunesmith.records import Conversation
from tunesmith.rundir import read_jsonl

pytestmark = pytest.mark.usefixtures("few_questions")

__all__ = ["place"]

THREE = [METRICS[name] for name in ("exact_match", "squad_em", "cmrc2018_em")]
SHORT = Sampling(max_new_tokens=6)


def right_on(rows: int) -> Callable[[Conversation], str]:
    """Answers that are right on the first so many rows."""
    return lambda row: row.references[0] if row.origin.row < rows else "不知道。"


def scripted(*rows: int, output: Path, n: int = 20) -> Comparison:
    """A model for each number, right on so many rows."""
    a, b, *more = (Scripted(f"m{i}", right_on(count)) for i, count in enumerate(rows))
    return compare(a, b, couplets(n), THREE, more=more, output=output)


def test_each_other_side_is_paired_with_the_first(tmp_path: Path) -> None:
    content = scripted(0, 6, 12, 0, output=tmp_path / "c.jsonl").to_json()
    assert [side["model"] for side in content["sides"]] == ["m0", "m1", "m2", "m3"]
    assert not {"a", "b", "metrics"} & set(content)
    two = scripted(0, 12, output=tmp_path / "two.jsonl").to_json()
    found = pairs(content)
    assert [(one["a"]["model"], one["b"]["model"], one["keys"]) for one in found] == [
        ("m0", "m1", ["a", "b"]), ("m0", "m2", ["a", "c"]), ("m0", "m3", ["a", "d"]),
    ]  # fmt: skip
    assert pairs(two) == [two]
    # Of the pair everything is as if it had been measured alone, but for the correction.
    alone = {**two["metrics"]["squad_em"], "verdict": "better"}
    assert found[1]["metrics"]["squad_em"] == {**alone, "p_corrected": pytest.approx(6 * 2 / 2**12)}
    assert set(found[1]) - {"keys"} == set(two)
    json.dumps(content, allow_nan=False)


def test_verdicts_are_corrected_over_all_models(tmp_path: Path) -> None:
    # p = 2 / 2^k for k wins and no loss: 0.031 for six, which is enough in a call of two models.
    (two,) = pairs(scripted(0, 6, output=tmp_path / "two.jsonl").to_json())
    assert two["metrics"]["exact_match"]["verdict"] == "better"
    three = pairs(scripted(0, 6, 7, output=tmp_path / "three.jsonl").to_json())
    p_values = [one["metrics"]["exact_match"]["p_value"] for one in three]
    assert p_values == [2 / 2**6, 2 / 2**7]
    # The primary metric: two tests. The smaller p is doubled, the larger one stays: both are told.
    primary = [one["metrics"]["exact_match"] for one in three]
    assert [one["p_corrected"] for one in primary] == holm(p_values) == [2 / 2**6, 2 * 2 / 2**7]
    assert [one["verdict"] for one in primary] == ["better", "better"]
    # The others: four tests. 4 x 0.0156 and 2 x 0.031 are both too much.
    for name in ("squad_em", "cmrc2018_em"):
        others = [one["metrics"][name] for one in three]
        assert [one["p_corrected"] for one in others] == [4 * 2 / 2**7, 4 * 2 / 2**7]
        assert all(one["verdict"].startswith("cannot tell") for one in others)
    # Two models that win six rows each: 2 x 0.031 for the primary metric as well.
    equal = pairs(scripted(0, 6, 6, output=tmp_path / "equal.jsonl").to_json())
    assert [one["metrics"]["exact_match"]["p_corrected"] for one in equal] == [2 * 2 / 2**6] * 2
    assert all(one["metrics"]["exact_match"]["verdict"].startswith("cannot tell") for one in equal)


def test_losses_are_a_family_of_their_own(tmp_path: Path) -> None:
    def with_losses(comparison: Comparison, *means: float) -> list[dict[str, Any]]:
        """The same comparison of models whose answers' tokens cost about so much."""
        for side, mean in zip(comparison.sides, means, strict=True):
            costs = [RowLoss(10 * mean + (mean < 3) * at / 10, 10, 30) for at in range(6)]
            side.rows = [replace(row, loss=cost) for row, cost in zip(side.rows, costs, strict=True)]
            side.loss = total(costs)
        return [one["loss"] for one in pairs(comparison.to_json())]

    # Six rows that all cost less: p = 2 / 2^6, which two tests double.
    (alone,) = with_losses(scripted(0, 0, output=tmp_path / "two.jsonl", n=6), 3.0, 2.0)
    assert (alone["verdict"], "p_corrected" in alone) == ("better", False)
    both = with_losses(scripted(0, 0, 0, output=tmp_path / "three.jsonl", n=6), 3.0, 2.0, 2.5)
    assert [one["p_corrected"] for one in both] == [2 * 2 / 2**6] * 2
    assert all(one["verdict"].startswith("cannot tell") for one in both)
    assert both[0]["difference"]["high"] < 0, "the interval alone would tell"


def test_lines_hold_everybody_s_answers(tmp_path: Path) -> None:
    scripted(0, 6, 12, output=tmp_path / "c.jsonl")
    line = read_jsonl(tmp_path / "c.jsonl")[8]
    assert list(line) == ["id", "prompt", "references", "a", "b", "c"], "no prediction is the one of three"
    assert [line[key]["scores"]["exact_match"] for key in "abc"] == [0.0, 0.0, 1.0]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.jsonl"]


def test_tables(tmp_path: Path) -> None:
    content = scripted(5, 10, 20, output=tmp_path / "c.jsonl").to_json()
    rows = {row[0]: row[1:] for row in side_rows(content)}
    assert rows["n"] == ("20", "20", "20")
    assert [cell.partition(" [")[0] for cell in rows["exact_match"]] == ["0.250", "0.500", "1.000"]
    assert rows["tokens written"] == ("240", "240", "240"), "what is the same has no share"
    # Answers of 4 characters ("不知道。") on 15, 10 and 0 of 20 rows, of 12 on the others.
    assert rows["mean length"] == ("6.0", "8.0 (1.33 x)", "12.0 (2.00 x)")
    found = difference_rows(content)
    assert [row[:2] for row in found[:3]] == [
        ("exact_match", "B − A"), ("", "C − A"), ("squad_em", "B − A"),
    ]  # fmt: skip
    assert found[1][2].startswith("+0.750 [")
    stacked = {row[0]: row[1:] for row in side_rows(content, stacked=True)}
    assert stacked["exact_match"][0].startswith("0.250\n[")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["comparisons"].pop(),
        lambda content: content["comparisons"][1].pop("metrics"),
        lambda content: content["sides"][2].pop("model"),
        lambda content: content["sides"][2].pop("metrics"),
        lambda content: content.update(sides=[]),
        lambda content: content.update(comparisons=None),
    ],
)
def test_a_result_of_several_that_lacks_something_is_damaged(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    run = made_run(tmp_path / "tang-1")
    content = scripted(0, 6, 12, output=run.eval / "test.jsonl").to_json()
    write_json(run.eval / "test.json", content)
    assert [result["kind"] for result in read_results(run)] == ["comparison"]
    change(content)
    write_json(run.eval / "test.json", content)
    assert [result["kind"] for result in read_results(run)] == ["damaged"]


def rows_of(place: Path, limit: int | None = None) -> Questions:
    return read_questions(str(place / "valid.jsonl"), limit=limit)


def measured(place: Path, *names: str, rows: Questions | None = None, **options: Any) -> Any:
    """Runs and models of `place`, by their names in it."""
    paths = [str(place / name) for name in names]
    return measure_several(paths, rows or rows_of(place), THREE, SHORT, dtype="fp32", **options)


def test_runs_and_their_base_into_the_last_run(place: Path) -> None:
    train(place, "other", adapter={"rank": 2, "targets": ["q_proj"]}, max_steps=2)
    result = measured(place, "runs/lora", "runs/other", with_base=True)
    assert result.file == place / "runs/other/eval/valid.vs-qwen2-lora.json"
    content = json.loads(result.file.read_text(encoding="utf-8"))
    assert content == result.content
    assert [Path(side["model"]).name for side in content["sides"]] == ["qwen2", "lora", "other"]
    # The base is asked with the first run's template, and the same words as if it were alone with that run.
    alone = measured(place, "runs/lora", output=place / "alone.jsonl").content
    assert content["sides"][0]["loss"] == alone["a"]["loss"]
    assert content["sides"][1]["loss"] == alone["b"]["loss"] != content["sides"][2]["loss"]
    assert "p_corrected" in content["comparisons"][0]["loss"]
    assert all(one["notes"] == content["notes"] for one in content["comparisons"])
    assert "trained on by" in content["notes"][0]
    # In the report of the run there are two comparisons, each with its own answers.
    page = (place / "runs/other/report.html").read_text(encoding="utf-8")
    lines = read_jsonl(place / "runs/other/eval/valid.vs-qwen2-lora.jsonl")
    assert all(line[key]["prediction"][:3] in page for line in lines[:2] for key in "abc")
    for side in content["sides"]:
        assert side["peak_memory_of"] == "measuring"
        assert side["tokens_per_second"] == pytest.approx(
            side["completion_tokens"] / side["seconds"], rel=0.05
        )
        assert side["prompt_tokens"] > side["completion_tokens"] > 0


def test_names_of_outputs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/job.yaml").write_text("job: {model: m}\n", encoding="utf-8")
    found = rows_of(place)

    def name(*sides: str) -> str:
        return str(of_comparison(None, sides, sides, found).predictions.relative_to(tmp_path.resolve()))

    monkeypatch.chdir(tmp_path.resolve())
    run = str(tmp_path.resolve() / "run")
    assert name("a", "b/c", run) == "run/eval/valid.vs-a-c.jsonl"
    assert str(of_comparison(None, ("a", run, "b"), ("a", run, "b"), found).predictions) == (
        "eval/a-run-b.valid.jsonl"
    )
    long = of_comparison(None, ["詩" * 40] * 9, ["詩" * 40] * 9, found).predictions
    assert len(long.name.encode()) < 255
    assert long.name.endswith("-9-models.valid.jsonl")


def test_a_killed_comparison_of_three_goes_on(place: Path, tmp_path: Path) -> None:
    names = ("qwen2", "runs/lora", "runs/lora/adapter")
    base, run, adapter = (str(place / name) for name in names)
    told, seen = list[str](), list[int]()
    whole = measured(place, *names, output=tmp_path / "whole.jsonl")
    for what in (f"{base}: loss", f"{adapter} answers"):
        with pytest.raises(Stop):
            measured(place, *names, output=tmp_path / "cut.jsonl", watch=stopping(what, 8), note=told.append)
    kept = sorted(file.name for file in tmp_path.glob("cut*"))
    assert kept == [f"cut.jsonl.{letter}.partial" for letter in "abc"]
    told.clear()
    cut = measured(
        place,
        *names,
        output=tmp_path / "cut.jsonl",
        note=told.append,
        watch=lambda _, done, __: seen.append(done),
    )
    assert told == [f"{name}: 8 of 8 answers were there already." for name in (base, run, adapter)]
    assert set(seen) == {8}, "nothing was computed twice"
    assert timeless(cut) == timeless(whole)
    assert not list(tmp_path.glob("*.partial*"))


def test_the_same_models_write_the_same_files_and_others_do_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = rows_of(place, limit=2)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m").symlink_to(place / "qwen2")
    # b/m is another way to the same folder as a/m: the same files.
    names = []
    for sides in (("a/m", "a/m", "a/m"), ("a/m", "a/m"), ("a/m", "b/m", "a/m"), ("a/m", "a/m", "a/m")):
        result = measure_several(sides, found, THREE, SHORT, dtype="fp32")
        names.append(result.file.name)
    assert names == ["m-m-m.valid.json", "m-m.valid.json", "m-m-m.valid.json", "m-m-m.valid.json"]
    other = rows_of(place, limit=1)
    assert measure_several(("a/m",) * 3, other, THREE, SHORT, dtype="fp32").file.name == "m-m-m.valid-2.json"
    # An earlier result of three may be replaced by name, too.
    again = measure_several(
        ("a/m",) * 3, other, THREE, SHORT, dtype="fp32", output=Path("eval/m-m-m.valid-2")
    )
    assert again.file.name == "m-m-m.valid-2.json"


def test_the_python_function_takes_any_number(place: Path, tmp_path: Path) -> None:
    model, run = str(place / "qwen2"), str(place / "runs/lora")
    data, asked = str(place / "valid.jsonl"), {"dtype": "fp32", "max_new_tokens": 3, "limit": 2}
    three = compare_by_name(model, run, model, data=data, output=tmp_path / "three.jsonl", **asked)
    assert len(three.content["sides"]) == len(three.measured.rows()[0]) == 3
    based = compare_by_name(run, data=data, with_base=True, output=tmp_path / "based.jsonl", **asked)
    alone = compare_by_name(run, data=data, output=tmp_path / "alone.jsonl", **asked)
    assert based.content["metrics"] == alone.content["metrics"]
