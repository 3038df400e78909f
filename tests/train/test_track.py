"""Experiment trackers for real, none of them mocked: each training runs in a process and a home of its own.

What arrived is read back from the tracker's own files. wandb, swanlab, mlflow and trackio are heavy, so they
are in no development install; with `pip install -e '.[track]'` the tests that are skipped here run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.test_run import make_job

ROOT = Path(__file__).parents[2]
OFFLINE = {"wandb": {"WANDB_MODE": "offline"}, "swanlab": {"SWANLAB_MODE": "offline"}}
SECRETS = {
    "HF_TOKEN": "hf_" + "Geheim" * 5,
    "OPENAI_API_KEY": "sk-" + "geheim" * 5,
    "AWS_SECRET_ACCESS_KEY": "nichtzusehen" * 3,
}
Series = dict[str, dict[int, float]]  # name of a figure -> step -> value


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} isn't installed; pip install -e '.[track]'"
    )


EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name)) for name in ("wandb", "swanlab", "mlflow", "trackio")]
)
WITH_LOGIN = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name)) for name in ("wandb", "swanlab")]
)


@EACH
def test_a_training_arrives_whole(tmp_path: Path, name: str) -> None:
    done = _train(tmp_path, name, OFFLINE.get(name, {}) | SECRETS)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert json.loads(done.stdout)["run"] == str(run)  # nothing but the result on stdout

    told, settings, state = READERS[name](tmp_path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for key, figure in (
        ("loss", "train/loss"), ("learning_rate", "train/learning_rate"), ("valid_loss", "valid/loss"),
    ):  # fmt: skip
        assert told[figure] == pytest.approx({line["step"]: line[key] for line in lines if key in line})
    assert sorted(told["train/loss"]) == [1, 2, 3]
    assert sorted(told["valid/loss"]) == [0, 2, 3]
    assert settings["adapter.rank"] == "3"
    assert settings["train.learning_rate"] == "0.01"
    assert "allow_val_change" not in settings
    assert state == STATES[name][0]
    _holds_no_secret(tmp_path)
    here = {path.name for path in tmp_path.iterdir()} - {"mlflow.db"}
    assert here == {"model", "train.jsonl", "valid.jsonl", "job.yaml", "run", "home"}


ENDED = """
import signal, sys
from pathlib import Path
from tunesmith import rundir
from tunesmith.train.track import tracking

job = {"model": "https://me:nichtzusehen@example.org", "hub_token": "nichtzusehen", "path": str(Path.home())}
with tracking([sys.argv[1]], rundir.create(Path("run")), job) as told:
    told.log({"step": 1, "loss": 2.5})
    if sys.argv[2] == "failed":
        raise ValueError("loss is nan")
    signal.raise_signal(signal.SIGINT)
"""


@EACH
@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_a_training_that_stops_is_closed_and_called_so(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "ended.py").write_text(ENDED, encoding="utf-8")  # a command's words are recorded
    words = [sys.executable, "ended.py", name, how]
    done = _run(words, tmp_path, OFFLINE.get(name, {}) | SECRETS)
    assert ("ValueError" if how == "failed" else "KeyboardInterrupt") in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    told, settings, state = READERS[name](tmp_path)
    assert told["train/loss"] == {1: 2.5}
    assert state == STATES[name][1 if how == "failed" else 2]
    assert settings["hub_token"] == "(hidden)"
    assert settings["path"] == "~"
    (tmp_path / "ended.py").unlink()
    _holds_no_secret(tmp_path)


@WITH_LOGIN
def test_without_a_login_nobody_is_asked_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    # A real terminal, at which both would ask and wait for ever.
    import pty

    main, terminal = pty.openpty()
    try:
        done = _train(tmp_path, name, {}, stdin=terminal)
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 1
    assert f"The tracker {name} can't start" in done.stderr
    assert f"{name} login" in done.stderr
    assert f"{name.upper()}_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@needs("mlflow")
def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = _train(tmp_path, "mlflow", gone)
    assert done.returncode == 1
    assert "MLFLOW_TRACKING_URI" in done.stderr
    assert not (tmp_path / "run").exists()


def _train(folder: Path, name: str, environment: dict[str, str], **more: Any) -> Any:
    job = make_job(folder).model_dump(mode="json", exclude_none=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    words = ["train", "job.yaml", f"train.track={name}", f"output={folder / 'run'}", "--json"]
    return _run([sys.executable, "-m", "tunesmith.cli.main", *words], folder, environment, **more)


def _run(words: list[str], folder: Path, environment: dict[str, str], **more: Any) -> Any:
    """A process with a home of its own and nothing of this environment that a tracker would listen to."""
    (folder / "home").mkdir(exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS", "LANG") if key in os.environ}
    own = {
        "HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip
    more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        words, cwd=folder, env=kept | own | environment, capture_output=True, encoding="utf-8",
        timeout=600, **more,
    )  # fmt: skip


def _holds_no_secret(folder: Path) -> None:
    secrets = [secret.encode() for secret in (*SECRETS.values(), "nichtzusehen")]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files for secret in secrets if secret in file.read_bytes()] == []


def _worklog(file: Path) -> Iterator[bytes]:
    """The records of a .wandb or .swanlab file: a 7-byte head, then LevelDB's log format.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    data, at, record = file.read_bytes(), 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def _read_wandb(folder: Path) -> tuple[Series, dict[str, str], Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    told: Series = {}
    settings, state = {}, None
    (file,) = (folder / "run" / "wandb").glob("offline-run-*/*.wandb")
    for content in _worklog(file):
        record = Record()
        record.ParseFromString(content)
        for item in (*record.run.config.update, *record.config.update):
            settings[item.key] = str(json.loads(item.value_json))
        line = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        for key, value in line.items():
            told.setdefault(key, {})[line["_step"]] = value
        if record.HasField("exit"):
            state = record.exit.exit_code
    return told, settings, state


def _read_swanlab(folder: Path) -> tuple[Series, dict[str, str], Any]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    told: Series = {}
    state = None
    (file,) = (folder / "run" / "swanlab").glob("run-*/*.swanlab")
    for content in _worklog(file):
        record = Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "scalar":
            told.setdefault(record.scalar.key, {})[record.scalar.step] = record.scalar.value.number
        elif kind == "finish":
            state = record.finish.state
    saved = yaml.safe_load((file.parent / "files" / "config.yaml").read_text(encoding="utf-8"))
    return told, {key: str(entry["value"]) for key, entry in saved.items()}, state


def _read_mlflow(folder: Path) -> tuple[Series, dict[str, str], Any]:
    with sqlite3.connect(folder / "mlflow.db") as base:
        told: Series = {}
        for key, step, value in base.execute("select key, step, value from metrics"):
            told.setdefault(key, {})[step] = value
        ((state,),) = base.execute("select status from runs")
        return told, dict(base.execute("select key, value from params")), state


def _read_trackio(folder: Path) -> tuple[Series, dict[str, str], Any]:
    with sqlite3.connect(folder / "home" / ".cache" / "huggingface" / "trackio" / "tunesmith.db") as base:
        told: Series = {}
        for step, line in base.execute("select step, metrics from metrics"):
            for key, value in json.loads(line).items():
                told.setdefault(key, {})[step] = value
        ((config,),) = base.execute("select config from configs")
        return told, {key: str(value) for key, value in json.loads(config).items()}, None


READERS: dict[str, Callable[[Path], tuple[Series, dict[str, str], Any]]] = {
    "wandb": _read_wandb, "swanlab": _read_swanlab, "mlflow": _read_mlflow, "trackio": _read_trackio,
}  # fmt: skip
# How each calls a run that is finished, failed, interrupted. trackio has no word for it.
STATES: dict[str, tuple[Any, Any, Any]] = {
    "wandb": (0, 1, 130), "swanlab": (1, 2, 3), "mlflow": ("FINISHED", "FAILED", "KILLED"),
    "trackio": (None, None, None),
}  # fmt: skip
