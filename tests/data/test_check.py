"""Loading: every row is accounted for, whatever weights, shares and bad rows do to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.check import (
    Dataset,
    FileSummary,
    _draw_share,
    _Loaded,
    load,
    load_data,
    read_prompts,
    read_references,
    survey,
)
from tunesmith.data.config import DataFile, DataSettings
from tunesmith.errors import DataError
from tunesmith.records import Conversation, Labelled, Origin, Record, Text

TANG = Path(__file__).parents[2] / "examples" / "tang"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_file(folder: Path, name: str, *prompts: Any) -> str:
    """JSONL of rows with these instructions; None makes a row without output."""
    lines = []
    for prompt in prompts:
        row = {"instruction": f"q{prompt}", "output": "a"} if prompt is not None else {"instruction": "x"}
        lines.append(json.dumps(row))
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return str(folder / name)


def file(path: str, weight: float = 1.0) -> DataFile:
    return DataFile(path=path, weight=weight)


def asked(dataset: Dataset) -> list[str]:
    return [first_words(record) for record in dataset.records]


def first_words(record: Record) -> str:
    assert isinstance(record, Conversation)
    return record.messages[0].content


def job(train: Any, valid: Any = None, **more: Any) -> DataSettings:
    return DataSettings.model_validate({"train": train, "valid": valid, **more})


# Real data


def test_tang_is_read_whole_and_its_splits_do_not_overlap() -> None:
    train, valid = load_data(job(str(TANG / "train.json"), str(TANG / "valid.json")), 42)
    assert valid is not None
    assert (train.rows, len(train.records), train.bad_rows, train.duplicates) == (4000, 4000, [], 0)
    assert (valid.rows, len(valid.records), valid.overlap) == (100, 100, 0)
    assert train.files[0].reason == "alpaca, because every row has instruction and output"
    origin = train.records[2].origin  # type: ignore[union-attr]
    lines = (TANG / "train.json").read_text(encoding="utf-8").split("\n")
    assert lines[origin.line - 1].strip() == "{"
    assert (
        json.loads("{" + "".join(lines[origin.line : origin.line + 3]) + "}")["output"]
        == train.records[2].answer
    )  # type: ignore[union-attr]


def test_tang_prompts_and_their_truth_in_a_text_file() -> None:
    prompts = read_prompts(str(TANG / "test.json"))
    assert len(prompts) == 15
    assert all(prompt.references == () and prompt.messages[-1].role == "user" for prompt in prompts)
    known = read_references(str(TANG / "test_truth.txt"), prompts)
    lines = (TANG / "test_truth.txt").read_text(encoding="utf-8").split("\n")
    assert [prompt.references for prompt in known] == [(line,) for line in lines if line]
    assert [prompt.messages for prompt in known] == [prompt.messages for prompt in prompts]


# Bad rows


def test_bad_rows_of_all_files_are_listed_at_once(tmp_path: Path) -> None:
    one = rows_file(tmp_path, "a.jsonl", 1, None, 2)
    two = rows_file(tmp_path, "b.jsonl", 3, 4, None)
    with pytest.raises(DataError) as caught:
        load([file(one), file(two), file(f"{tmp_path}/none.json")])
    message = str(caught.value)
    assert f"{one}:2: the column 'output' is missing" in message
    assert f"{two}:3: the column 'output' is missing" in message
    assert "none.json" in message
    assert "2 of 6 rows" in message


@quick
@given(
    kinds=st.lists(st.sampled_from(["good", "empty", "number", "broken", "null"]), min_size=3, max_size=12)
)
def test_good_and_bad_rows_add_up_to_the_rows_of_the_file(tmp_path: Path, kinds: list[str]) -> None:
    kinds = ["good"] * (len(kinds) + 1) + kinds
    made = {
        "good": '{"instruction": "q", "output": "a"}',
        "empty": '{"instruction": "q", "output": ""}',
        "number": '{"instruction": "q", "output": 42}',
        "broken": '{"instruction": "q", "output": "a"',
        "null": "null",
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(made[kind] for kind in kinds), encoding="utf-8")
    dataset = load([file(str(path))], bad_rows="drop")
    (summary,) = dataset.files
    assert summary.rows == len(kinds) == summary.good + len(summary.bad)
    assert len(dataset.records) == summary.good == kinds.count("good")
    assert [bad.origin.line for bad in summary.bad] == [
        n for n, kind in enumerate(kinds, 1) if kind != "good"
    ]


def test_a_file_without_a_good_row_is_never_passed_over(tmp_path: Path) -> None:
    good = rows_file(tmp_path, "a.jsonl", 1)
    (tmp_path / "b.jsonl").write_text('{"instruction": "q", "output": 1}\n' * 2)
    with pytest.raises(DataError, match="None of the 2 rows") as caught:
        load([file(good), file(f"{tmp_path}/b.jsonl")], bad_rows="drop")
    assert "b.jsonl:2" in str(caught.value)


def test_a_survey_tells_rows_and_faults_without_stopping(tmp_path: Path) -> None:
    dataset, problems = survey(
        [
            rows_file(tmp_path, "a.jsonl", 1, None, 2),
            f"{tmp_path}/none.json",
            rows_file(tmp_path, "b.jsonl", 2),
        ]
    )
    assert asked(dataset) == ["q1", "q2", "q2"]
    assert [bad.origin.line for bad in dataset.bad_rows] == [2]
    assert len(problems) == 1
    assert dataset.duplicate_rows == [f"{tmp_path}/b.jsonl:1 repeats {tmp_path}/a.jsonl:3"]
    assert (dataset.files[0].turns, dataset.files[0].characters) == (4, 6)


def test_the_summary_is_json(tmp_path: Path) -> None:
    dataset, _ = survey([rows_file(tmp_path, "詩.jsonl", 1, None, 1)])
    report = json.loads(json.dumps(dataset.to_json()))
    assert report["bad_rows"][0]["line"] == 2
    assert (report["rows"], report["records"], report["duplicates"]) == (3, 2, 1)
    assert (report["files"][0]["format"], report["files"][0]["encoding"]) == ("alpaca", "utf-8")
    assert len(report["files"][0]["sha256"]) == 64


# Weights


@quick
@given(weight=st.sampled_from([0.25, 0.5, 1, 1.5, 2, 3]), seed=st.integers(0, 5))
def test_weights_repeat_and_thin_and_everything_is_counted(tmp_path: Path, weight: float, seed: int) -> None:
    path = rows_file(tmp_path, "a.jsonl", *range(20))
    dataset = load([file(path, weight)], seed=seed)
    times = Counter(asked(dataset))
    assert len(dataset.records) == dataset.files[0].taken == weight * 20
    assert set(times.values()) <= {int(weight), int(weight) + (weight % 1 > 0)}
    report = dataset.to_json()
    assert report["left_out"] == 20 - len(times)
    assert report["repeated"] == len(dataset.records) - len(times)
    assert dataset.duplicates == 0
    assert asked(load([file(path, weight)], seed=seed)) == asked(dataset)


def test_a_half_hangs_on_the_seed_and_not_on_other_files(tmp_path: Path) -> None:
    a, b = rows_file(tmp_path, "a.jsonl", *range(20)), rows_file(tmp_path, "b.jsonl", *range(20, 30))
    half = asked(load([file(a, 0.5)], seed=1))
    assert half != asked(load([file(a, 0.5)], seed=2))
    assert half == sorted(half, key=lambda words: int(words[1:]))
    assert asked(load([file(a, 0.5), file(b)], seed=1))[:10] == half


def test_a_weight_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weight 0.1 leaves none of its 2 rows"):
        load([file(rows_file(tmp_path, "a.jsonl", 1, 2), 0.1)])


# Validation


@quick
@given(
    prompts=st.lists(st.integers(0, 8), min_size=3, max_size=30).filter(lambda found: len(set(found)) > 1),
    share=st.floats(0.02, 0.9),
    seed=st.integers(0, 3),
    weight=st.sampled_from([0.5, 1, 2]),
)
def test_a_share_keeps_equal_rows_on_one_side_and_loses_none(
    tmp_path: Path, prompts: list[int], share: float, seed: int, weight: float
) -> None:
    path = rows_file(tmp_path, "a.jsonl", *prompts)
    settings = job([{"path": path, "weight": weight}], share)
    try:
        train, valid = load_data(settings, seed)
    except DataError:  # the half may hold one prompt only
        assert weight == 0.5
        return
    assert valid is not None
    assert valid.records
    assert train.records
    assert not set(asked(train)) & set(asked(valid))
    times = max(1, int(weight))
    assert len(train.records) + times * len(valid.records) == round(weight * len(prompts))
    assert len({record.origin for record in valid.records if isinstance(record, Conversation)}) == len(
        valid.records
    )
    taken = train.files[0]
    assert taken.rows == len(prompts) == taken.good
    assert taken.taken // times + taken.left_out + taken.to_valid == len(prompts)
    assert valid.files[0].rows == len(valid.records) == taken.to_valid
    again = load_data(settings, seed)
    assert again[1] is not None
    assert (asked(again[0]), asked(again[1])) == (asked(train), asked(valid))


def test_a_share_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    path = rows_file(tmp_path, "a.jsonl", *range(200))
    train, valid = load_data(job(path, 0.05), 42)
    assert valid is not None
    assert (len(train.records), len(valid.records)) == (190, 10)
    other = load_data(job(path, 0.05), 43)[1]
    assert other is not None
    assert set(asked(other)) != set(asked(valid))


def test_many_equal_rows_do_not_shrink_the_share(tmp_path: Path) -> None:
    path = rows_file(tmp_path, "a.jsonl", *[0] * 50, *range(1, 51))
    for seed in range(5):
        valid = load_data(job(path, 0.2), seed)[1]
        assert valid is not None
        assert (len(valid.records), valid.duplicates) == (20, 0)


def test_drawing_a_share_does_not_count_all_rows_again_for_each() -> None:
    records: list[Record] = [Text(str(n), Origin("a.txt", 1, n)) for n in range(40_000)]
    part = _Loaded(FileSummary("a.txt", "text", "", 40_000, [], ""), records, [1] * 40_000)
    begun = time.process_time()
    assert sum(_draw_share([part], 0.5, 42)[0]) == 20_000
    assert time.process_time() - begun < 4  # counted anew for each row, it took 10


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ('{"instruction": "q", "output": "a", "x\\ud800": 1}', "a column's name"),
        ('{"instruction": "q", "output": "a", "id": "\\udfff"}', "'id'"),
        ('{"instruction": "q", "output": "a", "更": [{"b": {"\\uD834": 1}}]}', "'更'"),
        ('{"instruction": "\\ud83d\\ude00\\ud83d", "output": "a"}', "'instruction'"),
    ],
)
def test_half_a_character_anywhere_makes_a_bad_row(tmp_path: Path, row: str, where: str) -> None:
    good = '{"instruction": "\\ud83d\\ude00", "output": "\\\\ud83d"}'
    for name, text in (("a.jsonl", f"{good}\n{row}\n"), ("a.json", f"[{good},\n{row}]")):
        path = put(tmp_path, name, text)
        with pytest.raises(DataError, match="half a character") as caught:
            load([file(path)])
        [told] = caught.value.details
        assert told.startswith(f"{path}:2: {where} holds half a character (\\ud")
        dropped = load([file(path)], bad_rows="drop")
        assert len(dropped.records) == 1
        json.dumps(dropped.to_json(), ensure_ascii=False).encode()


@pytest.mark.parametrize("prompts", [[1], [1, 1, 1]])
def test_a_share_of_one_row_is_refused(tmp_path: Path, prompts: list[int]) -> None:
    with pytest.raises(DataError, match="validation") as caught:
        load_data(job(rows_file(tmp_path, "a.jsonl", *prompts), 0.5), 42)
    assert "data.valid" in caught.value.fix


def test_validation_rows_that_are_trained_on_are_named(tmp_path: Path) -> None:
    train_file = rows_file(tmp_path, "a.jsonl", 1, 2, 3)
    valid_file = rows_file(tmp_path, "b.jsonl", 9, 3, 8, 1)
    _, valid = load_data(job([{"path": train_file, "weight": 2}], valid_file), 42)
    assert valid is not None
    assert valid.overlap == 2
    assert valid.overlap_rows == [
        f"{valid_file}:2 is also in training: {train_file}:3",
        f"{valid_file}:4 is also in training: {train_file}:1",
    ]
    assert valid.to_json()["overlap"] == 2


def test_no_validation(tmp_path: Path) -> None:
    assert load_data(job(rows_file(tmp_path, "a.jsonl", 1)), 42)[1] is None


def test_a_folder_says_what_it_leaves_unread(tmp_path: Path) -> None:
    rows_file(tmp_path, "a.jsonl", 1)
    (tmp_path / "README.md").write_text("about")
    assert load([file(str(tmp_path))]).files[0].not_read == ["README.md"]


# Prompts and references


def put(folder: Path, name: str, content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", "a\n\n b \r\n詩\n", [("a", ()), ("b", ()), ("詩", ())]),
        ("a.json", [{"instruction": "a", "output": "c"}, {"instruction": "d"}], [("a", ("c",)), ("d", ())]),
        ("a.json", [{"messages": TURNS}], [("c", ())]),
        ("a.json", [{"messages": [*TURNS, {"role": "assistant", "content": "d"}]}], [("c", ("d",))]),
        ("a.csv", "prompt,completion\na,b\nc,\n", [("a", ("b",)), ("c", ())]),
        ("a.json", [{"text": "a"}, {"text": "b"}], [("a", ()), ("b", ())]),
        ("a.json", [{"prompt": "a", "chosen": "b", "rejected": "c"}], [("a", ("b",))]),
        ("a.json", [{"prompt": "a", "completion": "b", "label": True}], [("a", ("b",))]),
    ],
)  # fmt: skip
def test_prompts_of_every_format(tmp_path: Path, name: str, content: Any, prompts: list[Any]) -> None:
    found = read_prompts(put(tmp_path, name, content))
    assert [(prompt.messages[-1].content, prompt.references) for prompt in found] == prompts
    assert all(not isinstance(prompt, Labelled) and prompt.messages[-1].role == "user" for prompt in found)


def test_prompts_keep_their_lines_and_none_is_left_out(tmp_path: Path) -> None:
    assert [p.origin.line for p in read_prompts(put(tmp_path, "a.txt", "a\n\nb"))] == [1, 3]
    with pytest.raises(DataError, match="2 of 4 prompts") as caught:
        read_prompts(put(tmp_path, "a.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "b"}\n{"prompt"'))
    assert "a.jsonl:2" in str(caught.value)
    assert "a.jsonl:4" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "b1\nb2\n"),
        ("t.jsonl", '{"output": "b1"}\n{"output": "b2"}'),
        ("t.json", [{"reference": "b1"}, {"reference": "b2"}]),
        ("t.json", ["b1", "b2"]),
        ("t.csv", "answer\nb1\nb2\n"),
        ("t.json", [{"instruction": "a", "output": "b1"}, {"instruction": "c", "output": "b2"}]),
        (
            "t.json",
            [{"messages": [TURNS[0], {"role": "assistant", "content": text}]} for text in ("b1", "b2")],
        ),
    ],
)
def test_references_in_a_file_of_their_own(tmp_path: Path, name: str, content: Any) -> None:
    prompts = read_prompts(put(tmp_path, "p.txt", "a\nc"))
    known = read_references(put(tmp_path, name, content), prompts)
    assert [prompt.references for prompt in known] == [("b1",), ("b2",)]


def test_several_references_for_a_prompt(tmp_path: Path) -> None:
    prompts = read_prompts(put(tmp_path, "p.txt", "a"))
    (known,) = read_references(put(tmp_path, "t.jsonl", '{"references": ["x", "y"]}'), prompts)
    assert known.references == ("x", "y")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"output": "b"}\n{"output": "c"}\n{"output": "d"}', ("3 answers for 2 prompts",)),
        ('{"output": "b"}\n{"output": 5}', ("t.jsonl:2", "'output' isn't an answer")),
        ('{"output": "b"}\n{"x": "c"}', ("t.jsonl:2", "no answer (columns: x)")),
        ('{"output": "b"}\n{"output"', ("t.jsonl:2",)),
    ],
)
def test_references_that_do_not_fit(tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    prompts = read_prompts(put(tmp_path, "p.txt", "a\nc"))
    with pytest.raises(DataError) as caught:
        read_references(put(tmp_path, "t.jsonl", content), prompts)
    assert all(word in str(caught.value) for word in words)
