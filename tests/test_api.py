"""The public functions, called as in a notebook: again and again, in one process."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith
from tests.e2e.conftest import qa_rows, write_jsonl
from tests.families import save_tiny
from tunesmith.errors import DataError, TemplateError

NOTEBOOK = """
import sys
import tunesmith
assert "torch" not in sys.modules
import tunesmith.train.config, tunesmith.evaluate.metrics   # as any other import may do before
first = tunesmith.train({**JOB, "output": "first"})
second = tunesmith.train({**JOB, "output": "second"}, "train.seed=7")
model = tunesmith.load(second, max_new_tokens=5)
assert isinstance(model.chat("你好"), str)
print(tunesmith.evaluate(second, "rows.jsonl", max_new_tokens=5).content["n"])
print(sorted(tunesmith.compare(first, second, data="rows.jsonl", max_new_tokens=5).content["metrics"]))
print(tunesmith.generate(second, "rows.jsonl", "answers.jsonl", max_new_tokens=5).answered)
print(tunesmith.summary(first)["steps"], [run.path.name for run in tunesmith.runs(".")])
print(tunesmith.check("rows.jsonl").files[0].reason)
"""


def test_a_notebook(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", qa_rows(4))
    job = {
        "model": "model",
        "data": {"train": "rows.jsonl", "max_length": 256},
        "adapter": {"rank": 2},
        "train": {"max_steps": 2, "warmup": 0, "dtype": "fp32"},
    }
    script = NOTEBOOK.replace("JOB", json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "4",
        "['exact_match', 'f1_char']",
        "4",
        "2 ['first', 'second']",
        "alpaca, because every row has instruction and output",
    ]


def test_generate_takes_what_the_verb_takes(tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "base")  # a base model has no template
    rows = str(write_jsonl(tmp_path / "rows.jsonl", qa_rows(3)))
    output = tmp_path / "answers.jsonl"
    with pytest.raises(TemplateError, match="no chat template") as refused:
        tunesmith.generate(model, rows, output)
    assert "template=" in refused.value.fix
    told: list[int] = []
    summary = tunesmith.generate(
        model, rows, output, template="chatml", dtype="bf16", batch_size=1, max_new_tokens=2,
        watch=lambda done: told.append(done.answered),
    )  # fmt: skip
    assert (summary.answered, told) == (3, [1, 2, 3])
    assert {json.loads(line)["dtype"] for line in output.read_text(encoding="utf-8").splitlines()} == {
        "bfloat16"
    }


def test_every_public_name_is_there_and_documented() -> None:
    for name in tunesmith.__all__:
        public = getattr(tunesmith, name)
        assert public.__doc__, name
        if not isinstance(public, type):
            # train and evaluate are folders as well: their own documentation would tell of those.
            where = tunesmith._ELSEWHERE.get(name, "tunesmith.api")
            function = getattr(importlib.import_module(where), name)
            assert inspect.signature(public) == inspect.signature(function), name
            assert public.__doc__ == function.__doc__, name
    assert "listener" in inspect.signature(tunesmith.train).parameters


def test_several_files_that_are_missing_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        tunesmith.check([str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")])
    assert "one.jsonl" in str(refused.value)
    assert "two.jsonl" in str(refused.value)
