"""`tunesmith plan`: what it prints, exit codes, one JSON object."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.train.test_run import make_job
from tests.warm import Warm

MAIN = "import sys; from tunesmith.cli.main import main; main()"


def cold(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`tunesmith WORDS` by an interpreter of its own, which reads variables as it imports."""
    environment = {**os.environ, "COLUMNS": "160", **variables}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        cwd=cwd, capture_output=True, encoding="utf-8", env=environment,
    )  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Path:
    content = make_job(tmp_path).model_dump(mode="json", exclude_unset=True)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.mark.slow  # tests/train/test_plan.py measures three, too
def test_with_three_real_steps(warm: Warm, job: Path) -> None:
    done = warm.call("plan", job, cwd=job.parent)
    assert done.returncode == 0, done.stderr
    assert "measured in three steps" in done.stdout
    assert "memory, peak" in done.stdout
    assert "step 3 of 3" in done.stderr
    assert "It fits." in done.stderr


def test_json_is_one_object(warm: Warm, job: Path) -> None:
    done = warm.call("plan", job, "--no-probe", "--json", cwd=job.parent)
    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert told["fits"] is True
    assert told["probe"] is None
    assert told["memory"]["peak"] == sum(
        size for name, size in told["memory"].items() if name not in ("peak", "available")
    )
    assert not (job.parent / "runs").exists()


@pytest.mark.slow  # two processes that plan; tests/train/test_plan.py has the same within one
def test_what_does_not_fit_ends_with_2_and_the_words_of_a_job_that_does(warm: Warm, job: Path) -> None:
    words = ["model=Qwen/Qwen2.5-7B-Instruct", "train.dtype=bf16", "--memory", "12GB"]
    done = warm.call("plan", job, *words, cwd=job.parent)
    assert done.returncode == 2
    assert "It doesn't fit" in done.stderr
    fitting = done.stdout.splitlines()[-1].split()
    assert all("=" in word for word in fitting)
    assert warm.call("plan", job, *words, *fitting, cwd=job.parent).returncode == 0


def test_a_run_s_folder_is_planned_by_its_job(warm: Warm, job: Path) -> None:
    run = job.parent / "run"
    run.mkdir()
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    (run / "job.yaml").write_text(yaml.safe_dump({"job": content, "versions": {}}), encoding="utf-8")
    done = warm.call("plan", run, "--no-probe", cwd=job.parent)
    assert done.returncode == 0, done.stderr
    assert "memory, peak" in done.stdout
    done = warm.call("plan", job.parent / "model", "--no-probe", cwd=job.parent)
    assert "isn't the folder of a run" in done.stderr


@pytest.mark.slow  # three plans, 20 s
def test_memory_is_told_in_the_unit_that_it_was_taken_for_and_what_auto_does_is_said(
    warm: Warm, job: Path
) -> None:
    words = ["model=Qwen/Qwen2.5-0.5B-Instruct", "train.dtype=bf16", "data.max_length=1024"]
    free = warm.call("plan", job, *words, "--memory", "80GB", cwd=job.parent)
    assert "of 80.00 GiB" in free.stdout
    assert "a card with 80.00 GiB" in free.stderr
    assert "checkpoint_activations" not in free.stderr
    peak = json.loads(warm.call("plan", job, *words, "--memory", "80GB", "--json", cwd=job.parent).stdout)
    tight = f"{peak['memory']['peak'] * 0.99 / 2**20:.0f}MB"
    done = warm.call("plan", job, *words, "--memory", tight, cwd=job.parent)
    assert "train.checkpoint_activations=true" in done.stderr


@pytest.mark.slow  # a process that imports torch; tests/model/test_hub.py has the messages
def test_without_network_one_line_says_so(job: Path) -> None:
    words = ["--no-probe", "--card", "4090", "model=Qwen/Qwen2.5-7B-Instruct", "train.dtype=bf16"]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = cold("plan", job, *words, cwd=job.parent, **environment)
    assert "Retry" not in done.stderr
    assert "thrown while" not in done.stderr
    assert "The hub can't be reached" in done.stderr
    assert "built-in table" in done.stdout


def test_a_card_that_is_not_known_is_told_before_anything_is_counted(warm: Warm, job: Path) -> None:
    done = warm.call("plan", job, "--card", "4091", cwd=job.parent)
    assert done.returncode == 2
    assert "Counting" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        (["job.yaml", "data.train=nothing.jsonl"], "nothing.jsonl"),
        (["job.yaml", "train.epoch=3"], "epochs"),
        (["job.yaml", "--card", "4091"], "4090"),
        (["job.yaml", "--memory", "much"], "24GB"),
        (["job.yaml", "model=someone/unknown", "--no-probe"], "config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_message(warm: Warm, job: Path, words: list[str], said: str) -> None:
    done = warm.call("plan", *words, cwd=job.parent)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow  # two processes that import torch
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_it_and_the_steps_that_it_measures(job: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", MAIN, "plan", str(job), "train.max_steps=100000"],
        cwd=job.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if "probe" in line or "Three real steps" in line:
            break
    os.killpg(child.pid, signal.SIGINT)
    told = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
