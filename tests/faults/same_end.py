"""Two runs ended alike: result, checkpoints and metrics, to the last byte but for what clocks say."""

from __future__ import annotations

import json

from tests.faults.tally import Place
from tests.faults.tiny_job import TinyJob, tiny_job
from tunesmith.train import checkpoint

TIMED = ("seconds", "metrics", "samples")  # in state.json: hashes of lines that hold times


def uninterrupted(place: Place, kind: str, **changes: object) -> TinyJob:
    """A run of this kind of job that nothing disturbed; made once for all rows."""
    job = TinyJob(place.folder / f"whole-{kind}", place)
    if not job.folder.exists():
        job = tiny_job(place, f"whole-{kind}", **changes)
        ended = job.start().wait()
        assert ended.code == 0, ended.printed
    return job


def check_same_end(job: TinyJob, whole: TinyJob, *, checkpoints: bool = True) -> None:
    """Raise AssertionError with what differs; the last checkpoint may be asked to be left out."""
    assert job.metrics() == whole.metrics(), _first_difference(job.metrics(), whole.metrics())
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        same = (job.run.adapter / name).read_bytes() == (whole.run.adapter / name).read_bytes()
        assert same, f"adapter/{name} differs"
    left = [path.name for path in job.run.path.rglob(".*-????????????*")]
    assert not left, f"left behind: {left}"
    if checkpoints:
        _check_same_checkpoint(job, whole)


def _check_same_checkpoint(job: TinyJob, whole: TinyJob) -> None:
    ours, theirs = job.run.saved_steps()[-1], whole.run.saved_steps()[-1]
    assert ours.name == theirs.name, f"the last checkpoint is {ours.name}, not {theirs.name}"
    for name in checkpoint.TENSOR_FILES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), f"{ours.name}/{name} differs"
    states = [
        json.loads((folder / checkpoint.STATE).read_text(encoding="utf-8")) for folder in (ours, theirs)
    ]
    for key in states[1].keys() - set(TIMED):
        assert states[0].get(key) == states[1][key], f"{ours.name}/state.json: {key} differs"


def check_one_error(printed: str) -> None:
    """What a command printed in the end is one error with its remedy, for people."""
    assert printed.count("Error: ") == 1, f"{printed.count('Error: ')} errors: {printed[-300:]}"
    assert "What to do: " in printed, f"no remedy: {printed[-300:]}"
    assert "Traceback" not in printed, "a traceback"


def _first_difference(ours: list[dict[str, object]], theirs: list[dict[str, object]]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} lines of metrics, not {len(theirs)}"
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"line {at + 1} of metrics.jsonl: {ours[at]} and not {theirs[at]}"
