"""Lines of predictions without ids: joined by prompts, by order where nothing speaks against it, or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.evaluate.conftest import place, write_rows
from tunesmith.errors import DataError, SettingsError, UsageError
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.results import title

__all__ = ["place"]

ROWS: list[dict[str, Any]] = [
    {"instruction": f"第{i}题？", "output": f"答案{i}", "category": "ab"[i % 2]} for i in range(6)
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS)


def scored(lines: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    file = write_rows(Path("p.jsonl").absolute(), lines)
    return tunesmith.evaluate(
        predictions=str(file), data="rows.jsonl", metrics="exact_match", **options
    ).content


def answers(prompt: str = "第{i}题？", **more: str) -> list[dict[str, Any]]:
    """Right on the rows 0, 2 and 4, which are of category a."""
    return [
        {
            "prompt": prompt.format(i=i),
            "predict": f"答案{i}" if i % 2 == 0 else "不知道",
            **{name: text.format(i=i) for name, text in more.items()},
        }
        for i in range(6)
    ]


def test_prompts_join_lines_in_any_order() -> None:
    for lines in (answers(), answers()[::-1], [*answers()[3:], *answers()[:3]]):
        content = scored(lines, by="category")
        assert content["metrics"]["exact_match"]["value"] == 0.5
        groups = content["groups"]["category"]
        assert [groups[name]["metrics"]["exact_match"]["value"] for name in "ab"] == [1.0, 0.0]
        (note,) = (note for note in content["notes"] if "joined" in note)
        assert note.endswith("by prompts, as no line has an `id`.")
        assert "按提示" in in_chinese(note)


def test_templates_around_prompts_are_joined_by_order_and_that_is_said() -> None:
    content = scored(answers("system\nuser\n第{i}题？\nassistant\n", label="答案{i}"))
    assert content["metrics"]["exact_match"]["value"] == 0.5
    assert (content["data"], title(content)) == ("rows.jsonl", f"rows.jsonl, n = 6:  {content['model']}")
    (note,) = (note for note in content["notes"] if "joined" in note)
    assert note.endswith("by the order of lines, as no line has an `id`.")
    assert "按行的顺序" in in_chinese(note)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (answers("user\n第{i}题？\n")[::-1], "it answers 'user 第5题？', the row there asks '第0题？'"),
        (
            [{"predict": "好", "label": f"答案{5 - i}"} for i in range(6)],
            "its reference is '答案5', the row's '答案0'",
        ),
    ],
)
def test_another_order_is_refused(lines: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match="aren't in the same order") as refused:
        scored(lines)
    assert len(refused.value.details) == 6
    assert said in refused.value.details[0]


def test_fewer_lines_than_rows_are_refused_with_the_limit_that_helps() -> None:
    lines = [{"predict": f"答案{i}"} for i in range(4)]
    with pytest.raises(DataError, match="4 lines without an `id`") as refused:
        scored(lines)
    assert "--limit 4" in refused.value.fix
    assert scored(lines, limit=4)["metrics"]["exact_match"]["value"] == 1.0
    with pytest.raises(DataError) as refused:
        scored([{"id": "0", "predict": "答案0"}])
    assert list(refused.value.details) == [
        f"{Path('p.jsonl').absolute()}: no prediction for 5 of 6 rows: 1, 2, 3, 4, 5 (--limit takes fewer)"
    ]


@pytest.mark.parametrize(
    "lines",
    [
        answers()[::-1],  # joined by prompts
        answers("user\n第{i}题？\n"),  # by order
        [{"id": i, **line} for i, line in enumerate(answers())][::-1],
    ],
    ids=["prompts", "order", "ids"],
)
def test_a_limit_leaves_out_the_answers_to_other_rows(lines: list[dict[str, Any]]) -> None:
    content = scored(lines, limit=3)
    assert (content["n"], content["metrics"]["exact_match"]["value"]) == (3, pytest.approx(2 / 3))


def test_columns_that_stand_in_the_rows_are_said_to() -> None:
    file = write_rows(Path("p.jsonl").absolute(), answers(label="答案{i}"))
    with pytest.raises(DataError, match="no column 'category'") as refused:
        tunesmith.evaluate(predictions=str(file), by="category")
    assert "--data FILE" in refused.value.fix


@pytest.mark.parametrize("metric", ["yes_no", "choice"])
def test_references_that_a_metric_cannot_read_are_no_wrong_answers(metric: str) -> None:
    rows = [
        {"instruction": "？", "output": text}
        for text in ("五个工作日。", "B" if metric == "choice" else "是的")
    ]
    write_rows(Path("rows.jsonl").absolute(), rows)
    lines = [{"predict": row["output"]} for row in rows]
    file = write_rows(Path("p.jsonl").absolute(), lines)
    with pytest.raises(DataError, match=f"1 of 2 rows can't be scored by `{metric}`") as refused:
        tunesmith.evaluate(predictions=str(file), data="rows.jsonl", metrics=metric)
    assert "五个工作日" in refused.value.details[0]


def test_an_own_score_of_0_and_1_has_the_intervals_of_shares() -> None:
    def right(prediction: str, references: list[str]) -> bool:
        return prediction in references

    def size(prediction: str, references: list[str]) -> int:  # noqa: ARG001
        return len(prediction)

    def text(prediction: str, references: list[str]) -> str:  # noqa: ARG001
        return "0.5"

    file = str(write_rows(Path("p.jsonl").absolute(), answers()))
    content = tunesmith.evaluate(
        predictions=file, data="rows.jsonl", metrics=["exact_match", right, size], by="category"
    ).content
    groups = content["groups"]["category"]
    for metrics in (content["metrics"], groups["a"]["metrics"], groups["b"]["metrics"]):
        assert metrics["right"] == metrics["exact_match"]
        assert metrics["right"]["low"] < metrics["right"]["high"]
        # 3 characters each: all alike in a group, but they aren't everywhere
        assert metrics["size"]["low"] <= metrics["size"]["value"] <= metrics["size"]["high"]
    with pytest.raises(SettingsError, match=r"'0\.5' is a text, not a number"):
        tunesmith.evaluate(predictions=file, data="rows.jsonl", metrics=[text])


def test_rows_all_alike_are_not_certain_where_others_differ() -> None:
    def size(prediction: str, references: list[str]) -> int:  # noqa: ARG001
        return len(prediction)

    lines = [{"predict": "一" * (1 + 4 * (i % 2))} for i in range(6)]
    file = str(write_rows(Path("p.jsonl").absolute(), lines))
    content = tunesmith.evaluate(predictions=file, data="rows.jsonl", metrics=[size], by="category").content
    alike = content["groups"]["category"]["a"]["metrics"]["size"]
    # By Wilson's interval of 0 in 3 so many may be 5 instead of 1.
    assert (alike["value"], alike["low"]) == (1.0, 1.0)
    assert alike["high"] == pytest.approx(1 + 4 * 0.5615, abs=0.001)


def test_files_of_answers_are_compared_with_each_other_and_with_a_run(place: Path) -> None:
    half, none = answers(), [{**line, "predict": "不知道"} for line in answers()]
    a, b = (
        str(write_rows(Path(f"{name}.jsonl").absolute(), lines))
        for name, lines in (("a", none), ("b", half[::-1]))
    )
    content = tunesmith.compare(a, b, data="rows.jsonl", metrics="exact_match", by="category").content
    figures = content["metrics"]["exact_match"]
    assert (figures["a"], figures["b"], figures["wins"], figures["losses"]) == (0.0, 0.5, 3, 0)
    assert content["groups"]["category"]["b"]["metrics"]["exact_match"]["b"] == 0.0
    assert not {"seconds", "loss"} & {*content["b"], *content["a"]}
    assert sum("joined" in note for note in content["notes"]) == 2
    run = str(place / "runs/lora")
    content = tunesmith.compare(
        a, run, data="rows.jsonl", metrics="exact_match", dtype="fp32", max_new_tokens=2
    ).content
    assert (content["a"]["model"], content["b"]["model"]) == (a, run)
    assert "seconds" in content["b"]
    assert "forgetting" not in content["findings"], "a file can't be asked"


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("a.jsonl",), {}, "has no base"),
        (("a.jsonl", "a.jsonl"), {"temperature": 0.5}, "temperature would change nothing"),
        (("a.jsonl", "a.jsonl"), {"forgetting": True}, "can't be asked"),
    ],
)
def test_what_files_of_answers_cannot_do_is_told(names: tuple[str, ...], options: Any, said: str) -> None:
    write_rows(Path("a.jsonl").absolute(), answers())
    with pytest.raises(UsageError, match=said):
        tunesmith.compare(*names, data="rows.jsonl", metrics="exact_match", **options)
