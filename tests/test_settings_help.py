"""Settings as people type them: names of other tools, short forms, a data file in place of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import SettingsError
from tunesmith.settings import known_keys
from tunesmith.train.config import Job, job_from, load_job


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("adapter.r=8", "adapter.rank"), ("lora_rank=8", "adapter.rank"), ("lr=1e-4", "train.learning_rate"),
        ("cutoff_len=512", "data.max_length"), ("train.bf16=true", "train.dtype"),
        ("dataset=x", "data.train"),
    ],
)  # fmt: skip
def test_names_of_other_tools_are_translated(word: str, meant: str) -> None:
    with pytest.raises(SettingsError) as told:
        job_from({"data": {"train": "x"}}, [word])
    assert f"here it is {meant!r}" in str(told.value)


def test_every_name_of_other_tools_means_a_setting() -> None:
    assert set(Job.ELSEWHERE) <= set(known_keys(Job))


@pytest.mark.parametrize(
    "words", [["adapter=freeze", "adapter.last_layers=2"], ["adapter.last_layers=2", "adapter=freeze"]]
)
def test_a_short_form_and_a_single_setting_go_together(words: list[str]) -> None:
    adapter = job_from({"data": {"train": "x"}, "train": {"learning_rate": 1e-4}}, words).adapter
    assert (adapter.type, adapter.last_layers) == ("freeze", 2)


def test_a_data_file_in_place_of_a_job_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="is data, not a job"):
        load_job(file)
