"""evaluate and compare: figures, files, pairing, and one load for base and tuned model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.evaluate.conftest import questions, rows, train, write_rows
from tests.evaluate.made_run import Scripted, couplets
from tests.families import save_tiny
from tunesmith.data.prompts import read_prompts
from tunesmith.data.trained_rows import trained_rows
from tunesmith.errors import DataError, ModelError, SettingsError, UsageError
from tunesmith.evaluate import sides
from tunesmith.evaluate.answerers import Base
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.measure import measure_one, measure_several
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.questions import choose_metrics, read_questions
from tunesmith.evaluate.run import evaluate
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import load
from tunesmith.model.load import load_model
from tunesmith.model.source import Source
from tunesmith.records import Completion, Conversation
from tunesmith.rundir import open_run, read_jsonl

pytestmark = pytest.mark.usefixtures("few_questions")

ALL = [METRICS[name] for name in ("f1_char", "exact_match", "verse_form")]
SHORT = Sampling(max_new_tokens=6)


def perfect(conversation: Conversation) -> str:
    return conversation.references[0]


def test_a_perfect_and_a_silent_predictor(tmp_path: Path) -> None:
    good = evaluate(Scripted("good", perfect), couplets(), ALL, output=tmp_path / "g.jsonl").to_json()
    none = evaluate(Scripted("none", lambda _: " "), couplets(), ALL, output=tmp_path / "n.jsonl").to_json()
    for metric in good["metrics"]:
        assert good["metrics"][metric]["value"] == 1.0
        assert none["metrics"][metric]["value"] == 0.0
    assert (good["n"], good["empty"], none["empty"]) == (15, 0, 15)
    assert "loss" not in good  # nothing but a local model has one
    assert good["metrics"]["verse_form"]["low"] == pytest.approx(0.796, abs=1e-3)  # 15 of 15 isn't certainty


def test_predictions_file(tmp_path: Path) -> None:
    evaluate(Scripted("m", lambda _: "今日。"), couplets(3), ALL, output=tmp_path / "p.jsonl")
    lines = read_jsonl(tmp_path / "p.jsonl")
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    assert set(lines[0]) >= {"id", "prompt", "prediction", "references", "scores"}
    assert lines[0]["prompt"].endswith("石室寒飆警，孫枝雅器裁。")
    assert list(lines[0]["scores"]) == [metric.name for metric in ALL]
    assert list(tmp_path.iterdir()) == [tmp_path / "p.jsonl"]


def test_comparison_of_scripted_sides(tmp_path: Path) -> None:
    def half(conversation: Conversation) -> str:
        return perfect(conversation) if conversation.origin.row % 2 else "不知道。"

    sides = Scripted("none", lambda _: "不知道。"), Scripted("half", half)
    result = compare(*sides, couplets(20), ALL, output=tmp_path / "c.jsonl")
    content = result.to_json()
    exact = content["metrics"]["exact_match"]
    assert (exact["a"], exact["b"], exact["difference"]["value"]) == (0.0, 0.5, 0.5)
    assert (exact["wins"], exact["losses"], exact["ties"], exact["verdict"]) == (10, 0, 10, "better")
    assert exact["p_value"] == pytest.approx(2 / 2**10)
    lines = read_jsonl(tmp_path / "c.jsonl")
    assert [line["b"]["scores"]["exact_match"] for line in lines] == [0.0, 1.0] * 10
    assert lines[1]["prediction"] == lines[1]["b"]["prediction"] == couplets(20)[1].references[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.jsonl"]
    json.dumps(content, allow_nan=False)


def test_of_the_metrics_that_are_not_the_first_one_some_differ_by_chance(tmp_path: Path) -> None:
    def often(conversation: Conversation) -> str:
        return perfect(conversation) if conversation.origin.row < 6 else "不知道。"

    sides = Scripted("none", lambda _: "不知道。"), Scripted("often", often)
    metrics = [METRICS[name] for name in ("exact_match", "squad_em", "cmrc2018_em")]
    content = compare(*sides, couplets(20), metrics, output=tmp_path / "c.jsonl").to_json()
    # Six wins and no loss: p = 2 / 2^6 = 0.031 for each; of the two that aren't the first, 0.0625.
    assert {metric["p_value"] for metric in content["metrics"].values()} == {2 / 2**6}
    told = [metric["verdict"].split(" with")[0] for metric in content["metrics"].values()]
    assert told == ["better", "cannot tell", "cannot tell"]
    assert content["primary"] == "exact_match"


def test_less_is_better_and_neither(tmp_path: Path) -> None:
    sides = Scripted("a", lambda _: "春眠不覺曉" * 4), Scripted("b", lambda _: "春眠不覺曉")
    metrics = [METRICS[name] for name in ("repetition", "length")]
    content = compare(*sides, couplets(20), metrics, output=tmp_path / "c.jsonl").to_json()["metrics"]
    assert (content["repetition"]["verdict"], content["repetition"]["wins"]) == ("better", 20)
    assert (content["length"]["a"], content["length"]["b"]) == (20, 5)


def test_equal_sides_are_not_told_apart(tmp_path: Path) -> None:
    sides = Scripted("a", perfect), Scripted("b", perfect)
    content = compare(*sides, couplets(), ALL, output=tmp_path / "c.jsonl").to_json()
    assert {metric["verdict"] for metric in content["metrics"].values()} == {"cannot tell with n = 15"}


def test_run_against_its_base_from_one_load(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def counted(base: Source, *words: Any, **more: Any) -> object:
        loads.append(base.name)
        return load_model(base, *words, **more)

    monkeypatch.setattr(sides, "load_model", counted)
    found = read_questions(str(place / "valid.jsonl"))
    result = measure_several(
        (str(place / "runs/lora"),), found, choose_metrics(None, found), SHORT, dtype="fp32"
    )
    assert loads == [str(place / "qwen2")]
    assert isinstance(result.measured, Comparison)
    content = result.content
    assert content["loss"]["a"] > content["loss"]["b"]
    assert content["loss"]["verdict"] == "better"
    assert content["a"]["template"] == content["b"]["template"]
    assert len(content["notes"]) == 1  # told below

    # A is what the base alone says, B what the run says.
    base = load(str(place / "qwen2"), dtype="fp32", sampling=SHORT)
    asked = [row.prompt for row in found.conversations]
    assert [a.completion.text for a, _ in result.measured.rows()] == [c[0].text for c in base.complete(asked)]
    tuned = load(str(place / "runs/lora"), dtype="fp32", sampling=SHORT)
    assert [b.completion.text for _, b in result.measured.rows()] == [
        c[0].text for c in tuned.complete(asked)
    ]

    run = open_run(place / "runs/lora")
    assert result.file == run.eval / "valid.json"
    assert json.loads(result.file.read_text(encoding="utf-8")) == content
    assert len(read_jsonl(run.eval / "valid.jsonl")) == 8
    assert "valid.jsonl" in run.report_file.read_text(encoding="utf-8")


def test_the_adapter_is_on_again_after_the_base_has_answered(place: Path, tmp_path: Path) -> None:
    tuned = load(str(place / "runs/lora"), dtype="fp32", sampling=SHORT)
    before = [answers[0].text for answers in tuned.complete(questions(3))]
    held = iter(Base(tuned, "base").complete(questions(3)))

    class Kept:
        """Keeps a hand on the generator, so that only an explicit close ends it."""

        name = "base"

        def complete(self, _: Sequence[Conversation]) -> Iterator[list[Completion]]:
            return held

    evaluate(Kept(), questions(3), ALL, output=tmp_path / "x.jsonl")
    assert [answers[0].text for answers in tuned.complete(questions(3))] == before


def test_a_fully_tuned_run_is_compared_with_its_real_base(place: Path) -> None:
    train(place, "full", adapter={"type": "full"})
    found = read_questions(str(place / "valid.jsonl"))
    result = measure_several(
        (str(place / "runs/full"),), found, choose_metrics(None, found), SHORT, dtype="fp32"
    )
    base = measure_one(str(place / "qwen2"), found, choose_metrics(None, found), SHORT, dtype="fp32",
                       output=place / "base.jsonl")  # fmt: skip
    assert result.content["loss"]["a"] == pytest.approx(base.content["loss"], rel=1e-5)
    assert result.content["loss"]["b"] < result.content["loss"]["a"]


def test_a_base_that_changed_after_full_tuning_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", rows(24))
    write_rows(tmp_path / "valid.jsonl", rows(2))
    save_tiny("qwen2", tmp_path / "qwen2")
    run = train(tmp_path, "full", adapter={"type": "full"}, max_steps=1)
    weights = tmp_path / "qwen2" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    found = read_questions(str(tmp_path / "valid.jsonl"))
    with pytest.raises(ModelError, match="was tuned from another base") as refused:
        measure_several((str(run),), found, ALL, SHORT, dtype="fp32")
    assert "tunesmith compare MODEL" in refused.value.fix
    assert not list(run.glob("eval/*"))


def test_rows_that_were_trained_on_are_counted(place: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"第{i}個問題？", "input": "", "output": f"答{i}。"} for i in range(3)]
    write_rows(tmp_path / "new.jsonl", rows)
    run = open_run(train(place, "short", adapter={"rank": 2}, max_steps=2))
    learnt = [json.loads(line) for line in (place / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    # Two steps hold a part of the rows only: those, and no others, count.
    assert 0 < len(trained_rows(run.path)) < len(learnt)
    write_rows(tmp_path / "mixed.jsonl", rows + learnt)
    notes = {}
    for name in ("new", "mixed"):
        found = read_questions(str(tmp_path / f"{name}.jsonl"))
        notes[name] = measure_one(str(run.path), found, [METRICS["exact_match"]], Sampling(max_new_tokens=1),
                                  dtype="fp32").content["notes"]  # fmt: skip
    assert notes["new"] == []
    assert notes["mixed"][0].startswith(
        f"{len(trained_rows(run.path))} of these 27 rows were trained on by {run.path}"
    )
    assert "trained on by" in run.report_file.read_text(encoding="utf-8")
    # The same row with another answer wasn't learnt; the base has learnt none.
    write_rows(tmp_path / "other.jsonl", [{**row, "output": "不同。"} for row in learnt])
    found = read_questions(str(tmp_path / "other.jsonl"), limit=2)
    for name in (str(run.path), str(place / "qwen2")):
        assert measure_one(name, found, [METRICS["exact_match"]], Sampling(max_new_tokens=1), dtype="fp32",
                           output=tmp_path / "o.jsonl").content["notes"] == []  # fmt: skip
    # An adapter that goes on from another one has learnt both rows.
    more = train(place, "more", adapter={"rank": 2, "continue_from": str(run.path)}, max_steps=1, seed=9)
    assert trained_rows(more / "adapter") > trained_rows(run.path)


def test_one_name_that_is_no_run_has_no_base(place: Path) -> None:
    found = read_questions(str(place / "valid.jsonl"))
    with pytest.raises(UsageError, match="no base to be compared with"):
        measure_several((str(place / "qwen2"),), found, ALL, SHORT)


def test_rows_without_an_answer_are_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"instruction": "一", "output": "答"}\n{"instruction": "二"}\n{"instruction": "三", "output": ""}\n'
    )
    with pytest.raises(DataError) as refused:
        read_questions(str(file))
    assert [detail.rpartition(":")[2] for detail in refused.value.details] == ["2", "3"]
    assert "--references" in refused.value.fix
    truth = tmp_path / "truth.txt"
    truth.write_text("甲\n乙\n丙\n", encoding="utf-8")
    found = read_questions(str(file), str(truth))
    assert [row.references for row in found.conversations] == [("甲",), ("乙",), ("丙",)]
    assert len(read_questions(str(file), str(truth), limit=2).conversations) == 2


def test_user_d_files(tmp_path: Path) -> None:
    rows = [{"instruction": "續寫後兩句。", "input": "石室寒飆警，孫枝雅器裁。"}]
    (tmp_path / "test.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "gt.txt").write_text("坐來山水操，弦斷弔塵埃。\n", encoding="utf-8")
    found = read_questions(str(tmp_path / "test.json"), str(tmp_path / "gt.txt"))
    assert [m.name for m in choose_metrics(None, found)] == ["f1_char", "exact_match", "verse_form"]
    assert read_prompts(str(tmp_path / "test.json"))[0].references == ()


def test_metrics_by_name(place: Path) -> None:
    found = read_questions(str(place / "valid.jsonl"))
    assert [m.name for m in choose_metrics(None, found)] == ["f1_char", "exact_match"]
    assert [m.name for m in choose_metrics(["verse_form", "verse_form"], found)] == ["verse_form"]
    assert [m.name for m in choose_metrics("f1_char", found)] == ["f1_char"]
    with pytest.raises(SettingsError, match="did you mean 'f1_char'"):
        choose_metrics(["f1-char"], found)


def test_several_answers_to_a_prompt_are_refused_before_loading(place: Path) -> None:
    several = Sampling(temperature=1.0, num_return_sequences=2)
    found = read_questions(str(place / "valid.jsonl"))
    with pytest.raises(SettingsError, match="one is scored"):
        measure_one("no-such-model", found, ALL, several)


def test_output_named_json_keeps_predictions_and_result_apart(place: Path, tmp_path: Path) -> None:
    found = read_questions(str(place / "valid.jsonl"), limit=2)
    result = measure_one(str(place / "qwen2"), found, ALL, SHORT, output=tmp_path / "out.json", dtype="fp32")
    assert result.file == tmp_path / "out.json"
    assert json.loads(result.file.read_text(encoding="utf-8"))["n"] == 2
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 2


def test_dots_in_the_name_of_the_output_stay(place: Path, tmp_path: Path) -> None:
    found = read_questions(str(place / "valid.jsonl"), limit=1)
    kept = []
    for name in ("out-0.5", "out-0.7", "out-0.9.jsonl"):
        result = measure_one(str(place / "qwen2"), found, ALL, SHORT, output=tmp_path / name, dtype="fp32")
        kept.append((result.file.name, Path(result.content["predictions"]).name))
    stems = ("out-0.5", "out-0.7", "out-0.9")
    assert kept == [(f"{stem}.json", f"{stem}.jsonl") for stem in stems]
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.json"])
def test_an_output_never_replaces_what_is_no_result(place: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    # As `generate` writes them, or anything else.
    file.write_text('{"id": "0", "prompt": "一", "prediction": "二", "references": []}\n', encoding="utf-8")
    before = file.read_bytes()
    found = read_questions(str(place / "valid.jsonl"), limit=1)
    model = str(place / "qwen2")
    for attempt in (
        lambda: measure_one("no-such-model", found, ALL, SHORT, output=tmp_path / "notes.jsonl"),
        lambda: measure_several(("no-such-model", model), found, ALL, SHORT, output=tmp_path / "notes.json"),
    ):
        with pytest.raises(UsageError, match="would overwrite") as refused:
            attempt()
        assert name in str(refused.value)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_output_may_be_an_earlier_result(place: Path, tmp_path: Path) -> None:
    model, output = str(place / "qwen2"), tmp_path / "out.jsonl"
    output.touch()  # as mktemp makes them
    for limit in (1, 2):
        found = read_questions(str(place / "valid.jsonl"), limit=limit)
        result = measure_one(model, found, ALL, SHORT, output=output, dtype="fp32")
        assert result.content["n"] == limit
        result = measure_several((model, model), found, ALL, SHORT, output=output, dtype="fp32")
        assert result.content["n"] == limit


def test_other_rows_of_the_same_name_overwrite_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for folder, count in (("a", 1), ("b", 2), ("a", 1), ("b", 3)):
        file = tmp_path / folder / "test.jsonl"
        file.parent.mkdir(exist_ok=True)
        write_rows(file, rows(count))
        result = measure_one(str(place / "qwen2"), read_questions(str(file)), ALL, SHORT, dtype="fp32")
        names.append(result.file.name)
        assert json.loads(result.file.read_text(encoding="utf-8"))["n"] == count
    # a, b beside it, a again, and b with another row
    assert names == [f"qwen2.test{n}.eval.json" for n in ("", "-2", "", "-3")]


def test_a_limit_overwrites_no_figures_of_all_rows(place: Path, tmp_path: Path) -> None:
    run = str(shutil.copytree(place / "runs/lora", tmp_path / "run"))
    file = str(place / "valid.jsonl")
    names = []
    for limit in (None, 2, None):
        found = read_questions(file, limit=limit)
        results = (
            measure_one(run, found, ALL, SHORT, dtype="fp32"),
            measure_several((run,), found, ALL, SHORT, dtype="fp32"),
        )
        names.append(tuple(result.file.name for result in results))
    every, few = ("valid.eval.json", "valid.json"), ("valid-2.eval.json", "valid-2.json")
    assert names == [every, few, every]
    again = measure_one(run, read_questions(file, limit=2), ALL, SHORT, dtype="fp32")
    assert again.file.name == "valid-2.eval.json"
    assert json.loads((tmp_path / "run/eval/valid.json").read_text(encoding="utf-8"))["n"] == 8


def test_models_of_one_name_overwrite_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        shutil.copytree(place / "qwen2", tmp_path / folder / "m")
    found = read_questions(str(place / "valid.jsonl"), limit=1)
    again = str(tmp_path / "a" / "m")
    names = [measure_one(m, found, ALL, SHORT, dtype="fp32").file.name for m in ("a/m", "b/m", "a/m/", again)]
    assert names == [f"m.valid{n}.eval.json" for n in ("", "-2", "", "")]
    names = [measure_several((x, y), found, ALL, SHORT, dtype="fp32").file.name
             for x, y in (("a/m", "b/m"), ("b/m", "a/m"), ("a/m", "b/m"))]  # fmt: skip
    assert names == [f"m-m.valid{n}.json" for n in ("", "-2", "")]
