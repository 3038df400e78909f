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
        (answers("user\n第{i}题？\n")[::-1], "it answers 'user 第5题？', the row asks '第0题？'"),
        (
            [{"predict": "好", "label": f"答案{5 - i}"} for i in range(6)],
            "its reference is '答案5', the row's '答案0'",
        ),
    ],
)
def test_another_order_is_refused(lines: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match="in the same places") as refused:
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
        f"{Path('p.jsonl').absolute()}: no prediction for 5 of 6 rows: 1, 2, 3, 4, 5"
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


TRANSLATED: list[dict[str, Any]] = [
    {"instruction": "翻译", "input": f"词{i}", "output": f"w{i}"} for i in range(4)
]
TALKS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"讲故事{i}"},
            {"role": "assistant", "content": "从前"},
            {"role": "user", "content": "继续"},
            {"role": "assistant", "content": f"后来{i}"},
        ]
    }
    for i in range(4)
]


INPUTS = [{"instruction": "翻译", "input": f"词{i}", "predict": f"w{i}"} for i in range(4)]
TURNS = [{"messages": talk["messages"][:3], "predict": f"后来{i}"} for i, talk in enumerate(TALKS)]
TEMPLATES = [
    {"prompt": f"user\n讲故事{i}\nassistant\n从前\nuser\n继续\n", "predict": f"后来{i}"} for i in range(4)
]
REFERENCES = [{"predict": f"答案{i}", "references": [f"答案{i}"]} for i in range(4)]
LABELS = [{"predict": f"答案{i}", "label": f"<think>\n\n</think>\n\n答案{i}"} for i in range(4)]
PLACES = [{"id": i, "prompt": f"第{i}题？", "predict": f"答案{i}"} for i in range(4)]
JOINED = [(TRANSLATED, INPUTS), (TALKS, TURNS)]
BY_PLACE = [(TALKS, TEMPLATES), (ROWS[:4], REFERENCES), (ROWS[:4], LABELS), (ROWS[:4], PLACES)]


@pytest.mark.parametrize(("rows", "lines"), [*JOINED, *BY_PLACE])
def test_lines_are_scored_against_their_own_rows(rows: Any, lines: list[dict[str, Any]]) -> None:
    write_rows(Path("rows.jsonl").absolute(), rows)
    assert scored(lines)["metrics"]["exact_match"]["value"] == 1.0
    if (rows, lines) in JOINED:
        assert scored(lines[::-1])["metrics"]["exact_match"]["value"] == 1.0


@pytest.mark.parametrize(("rows", "lines"), BY_PLACE)
def test_lines_in_other_places_are_refused(rows: Any, lines: list[dict[str, Any]]) -> None:
    write_rows(Path("rows.jsonl").absolute(), rows)
    moved = [
        {**line, **({"id": at} if "id" in line else {})} for at, line in enumerate(lines[1:] + lines[:1])
    ]
    with pytest.raises(DataError, match="in the same places") as refused:
        scored(moved)
    assert len(refused.value.details) == 4


@pytest.mark.parametrize(
    ("rows", "lines", "said"),
    [
        (
            [{**row, "id": i // 2} for i, row in enumerate(ROWS)],
            [{"id": 0, "predict": "x"}],
            "ids that come more",
        ),
        (ROWS, [{"id": 0, "predict": "x"}, {"predict": "y"}], "1 of 2 lines of .* have no `id`"),
        (ROWS, [*answers(), {"prompt": "第9题？", "predict": "x"}], "1 of 7 lines of .* answer no row"),
        (
            ROWS,
            [{"instruction": row["instruction"], "output": row["output"]} for row in ROWS],
            "own references",
        ),
        (ROWS, [], "is empty"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    rows: list[dict[str, Any]], lines: list[dict[str, Any]], said: str
) -> None:
    write_rows(Path("rows.jsonl").absolute(), rows)
    with pytest.raises(DataError, match=said) as refused:
        scored(lines)
    assert refused.value.fix


def test_ids_that_are_null_or_empty_are_none_and_a_failed_row_needs_no_text() -> None:
    for none in (None, ""):
        assert (
            scored([{"id": none, **line} for line in answers()[::-1]])["metrics"]["exact_match"]["value"]
            == 0.5
        )
    failed = [*answers()[:5], {"prompt": "第5题？", "predict": None, "finish": "error", "error": "HTTP 500"}]
    content = scored(failed)
    assert (content["n"], content["failed"]) == (5, 1)


def test_references_of_the_rows_are_taken_and_others_are_counted() -> None:
    content = scored([{**line, "label": "X"} for line in answers()])
    assert content["metrics"]["exact_match"]["value"] == 0.5
    (note,) = (note for note in content["notes"] if "other references" in note)
    assert note.startswith("6 lines of")
    assert "有 6 行的参考答案" in in_chinese(note)


def test_answers_written_anew_are_not_taken_from_an_interrupted_call() -> None:
    file = str(write_rows(Path("a.jsonl").absolute(), answers()))
    stop = True

    def own(prediction: str, references: list[str]) -> float:
        if stop:
            raise ValueError
        return float(prediction in references)

    with pytest.raises(SettingsError):
        tunesmith.compare(file, file, data="rows.jsonl", metrics=[own])
    stop = False
    write_rows(Path(file), [{**line, "predict": f"答案{i}"} for i, line in enumerate(answers())])
    content = tunesmith.compare(file, file, data="rows.jsonl", metrics=[own]).content
    assert content["a"]["metrics"]["own"]["value"] == 1.0


def test_an_output_never_replaces_the_answers_of_a_side() -> None:
    a = str(write_rows(Path("a.jsonl").absolute(), answers()))
    b = tunesmith.evaluate(predictions=a, data="rows.jsonl", output="b.jsonl").content["predictions"]
    before = Path(b).read_bytes()
    with pytest.raises(UsageError, match="would overwrite"):
        tunesmith.compare(a, b, data="rows.jsonl", output=b)
    assert Path(b).read_bytes() == before


def test_an_own_score_of_0_and_1_has_the_intervals_of_shares() -> None:
    def right(prediction: str, references: list[str]) -> bool:
        return prediction in references

    def size(prediction: str, references: list[str]) -> int:  # noqa: ARG001
        return len(prediction)

    def text(prediction: str, references: list[str]) -> str:  # noqa: ARG001
        return "0.5"

    lines = [{**line, "predict": line["predict"].replace("不知道", "不")} for line in answers()]
    file = str(write_rows(Path("p.jsonl").absolute(), lines))
    content = tunesmith.evaluate(
        predictions=file, data="rows.jsonl", metrics=["exact_match", right, size], by="category"
    ).content
    groups = content["groups"]["category"]
    for metrics in (content["metrics"], groups["a"]["metrics"], groups["b"]["metrics"]):
        assert metrics["right"] == metrics["exact_match"]
        assert metrics["right"]["low"] < metrics["right"]["high"]
    # 3 characters in a, 1 in b: of the three rows of each as many as Wilson's 0 in 3 has may be the other.
    ends = [
        (groups[name]["metrics"]["size"]["low"], groups[name]["metrics"]["size"]["high"]) for name in "ab"
    ]
    assert ends == [
        pytest.approx((3 - 2 * 0.5615, 3), abs=0.001),
        pytest.approx((1, 1 + 2 * 0.5615), abs=0.001),
    ]
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
